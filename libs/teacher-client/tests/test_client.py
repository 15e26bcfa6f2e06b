"""Both clients against a real gRPC server with scripted answers; the gateway's tests use them against a gateway."""

import asyncio
import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.errors import FieldViolation, TeacherError
from latentforge.teacher_client.sync_client import SyncTeacherClient
from tests.scripted_gateway import BUSY, GONE, Both, Scripted, ask, realised, scripted, status

__all__ = ["ask", "scripted"]


def test_an_error_carries_what_the_details_say(ask: Both, scripted: tuple[Scripted, str]) -> None:
    scripted[0].script = [status(grpc.StatusCode.INVALID_ARGUMENT, "text: is bad", field="text", reason="INVALID")]
    with pytest.raises(TeacherError, match="INVALID_ARGUMENT: text: is bad") as caught:
        ask("tokenize", "x")
    assert caught.value.violations == (FieldViolation("text", "is bad"),)
    assert (caught.value.reason, caught.value.retry_after, caught.value.request_id) == ("INVALID", None, "the-id")
    assert len(scripted[0].calls) == 1


def test_a_busy_gateway_is_asked_again_when_it_says(ask: Both, scripted: tuple[Scripted, str]) -> None:
    scripted[0].script = [BUSY, BUSY]
    started = time.monotonic()
    assert ask("tokenize", "abc") == [3]
    assert time.monotonic() - started >= 0.1
    assert len(scripted[0].calls) == 3


def test_tries_are_bounded(ask: Both, scripted: tuple[Scripted, str]) -> None:
    scripted[0].script = [BUSY] * 20
    with pytest.raises(TeacherError, match="RESOURCE_EXHAUSTED") as caught:
        ask("tokenize", "abc")
    assert caught.value.retry_after == 0.05
    assert len(scripted[0].calls) == 5


