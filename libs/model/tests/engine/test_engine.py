import gc
import random
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch

from latentforge.model.decoding.batch import TextLogprobs
from latentforge.model.engine.engine import Engine
from latentforge.model.engine.errors import GenerationFailedError
from latentforge.model.engine.limits import EngineLimits
from latentforge.model.engine.requests import GenerationRequest, ScoringRequest, Written
from latentforge.model.sampling import SamplingParams
from tests.engine_clients import Client, Clock
from tests.serial_decoding import SerialDecoding, written_alone

Serial = Callable[..., SerialDecoding]
PROMPT = [5, 6, 7, 8, 9, 10]


def ask(
    decoding: SerialDecoding, max_tokens: int = 12, prompt: Sequence[int] = PROMPT, seed: int = 1
) -> GenerationRequest:
    return GenerationRequest(decoding, prompt, max_tokens, SamplingParams(seed=seed))


def run(engine: Engine) -> None:
    for _ in range(10_000):
        if engine.is_idle:
            return
        engine.run_once()
    raise AssertionError("the engine does not come to an end")


def test_a_request_gets_its_text_a_chunk_a_step(serial: Serial) -> None:
    client = Client(Engine()).ask(ask(decoding := serial(), 10))
    run(client.engine)
    assert (client.token_ids, client.ended) == written_alone(ask(decoding, 10))
    assert [len(event.token_ids) for event in client.events if isinstance(event, Written)] == [4, 4, 2]
    assert client.ticket.is_over
    assert (client.ticket.timings.steps, client.ticket.timings.num_tokens) == (3, 10)
    assert (client.engine.steps, client.engine.tokens_drawn, client.engine.prompt_tokens_read) == (3, 10, 6)


def test_who_comes_first_is_served_first_and_one_joins_when_another_leaves(serial: Serial) -> None:
    decoding = serial(num_slots=2)
    engine = Engine()
    lengths = [4, 12, 4, 8]
    clients = [Client(engine).ask(ask(decoding, length, seed=i)) for i, length in enumerate(lengths)]
    assert (engine.queued, engine.running) == (4, 0)
    ended: list[int] = []
    for _ in range(5):
        engine.run_once()
        ended += [i for i, client in enumerate(clients) if client.ended and i not in ended]
    # Slots: 0 and 1; 2 takes 0's place, 3 takes 2's.
    assert ended == [0, 2, 1, 3]
    assert [number for name, number in decoding.calls if name == "step"] == [2, 2, 2, 1]
    assert (engine.queued, engine.running, engine.slots_total) == (0, 0, 2)


def test_texts_that_join_and_leave_at_random_are_what_they_are_alone(serial: Serial) -> None:
    decoding = serial(num_slots=5)
    chance = random.Random(4)
    engine = Engine(EngineLimits(queue_limit=1000, prefill_tokens=8))
    clients: list[Client] = []
    expected: list[tuple[list[int], str]] = []
    cancelled: list[Client] = []
    while len(clients) < 50 or not engine.is_idle:
        if len(clients) < 50:
            for _ in range(chance.randrange(4)):
                request = GenerationRequest(
                    decoding,
                    [chance.randrange(2, 64) for _ in range(chance.randrange(30))],
                    chance.randrange(1, 30),
                    SamplingParams(seed=chance.randrange(1000), temperature=chance.choice([0, 0.7, 1])),
                    end_ids=frozenset(chance.sample(range(2, 64), 3)),
                )
                clients.append(Client(engine).ask(request))
                expected.append(written_alone(request))
        if clients and chance.random() < 0.3:
            cancelled.append(client := chance.choice(clients))
            client.ticket.cancel()
        engine.run_once()
        assert decoding.num_free == 5 - engine.slots_used
    whole = 0
    for client, (token_ids, reason) in zip(clients, expected, strict=True):
        if client.ended == "GenerationCancelledError":
            assert client in cancelled
            assert client.token_ids == token_ids[: len(client.token_ids)]
        else:
            assert (client.token_ids, client.ended) == (token_ids, reason)
            whole += 1
    assert whole > 20
    assert len(clients) - whole > 5
    assert decoding.num_free == 5


