"""A real gRPC server with scripted answers, and one call made with either client of the teacher API."""

import asyncio
import threading
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
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.scored import Scored
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