def test_an_answer_that_is_too_large_is_not_asked_for_again(ask: Both, scripted: tuple[Scripted, str]) -> None:
    scripted[0].script = [status(grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max")]
    with pytest.raises(TeacherError, match="larger than max"):
        ask("tokenize", "abc")
    assert len(scripted[0].calls) == 1


def test_a_pause_that_exceeds_the_timeout_is_not_begun(ask: Both, scripted: tuple[Scripted, str]) -> None:
    scripted[0].script = [status(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=30)]
    started = time.monotonic()
    with pytest.raises(TeacherError, match="RESOURCE_EXHAUSTED"):
        ask("tokenize", "abc", timeout=2)
    assert time.monotonic() - started < 2


def test_a_gateway_that_comes_up_late_is_waited_for(ask: Both, scripted: tuple[Scripted, str]) -> None:
    scripted[0].script = [GONE, GONE]
    assert ask("tokenize", "abc") == [3]
    assert len(scripted[0].calls) == 3


def test_one_attempt_never_asks_again(ask: Both, scripted: tuple[Scripted, str]) -> None:
    for failure in (GONE, BUSY):
        scripted[0].calls.clear()
        scripted[0].script = [failure]
        with pytest.raises(TeacherError):
            ask("tokenize", "abc", attempts=1)
        assert len(scripted[0].calls) == 1


def test_a_gateway_that_is_not_there_is_named(ask: Both) -> None:
    ask.target = "127.0.0.1:9"
    with pytest.raises(TeacherError, match=r"no teacher-gateway answers at 127.0.0.1:9 .*GATEWAY_TARGET") as caught:
        ask("tokenize", "abc", attempts=1)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_a_batch_that_breaks_off_is_asked_for_what_is_missing(ask: Both, scripted: tuple[Scripted, str]) -> None:
    sequences = [[i, 1, 2] for i in range(5)]
    scripted[0].script = [[None, None, ("end", GONE)], [None, ("end", GONE)]]
    answers = ask("score_batch", sequences, 2)
    assert [a.index for a in answers] == [0, 1, 2, 3, 4]
    assert realised(answers) == {i: -float(i) for i in range(5)}
    assert [[s.ids[0] for s in c.sequences] for c in scripted[0].calls] == [[0, 1, 2, 3, 4], [2, 3, 4], [3, 4]]


def test_a_batch_that_breaks_off_after_its_last_answer_is_answered(ask: Both, scripted: tuple[Scripted, str]) -> None:
    scripted[0].script = [[None, None, ("end", GONE)]]
    assert realised(ask("score_batch", [[7, 1], [8, 1]], 2)) == {0: -7.0, 1: -8.0}
    assert len(scripted[0].calls) == 1


def test_refused_sequences_that_may_succeed_later_are_asked_again_alone(
    ask: Both, scripted: tuple[Scripted, str]
) -> None:
    bad = status(grpc.StatusCode.INVALID_ARGUMENT, "too long", field="sequences[1].ids")
    scripted[0].script = [[None, bad, BUSY, GONE]]
    answers = ask("score_batch", [[i, 1, 2] for i in range(4)], 2)
    assert sorted(a.index for a in answers) == [0, 1, 2, 3]
    assert realised(answers) == {0: 0.0, 2: -2.0, 3: -3.0}
    (refused,) = (a for a in answers if a.error is not None)
    assert refused.index == 1
    assert refused.error is not None
    assert refused.error.violations[0].field == "sequences[1].ids"
    assert [[s.ids[0] for s in c.sequences] for c in scripted[0].calls] == [[0, 1, 2, 3], [2, 3]]


def test_sequences_refused_to_the_end_come_with_their_errors(ask: Both, scripted: tuple[Scripted, str]) -> None:
    scripted[0].script = [[None, BUSY]] + [[BUSY]] * 20
    answers = ask("score_batch", [[7, 1], [8, 1]], 2)
    assert [(a.index, a.rows is None) for a in answers] == [(0, False), (1, True)]
    assert answers[1].error is not None
    assert answers[1].error.reason == "TEACHER_BUSY"
    assert len(scripted[0].calls) == 6 - 1


def test_a_whole_batch_that_is_refused_raises(ask: Both, scripted: tuple[Scripted, str]) -> None:
    mismatch = status(grpc.StatusCode.FAILED_PRECONDITION, reason="TOKENIZER_MISMATCH")
    scripted[0].script = [[("end", mismatch)]]
    with pytest.raises(TeacherError) as caught:
        ask("score_batch", [[7, 1]], 2)
    assert caught.value.reason == "TOKENIZER_MISMATCH"


def test_an_expected_revision_goes_with_requests_and_answers_of_another_are_refused(
    ask: Both, scripted: tuple[Scripted, str]
) -> None:
    """Even where the gateway does not look at it, as one that is older."""
    rows = ("float16", "arrays", "r1")

    def ask_all() -> list[Any]:
        generation = pb.GenerateRequest(text="x", expected_revision="r1")
        calls: dict[str, Any] = {
            "score": ([7, 1], 2, *rows),
            "score_batch": ([[7, 1], [8, 1]], 2, *rows),
            "generate": (generation,),
        }
        outcomes = []
        for method, arguments in calls.items():
            try:
                outcomes.append(ask(method, *arguments))
            except TeacherError as error:
                outcomes.append(error)
        return outcomes

    score, batch, generated = ask_all()
    assert score.realised_logprobs.tolist() == [-7.0]
    assert realised(batch) == {0: -7.0, 1: -8.0}
    assert [m.text for m in generated] == ["a", "b"]
    assert [c.expected_revision for c in scripted[0].calls] == ["r1"] * 3
    scripted[0].revision = "r2"
    for error in ask_all():
        assert isinstance(error, TeacherError)
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REVISION_MISMATCH")
        assert "'r1'" in error.message
        assert "'r2'" in error.message
    assert len(scripted[0].calls) == 6
    assert ask("score", [7, 1], 2).realised_logprobs.tolist() == [-7.0]


def test_a_generation_that_has_begun_is_never_begun_again(ask: Both, scripted: tuple[Scripted, str]) -> None:
    scripted[0].script = [("a", BUSY)]
    assert [m.text for m in ask("generate", pb.GenerateRequest(text="x"))] == ["a", "b"]
    assert len(scripted[0].calls) == 2
    scripted[0].calls.clear()
    scripted[0].script = [("b", BUSY)]
    with pytest.raises(TeacherError, match="RESOURCE_EXHAUSTED"):
        ask("generate", pb.GenerateRequest(text="x"))
    assert len(scripted[0].calls) == 1


def test_the_key_goes_with_every_call(ask: Both, scripted: tuple[Scripted, str]) -> None:
    ask("score_batch", [[7, 1]], 2, api_key="k")
    assert [m["authorization"] for m in scripted[0].metadata] == ["Bearer k"] * 2


def test_rows_are_asked_for_in_the_encoding_and_precision_that_is_wanted(
    ask: Both, scripted: tuple[Scripted, str]
) -> None:
    rows = ask("score", [3, 1, 2], 2, "float32", "packed")
    request = scripted[0].calls[0]
    assert (request.row_encoding, request.logprob_dtype) == (pb.ROW_ENCODING_PACKED, pb.LOGPROB_DTYPE_FLOAT32)
    assert (request.tokenizer_fingerprint, list(request.token_ids), request.top_k) == ("f", [3, 1, 2], 2)
    assert rows.realised_logprobs.tolist() == [-3.0, -3.0]
    # A view of the answer's bytes: nothing was copied, and nothing can be written.
    assert not rows.ids.flags.owndata
    assert not rows.ids.flags.writeable


def test_threads_share_one_client(scripted: tuple[Scripted, str]) -> None:
    with SyncTeacherClient(scripted[1]) as client, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: client.score([i, 1], 2).realised_logprobs[0], range(40)))
    assert found == [-float(i) for i in range(40)]