def test_a_long_prompt_is_read_in_pieces_between_the_steps_of_others(serial: Serial) -> None:
    decoding = serial(max_chunks=64)
    engine = Engine(EngineLimits(prefill_tokens=16))
    short = Client(engine).ask(ask(decoding, 60))
    engine.run_once()
    long = Client(engine).ask(ask(decoding, 4, prompt=[3] * 120))
    decoding.calls.clear()
    for _ in range(8):
        before = len(short.token_ids)
        engine.run_once()
        assert len(short.token_ids) == before + 4
    assert [call for call in decoding.calls if call[0] == "prefill"] == [("prefill", 16)] * 8
    assert long.ended == "length"


def test_a_short_prompt_waits_for_one_piece_of_a_long_one_at_most(serial: Serial) -> None:
    decoding = serial(max_chunks=128)
    engine = Engine(EngineLimits(prefill_tokens=16))
    long = [Client(engine).ask(ask(decoding, 4, prompt=[3] * 160, seed=i)) for i in range(2)]
    for _ in range(4):
        engine.run_once()
    for _ in range(2):
        short = Client(engine).ask(ask(decoding, 4))
        engine.run_once()
        engine.run_once()
        assert short.ended == "length"
    # Short prompts without end do not keep the long ones from being read either.
    for i in range(60):
        Client(engine).ask(ask(decoding, 4, prompt=[3] * 16, seed=i))
        engine.run_once()
    assert [client.ended for client in long] == ["length"] * 2


def test_a_prompt_for_another_model_waits_for_one_piece_at_most_too(serial: Serial) -> None:
    old, new = serial(max_chunks=128), serial()
    engine = Engine(EngineLimits(prefill_tokens=16))
    Client(engine).ask(ask(old, 4, prompt=[3] * 160))
    for _ in range(3):
        engine.run_once()
    short = Client(engine).ask(ask(new, 4))
    engine.run_once()
    engine.run_once()
    assert short.ended == "length"


def test_a_full_model_holds_up_no_other(serial: Serial) -> None:
    old, new = serial(num_slots=1), serial(num_slots=1)
    engine = Engine()
    first, queued = [Client(engine).ask(ask(old, 40)) for _ in range(2)]
    engine.run_once()
    other = Client(engine).ask(ask(new, 4))
    engine.run_once()
    assert (first.ended, queued.events, other.ended) == (None, [], "length")


def test_two_models_step_side_by_side_and_the_old_one_is_freed_with_its_last_request(serial: Serial) -> None:
    old, new = serial(), serial(chunk_size=2)
    engine = Engine()
    asked = [ask(old, 8), ask(new, 12)]
    expected = [written_alone(request) for request in asked]
    clients = [Client(engine).ask(request) for request in asked]
    engine.run_once()
    assert [len(client.token_ids) for client in clients] == [4, 2]
    assert engine.slots_total == 8
    freed = weakref.ref(old)
    asked.clear()
    old = new
    engine.run_once()
    assert clients[0].ended == "length"
    assert [clients[0].token_ids, clients[0].ended] == list(expected[0])
    del clients[0]
    gc.collect()
    assert freed() is None
    assert engine.slots_total == 4
    run(engine)
    assert (clients[0].token_ids, clients[0].ended) == expected[1]


def test_cancelling_frees_the_slot_within_a_step(serial: Serial) -> None:
    decoding = serial(num_slots=1)
    engine = Engine()
    gone, queued, last = (Client(engine).ask(ask(decoding, 40)) for _ in range(3))
    engine.run_once()
    gone.ticket.cancel()
    queued.ticket.cancel()
    engine.run_once()
    assert (gone.ended, queued.ended) == ("GenerationCancelledError", "GenerationCancelledError")
    assert len(last.token_ids) == 4
    assert (engine.running, engine.queued, len(gone.token_ids)) == (1, 0, 4)
    gone.ticket.cancel()
    engine.run_once()
    assert len(last.token_ids) == 8


