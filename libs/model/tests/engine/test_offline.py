from collections.abc import Callable

import pytest

from latentforge.model.engine.errors import GenerationFailedError
from latentforge.model.engine.offline import run, stream
from latentforge.model.engine.requests import GenerationRequest, Written
from latentforge.model.sampling import SamplingParams
from tests.serial_decoding import SerialDecoding, written_alone

Serial = Callable[..., SerialDecoding]


def ask(decoding: SerialDecoding, seed: int, logprobs: int | None = None) -> GenerationRequest:
    return GenerationRequest(decoding, [5] * (seed + 1), 10, SamplingParams(seed=seed), logprobs=logprobs)


def test_more_requests_than_slots_are_answered_in_their_order(serial: Serial) -> None:
    decoding = serial(num_slots=2)
    requests = [ask(decoding, seed) for seed in range(5)]
    told: list[tuple[int, Written]] = []
    results = run(requests, lambda index, written: told.append((index, written)))
    assert [(result.token_ids, result.finish_reason) for result in results] == [written_alone(r) for r in requests]
    assert [i for index, written in told if index == 3 for i in written.token_ids] == results[3].token_ids
    assert (results[0].logprobs, results[0].timings.steps) == (None, 3)


def test_slots_that_are_taken_elsewhere_are_not_waited_for(serial: Serial) -> None:
    decoding = serial(num_slots=1)
    text = decoding.open([5], SamplingParams())
    for answer in (lambda: run([ask(decoding, 0)]), lambda: list(stream(ask(decoding, 0)))):
        with pytest.raises(RuntimeError, match="taken by texts that were opened elsewhere"):
            answer()
    decoding.close(text)
    assert run([ask(decoding, 0)])


def test_log_probabilities_are_collected(serial: Serial) -> None:
    [result] = run([ask(serial(), 1, logprobs=2)])
    assert result.logprobs is not None
    assert result.likeliest is not None
    assert (len(result.logprobs), len(result.likeliest), len(result.likeliest[0])) == (10, 10, 2)


def test_a_failure_is_raised_and_the_slots_are_free_again(serial: Serial) -> None:
    decoding = serial()
    with pytest.raises(ValueError, match="id 99"):
        run([ask(decoding, 0), GenerationRequest(decoding, [99], 4)])
    assert decoding.num_free == 4
    decoding.fail_on["step"] = RuntimeError("broken")
    with pytest.raises(GenerationFailedError, match="broken"):
        run([ask(decoding, 0)])


def test_a_stream_steps_when_it_is_read_and_frees_its_slot_when_it_is_left(serial: Serial) -> None:
    decoding = serial()
    written = stream(ask(decoding, 1))
    first = next(written)
    assert [call for call in decoding.calls if call[0] == "step"] == [("step", 1)]
    rest = [i for each in written for i in each.token_ids]
    assert first.token_ids + rest == written_alone(ask(decoding, 1))[0]
    left = stream(ask(decoding, 1))
    next(left)
    assert decoding.num_free == 3
    del left
    assert decoding.num_free == 4