async def test_a_caller_with_asyncio_who_stops_reading_or_is_cancelled_ends_the_call(
    scripted: tuple[Scripted, str],
) -> None:
    async with TeacherClient(scripted[1]) as client:
        left = threading.Event()
        scripted[0].script = [[None, left]]
        answers = client.score_batch([[1, 2], [3, 4]], 2)
        await anext(answers)
        await answers.aclose()  # type: ignore[attr-defined]
        assert await asyncio.to_thread(left.wait, 5)
        left = threading.Event()
        scripted[0].script = [[None, left]]

        begun = asyncio.Event()

        async def read() -> None:
            async for _ in client.score_batch([[1, 2], [3, 4]], 2):
                begun.set()

        reading = asyncio.create_task(read())
        await begun.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await asyncio.to_thread(left.wait, 5)
        assert len(scripted[0].calls) == 2


def test_a_caller_who_stops_reading_ends_the_call(scripted: tuple[Scripted, str]) -> None:
    ended = threading.Event()
    scripted[0].script = [[None, ended]]
    with SyncTeacherClient(scripted[1]) as client:
        answers = client.score_batch([[1, 2], [3, 4]], 2)
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        assert ended.wait(5)


def test_progress_begins_the_count_of_tries_anew(ask: Both, scripted: tuple[Scripted, str]) -> None:
    scripted[0].script = [[None, ("end", GONE)], [None, ("end", GONE)], [None, ("end", GONE)]]
    answers = ask("score_batch", [[i, 1] for i in range(4)], 2, attempts=2)
    assert [a.index for a in answers] == [0, 1, 2, 3]
    scripted[0].script = [[None, ("end", GONE)], [("end", GONE)]]
    with pytest.raises(TeacherError, match="UNAVAILABLE"):
        ask("score_batch", [[i, 1] for i in range(4)], 2, attempts=2)


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def methods(client: type) -> dict[str, list[str]]:
        public = {n: m for n, m in vars(client).items() if callable(m) and not n.startswith("_")}
        return {name: list(inspect.signature(method).parameters) for name, method in public.items()}

    assert methods(SyncTeacherClient) == methods(TeacherClient)


def test_text_costs_no_question_and_is_held_to_the_tokenizer_that_was_met(scripted: tuple[Scripted, str]) -> None:
    request = pb.GenerateRequest(text="x", max_tokens=2)
    with SyncTeacherClient(scripted[1]) as client:
        list(client.generate(request))
        # GetTeacher is among the metadata that the server has seen, if it was asked.
        assert len(scripted[0].metadata) == len(scripted[0].calls) == 1
        client.teacher()
        list(client.generate(request))
    assert [call.tokenizer_fingerprint for call in scripted[0].calls] == ["", "f"]