def test_a_deadline_counts_from_the_submission_and_is_looked_at_between_steps(serial: Serial) -> None:
    decoding, clock = serial(num_slots=1), Clock()
    engine = Engine(EngineLimits(request_seconds=10), clock=clock)
    running, queued = (Client(engine).ask(ask(decoding, 40)) for _ in range(2))
    patient = Client(engine).ask(ask(decoding, 8), seconds=20)
    engine.run_once()
    clock.now = 10
    engine.run_once()
    assert (running.ended, len(running.token_ids)) == (None, 8)
    clock.now = 10.1
    engine.run_once()
    assert (running.ended, queued.ended) == ("DeadlineError", "DeadlineError")
    assert str(running.events[-1]).startswith("8 of at most 40 tokens were written in 10 s")
    assert len(patient.token_ids) == 4
    run(engine)
    assert patient.ended == "length"


def test_a_text_that_is_refused_fails_alone(serial: Serial) -> None:
    decoding = serial()
    engine = Engine()
    good = Client(engine).ask(ask(decoding))
    bad = Client(engine).ask(ask(decoding, prompt=[5, 64]))
    long = Client(engine).ask(ask(decoding, prompt=[5] * 61))
    run(engine)
    assert good.token_ids == written_alone(ask(decoding))[0]
    assert "id 64 is not in the vocabulary" in str(bad.events[-1])
    assert "no room for a step" in str(long.events[-1])
    assert isinstance(bad.events[-1], ValueError)
    assert decoding.num_free == 4


@pytest.mark.parametrize("where", ["prefill", "step"])
def test_a_step_that_fails_ends_its_own_models_texts_and_the_loop_goes_on(serial: Serial, where: str) -> None:
    broken, other = serial(num_slots=2), serial()
    engine = Engine(EngineLimits(prefill_tokens=4))
    clients = [Client(engine).ask(ask(broken, seed=i)) for i in range(3)]
    neighbour = Client(engine).ask(ask(other))
    broken.fail_on[where] = RuntimeError("out of memory")
    run(engine)
    assert [client.ended for client in clients] == ["GenerationFailedError", "GenerationFailedError", "length"]
    assert "RuntimeError: out of memory" in str(clients[0].events[-1])
    assert clients[2].token_ids == written_alone(ask(broken, seed=2))[0]
    assert neighbour.token_ids == written_alone(ask(other))[0]
    assert broken.num_free == 2


def test_logits_that_are_no_numbers_fail_the_text(serial: Serial) -> None:
    diverged = serial()
    with torch.no_grad():
        diverged.model.student.bias[3] = torch.nan
    engine = Engine()
    client = Client(engine).ask(ask(diverged))
    scoring = Client(engine).ask(ScoringRequest(diverged, PROMPT))
    run(engine)
    assert isinstance(client.events[-1], GenerationFailedError)
    assert "not finite" in str(client.events[-1])
    assert client.token_ids == []
    assert "no numbers" in str(scoring.events[-1])


def test_a_text_ends_before_an_end_id_and_what_stands_behind_it_is_cut(serial: Serial) -> None:
    decoding = serial()
    whole, _ = written_alone(ask(decoding, 40))
    end = next(i for at, i in enumerate(whole) if at % 4 == 1 and i not in whole[:at])
    at = whole.index(end)
    request = GenerationRequest(decoding, PROMPT, 40, SamplingParams(seed=1), frozenset({end}), logprobs=2)
    client = Client(Engine()).ask(request)
    run(client.engine)
    assert (client.token_ids, client.ended) == (whole[:at], "stop")
    last = client.events[-1]
    assert isinstance(last, Written)
    assert last.logprobs is not None
    assert last.likeliest is not None
    assert (len(last.token_ids), len(last.logprobs), len(last.likeliest)) == (1, 1, 1)
    exact = Client(client.engine).ask(GenerationRequest(decoding, PROMPT, at, SamplingParams(seed=1), frozenset({end})))
    run(client.engine)
    assert (exact.token_ids, exact.ended) == (whole[:at], "length")


def test_stop_is_told_new_ids_and_says_how_many_of_them_stay(serial: Serial) -> None:
    decoding = serial()
    whole, _ = written_alone(ask(decoding, 40))
    told: list[list[int]] = []

    def stop(token_ids: Sequence[int]) -> int | None:
        told.append(list(token_ids))
        return 3 if len(told) == 3 else None

    client = Client(Engine()).ask(GenerationRequest(decoding, PROMPT, 40, SamplingParams(seed=1), stop=stop))
    run(client.engine)
    assert told == [whole[:4], whole[4:8], whole[8:12]]
    assert (client.token_ids, client.ended) == (whole[:11], "stop")


