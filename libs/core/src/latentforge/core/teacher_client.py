"""The client of the teacher API: asyncio, token ids in, numpy rows out."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc

from latentforge.core.sparse_rows import LogprobDtype, SparseRows
from latentforge.core.wire import MAX_MESSAGE_BYTES, dtype_to_proto, rows_from_proto
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1 import teacher_pb2_grpc

# gRPC retries by itself what is safe to ask again: the gateway was not there, or not yet.
_SERVICE_CONFIG = """{"methodConfig": [{"name": [{"service": "latentforge.teacher.v1.TeacherService"}],
 "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.2s", "maxBackoff": "5s", "backoffMultiplier": 2,
 "retryableStatusCodes": ["UNAVAILABLE"]}}]}"""


class TeacherError(RuntimeError):
    """What the gateway refused or failed to do; ``code`` is the gRPC status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Scored:
    """One scored sequence of a batch: its index in the request, and its rows or why it has none."""

    index: int
    rows: SparseRows | None
    error: TeacherError | None
    provenance: pb.Provenance


def _status_code(number: int) -> grpc.StatusCode:
    return next((c for c in grpc.StatusCode if c.value[0] == number), grpc.StatusCode.UNKNOWN)


class TeacherClient:
    """Talks to one teacher-gateway.

    Use as ``async with TeacherClient("localhost:50051") as client``. Every call raises :class:`TeacherError`.

    Args:
        target: host:port of the gateway.
        timeout: seconds for one call, streams included.
    """

    def __init__(self, target: str, *, timeout: float = 600.0) -> None:
        self.target = target
        self._timeout = timeout
        self._fingerprint: str | None = None
        self._channel = grpc.aio.insecure_channel(
            target,
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.service_config", _SERVICE_CONFIG),
            ],
        )
        self._stub = teacher_pb2_grpc.TeacherServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close(grace=None)

    async def teacher(self) -> pb.GetTeacherResponse:
        """What the teacher is and can do; its tokenizer's fingerprint goes with every later request."""
        try:
            answer = await self._stub.GetTeacher(pb.GetTeacherRequest(), timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        self._fingerprint = answer.tokenizer_fingerprint
        return answer

    async def score(self, token_ids: Sequence[int], top_k: int, dtype: LogprobDtype = "float16") -> SparseRows:
        """Rows for tokens 1 … L−1 of one sequence of L ids."""
        request = pb.ScoreRequest(
            tokenizer_fingerprint=await self._known_fingerprint(),
            token_ids=token_ids,
            top_k=top_k,
            logprob_dtype=dtype_to_proto(dtype),
        )
        try:
            answer = await self._stub.Score(request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        return rows_from_proto(answer.rows)

    async def score_batch(
        self, sequences: Sequence[Sequence[int]], top_k: int, dtype: LogprobDtype = "float16"
    ) -> AsyncIterator[Scored]:
        """Scores many sequences; answers come as they are ready, in any order."""
        request = pb.ScoreBatchRequest(
            tokenizer_fingerprint=await self._known_fingerprint(),
            sequences=[pb.TokenIds(ids=ids) for ids in sequences],
            top_k=top_k,
            logprob_dtype=dtype_to_proto(dtype),
        )
        try:
            async for answer in self._stub.ScoreBatch(request, timeout=self._timeout):
                if answer.HasField("error"):
                    failure = TeacherError(_status_code(answer.error.code), answer.error.message)
                    yield Scored(answer.index, None, failure, pb.Provenance())
                else:
                    yield Scored(answer.index, rows_from_proto(answer.score.rows), None, answer.score.provenance)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None

    async def generate(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        """Continues a prompt; the request's fingerprint is filled in."""
        request.tokenizer_fingerprint = await self._known_fingerprint()
        try:
            async for answer in self._stub.Generate(request, timeout=self._timeout):
                yield answer
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None

    async def tokenize(self, text: str) -> list[int]:
        try:
            answer = await self._stub.Tokenize(pb.TokenizeRequest(text=text), timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        return list(answer.token_ids)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        request = pb.DetokenizeRequest(tokenizer_fingerprint=await self._known_fingerprint(), token_ids=token_ids)
        try:
            answer = await self._stub.Detokenize(request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        return answer.text

    async def cache_stats(self) -> pb.GetCacheStatsResponse:
        try:
            return await self._stub.GetCacheStats(pb.GetCacheStatsRequest(), timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None

    async def _known_fingerprint(self) -> str:
        if self._fingerprint is None:
            await self.teacher()
        assert self._fingerprint is not None
        return self._fingerprint

    def _failure(self, error: grpc.aio.AioRpcError) -> TeacherError:
        message = error.details() or "no details"
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            message = f"no teacher-gateway answers at {self.target} ({message}); start it or set GATEWAY_TARGET"
        return TeacherError(error.code(), message)
