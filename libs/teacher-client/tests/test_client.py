"""Both clients against a real gRPC server with scripted answers; the gateway's tests use them against a gateway."""

import asyncio
import inspect
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1 import teacher_pb2_grpc
from latentforge.teacher_client.calls import Scored
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.errors import FieldViolation, TeacherError
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.teacher_client.sync_client import SyncTeacherClient
from latentforge.teacher_client.wire import rows_to_proto


def status(code: grpc.StatusCode, message: str = "why", **details: Any) -> status_pb2.Status:
    """A google.rpc.Status; details: reason, retry_after (seconds), field."""
    packed = []
    if "field" in details:
        violation = error_details_pb2.BadRequest.FieldViolation(field=details["field"], description="is bad")
        packed.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if "reason" in details:
        packed.append(error_details_pb2.ErrorInfo(reason=details["reason"], domain="test"))
    if "retry_after" in details:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(1000 * details["retry_after"]))
        packed.append(error_details_pb2.RetryInfo(retry_delay=delay))
    answer = status_pb2.Status(code=code.value[0], message=message)
    for message_ in packed:
        one = any_pb2.Any()
        one.Pack(message_)
        answer.details.append(one)
    return answer


def rows_of(ids: Any) -> pb.SparseRows:
    """Rows that tell which sequence they are for: every realised log-probability is minus its first id."""
    n = len(ids) - 1
    rows = SparseRows(
        first_position=1,
        ids=np.full((n, 2), ids[0], np.uint32),
        logprobs=np.full((n, 2), -1.0, np.float32),
        counts=np.full(n, 2, np.uint16),
        realised_logprobs=np.full(n, -float(ids[0]), np.float32),
        realised_ranks=np.ones(n, np.uint32),
        tail_mass=np.zeros(n, np.float32),
    )
    return rows_to_proto(rows, "float16")


class Scripted(teacher_pb2_grpc.TeacherServiceServicer):
    """Plays one step of ``script`` per call; a step is a Status to fail with, or None to answer.

    A step of ScoreBatch is a list of (what to do for a sequence, ...): None answers it, a Status refuses it, and a
    Status in place of the list's end, given as ("end", Status), ends the stream there, or after the last sequence.
    """

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.revision = "r1"
        self.calls: list[Any] = []
        self.metadata: list[dict[str, Any]] = []

    def _step(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        return self.script.pop(0) if self.script else None

    def _fail(self, context: Any, failure: status_pb2.Status) -> None:
        context.set_trailing_metadata(
            (("grpc-status-details-bin", failure.SerializeToString()), ("x-request-id", "the-id"))
        )
        context.abort(next(c for c in grpc.StatusCode if c.value[0] == failure.code), failure.message)

    def _provenance(self) -> pb.Provenance:
        return pb.Provenance(model="scripted", revision=self.revision)

    def GetTeacher(self, request: Any, context: Any) -> pb.GetTeacherResponse:  # noqa: N802
        self.metadata.append(dict(context.invocation_metadata()))
        return pb.GetTeacherResponse(model="scripted", tokenizer_fingerprint="f")

    def Tokenize(self, request: Any, context: Any) -> pb.TokenizeResponse:  # noqa: N802
        if (failure := self._step(request, context)) is not None:
            self._fail(context, failure)
        return pb.TokenizeResponse(token_ids=[len(request.text)])

    def Score(self, request: Any, context: Any) -> pb.ScoreResponse:  # noqa: N802
        if (failure := self._step(request, context)) is not None:
            self._fail(context, failure)
        return pb.ScoreResponse(rows=rows_of(request.token_ids), provenance=self._provenance())

    def ScoreBatch(self, request: Any, context: Any) -> Iterator[pb.ScoreBatchResponse]:  # noqa: N802
        step = self._step(request, context)
        for gone in step or ():
            if isinstance(gone, threading.Event):
                # Set when the caller is gone; said before anything is answered, since nothing runs after that.
                context.add_callback(gone.set)
        for index, sequence in enumerate(request.sequences):
            what = None if step is None else step[index]
            if isinstance(what, threading.Event):
                what.wait(10)
                return
            if isinstance(what, tuple):
                self._fail(context, what[1])
            elif what is None:
                score = pb.ScoreResponse(rows=rows_of(sequence.ids), provenance=self._provenance())
                yield pb.ScoreBatchResponse(index=index, score=score)
            else:
                yield pb.ScoreBatchResponse(index=index, error=what)
        if step is not None and len(step) > len(request.sequences):
            self._fail(context, step[-1][1])

    def Detokenize(self, request: Any, context: Any) -> pb.DetokenizeResponse:  # noqa: N802
        return pb.DetokenizeResponse()

    def GetCacheStats(self, request: Any, context: Any) -> pb.GetCacheStatsResponse:  # noqa: N802
        return pb.GetCacheStatsResponse()

    def Generate(self, request: Any, context: Any) -> Iterator[pb.GenerateResponse]:  # noqa: N802
        step = self._step(request, context)
        for text in ("a", "b"):
            if step is not None and step[0] == text:
                self._fail(context, step[1])
            yield pb.GenerateResponse(text=text, provenance=self._provenance() if text == "a" else None)


@pytest.fixture
def scripted() -> Iterator[tuple[Scripted, str]]:
    servicer = Scripted()
    server = grpc.server(ThreadPoolExecutor(4))
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


class Both:
    """One call made with the client for threads or with that for asyncio, in the same words."""

    def __init__(self, kind: str, target: str) -> None:
        self.kind, self.target = kind, target

    def __call__(self, method: str, *arguments: Any, **options: Any) -> Any:
        """The answer, or for a stream the list of its answers."""
        if self.kind == "sync":
            with SyncTeacherClient(self.target, **options) as client:
                answer = getattr(client, method)(*arguments)
                return list(answer) if hasattr(answer, "__next__") else answer
        return asyncio.run(self._ask(method, arguments, options))

    async def _ask(self, method: str, arguments: Any, options: Any) -> Any:
        async with TeacherClient(self.target, **options) as client:
            answer = getattr(client, method)(*arguments)
            return [a async for a in answer] if hasattr(answer, "__anext__") else await answer


@pytest.fixture(params=["sync", "asyncio"])
def ask(request: pytest.FixtureRequest, scripted: tuple[Scripted, str]) -> Both:
    return Both(request.param, scripted[1])


BUSY = status(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=0.05, reason="TEACHER_BUSY")
GONE = status(grpc.StatusCode.UNAVAILABLE, reason="DRAINING")


def realised(answers: list[Scored]) -> dict[int, float]:
    return {a.index: float(a.rows.realised_logprobs[0]) for a in answers if a.rows is not None}


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