def test_a_stop_that_fails_fails_its_request_alone(serial: Serial) -> None:
    def fail(_: Sequence[int]) -> int | None:
        raise KeyError("stop")

    decoding = serial()
    engine = Engine()
    bad = Client(engine).ask(GenerationRequest(decoding, PROMPT, 8, SamplingParams(seed=1), stop=fail))
    wrong = Client(engine).ask(GenerationRequest(decoding, PROMPT, 8, SamplingParams(seed=1), stop=lambda _: 5))
    good = Client(engine).ask(ask(decoding))
    run(engine)
    assert (bad.ended, wrong.ended, good.ended) == ("KeyError", "ValueError", "length")
    assert decoding.num_free == 4


def test_a_listener_that_fails_ends_its_request_alone(serial: Serial) -> None:
    def fail(_: object) -> None:
        raise KeyError("listener")

    decoding = serial()
    engine = Engine()
    engine.submit(ask(decoding, 40), fail)
    good = Client(engine).ask(ask(decoding, 40))
    engine.run_once()
    engine.run_once()
    assert engine.running == 1
    run(engine)
    assert good.ended == "length"


def test_a_text_ends_with_the_context(serial: Serial) -> None:
    decoding = serial()
    client = Client(Engine()).ask(ask(decoding, 1000, prompt=[4] * 45))
    run(client.engine)
    assert (len(client.token_ids), client.ended) == (64 - 48, "length")


def test_texts_are_scored_in_turns_beside_those_that_are_written(serial: Serial) -> None:
    decoding = serial(max_chunks=32)
    engine = Engine()
    long = Client(engine).ask(ScoringRequest(decoding, [7] * 60, likeliest=2))
    writing = Client(engine).ask(ask(decoding, 60))
    short = Client(engine).ask(ScoringRequest(decoding, [7, 8, 9, 10, 11]))
    for _ in range(4):
        engine.run_once()
    assert len(writing.token_ids) == 16
    assert short.ended == "TextLogprobs"
    run(engine)
    [scored] = long.events
    assert isinstance(scored, TextLogprobs)
    assert (len(scored.logprobs), len(scored.likeliest[0])) == (60, 2)
    chunks = torch.tensor([7] * 60).view(1, 15, 4)
    with torch.no_grad():
        logits = decoding.model.logits(chunks).logits[0].flatten(0, 1)
    logits[:, 1] = float("-inf")
    assert scored.logprobs == pytest.approx(logits.log_softmax(-1)[:, 7].tolist(), abs=1e-4)
    assert long.ticket.timings.num_tokens == 60


def test_a_text_that_is_scored_fails_is_cancelled_and_is_late_alone(serial: Serial) -> None:
    decoding, clock = serial(), Clock()
    engine = Engine(clock=clock)
    good = Client(engine).ask(ScoringRequest(decoding, [7] * 30))
    gone = Client(engine).ask(ScoringRequest(decoding, [7] * 30))
    late = Client(engine).ask(ScoringRequest(decoding, [7] * 30), seconds=1)
    bad = Client(engine).ask(ScoringRequest(decoding, [7, 99]))
    for _ in range(3):
        engine.run_once()
    gone.ticket.cancel()
    clock.now = 2
    run(engine)
    assert [client.ended for client in (good, gone, late, bad)] == [
        "TextLogprobs",
        "GenerationCancelledError",
        "DeadlineError",
        "GenerationFailedError",
    ]
    assert (engine.running, engine.queued) == (0, 0)


def test_timings_tell_queue_first_token_and_decode_apart(serial: Serial) -> None:
    decoding, clock = serial(num_slots=1), Clock()
    engine = Engine(EngineLimits(prefill_tokens=4), clock=clock)
    Client(engine).ask(ask(decoding, 4, prompt=[5]))
    client = Client(engine).ask(ask(decoding, 8, prompt=[5] * 8))
    for second in range(5):
        clock.now = float(second)
        engine.run_once()
    timings = client.ticket.timings
    assert (timings.queue_seconds, timings.first_token_seconds, timings.decode_seconds) == (1.0, 2.0, 1.0)
    assert timings.running_seconds == 2.0
