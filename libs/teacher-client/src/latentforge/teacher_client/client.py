"""The asyncio client of the teacher API: token ids in, numpy rows out."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from pydantic import SecretStr

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1 import teacher_pb2_grpc
from latentforge.teacher_client.calls import BatchScoring, Retries, RowEncodingName, Scored, chat_request, score_request
from latentforge.teacher_client.channel import MAX_ATTEMPTS, key_metadata, open_aio_channel
from latentforge.teacher_client.errors import FieldViolation, TeacherError
from latentforge.teacher_client.sparse_rows import LogprobDtype, SparseRows
from latentforge.teacher_client.wire import rows_from_proto

__all__ = ["FieldViolation", "RowEncodingName", "Scored", "TeacherClient", "TeacherError"]


class TeacherClient:
    """Talks to one teacher-gateway; ``SyncTeacherClient`` does the same without asyncio.

    Use as ``async with TeacherClient("localhost:50051") as client``. Every call raises :class:`TeacherError`.

    Args:
        target: host:port of the gateway.
        timeout: seconds for one call, its retries and the whole of a stream included.
        api_key: the gateway's GATEWAY_API_KEY, if it has one.
        tls_ca: PEM file of the root certificate that signed the gateway's; None talks without TLS.
        attempts: tries without any progress; 1 never asks again.

    Raises:
        SettingsError: the file of ``tls_ca`` is no good.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 600.0,
        api_key: SecretStr | str | None = None,
        tls_ca: Path | str | None = None,
        attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self.target = target
        self._timeout = timeout
        self._attempts = attempts
        self._metadata = key_metadata(api_key)
        self._fingerprint: str | None = None
        self._channel = open_aio_channel(target, tls_ca=tls_ca, retries=attempts > 1)
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
        answer: pb.GetTeacherResponse = await self._ask(self._stub.GetTeacher, pb.GetTeacherRequest())
        self._fingerprint = answer.tokenizer_fingerprint
        return answer

    async def score(
        self,
        token_ids: Sequence[int],
        top_k: int,
        dtype: LogprobDtype = "float16",
        row_encoding: RowEncodingName = "arrays",
    ) -> SparseRows:
        """Rows for tokens 1 … L−1 of one sequence of L ids; the arrays are views of the answer's bytes."""
        request = score_request(await self._known_fingerprint(), token_ids, top_k, dtype, row_encoding)
        return rows_from_proto((await self._ask(self._stub.Score, request)).rows)

    async def score_batch(
        self,
        sequences: Sequence[Sequence[int]],
        top_k: int,
        dtype: LogprobDtype = "float16",
        row_encoding: RowEncodingName = "arrays",
    ) -> AsyncIterator[Scored]:
        """Scores many sequences; answers come as they are ready, in any order, exactly one for each.

        A stream that breaks off is asked for again, for what is missing only. A sequence that the gateway refuses is
        an answer with an error.
        """
        retries = Retries(self._timeout, self._attempts)
        batch = BatchScoring(await self._known_fingerprint(), sequences, top_k, dtype, row_encoding)
        while True:
            call = self._stub.ScoreBatch(batch.request(), timeout=retries.seconds_left, metadata=self._metadata)
            failure: TeacherError | None
            try:
                async for answer in call:
                    if (scored := batch.take(answer)) is not None:
                        yield scored
                failure = batch.failure()
            except grpc.aio.AioRpcError as error:
                failure = TeacherError.from_rpc(error, self.target)
            finally:
                call.cancel()
            if failure is None:
                return
            pause = batch.pause(retries, failure)
            if pause is None:
                if (refused := batch.given_up()) is None:
                    raise failure
                for scored in refused:
                    yield scored
                return
            await asyncio.sleep(pause)

    async def generate(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        """Continues a prompt; the request's fingerprint is filled in. ``wire.rows_from_proto`` reads the rows."""
        request.tokenizer_fingerprint = await self._known_fingerprint()
        retries = Retries(self._timeout, self._attempts)
        begun = False
        while True:
            call = self._stub.Generate(request, timeout=retries.seconds_left, metadata=self._metadata)
            try:
                async for answer in call:
                    begun = True
                    yield answer
                return
            except grpc.aio.AioRpcError as error:
                failure = TeacherError.from_rpc(error, self.target)
            finally:
                call.cancel()
            await self._wait_or_raise(retries, failure, begun=begun)

    async def tokenize(self, text: str, *, parse_special_tokens: bool = False) -> list[int]:
        """Ids of a text; what looks like a special token is text unless ``parse_special_tokens``."""
        request = pb.TokenizeRequest(text=text, parse_special_tokens=parse_special_tokens)
        return list((await self._ask(self._stub.Tokenize, request)).token_ids)

    async def tokenize_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of (role, content) pairs, rendered with the teacher's chat template."""
        return list((await self._ask(self._stub.Tokenize, chat_request(messages))).token_ids)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        request = pb.DetokenizeRequest(tokenizer_fingerprint=await self._known_fingerprint(), token_ids=token_ids)
        text: str = (await self._ask(self._stub.Detokenize, request)).text
        return text

    async def cache_stats(self) -> pb.GetCacheStatsResponse:
        answer: pb.GetCacheStatsResponse = await self._ask(self._stub.GetCacheStats, pb.GetCacheStatsRequest())
        return answer

    async def _known_fingerprint(self) -> str:
        if self._fingerprint is None:
            await self.teacher()
        assert self._fingerprint is not None
        return self._fingerprint

    async def _ask(self, method: Any, request: Any) -> Any:
        retries = Retries(self._timeout, self._attempts)
        while True:
            try:
                return await method(request, timeout=retries.seconds_left, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                failure = TeacherError.from_rpc(error, self.target)
            await self._wait_or_raise(retries, failure)

    async def _wait_or_raise(self, retries: Retries, failure: TeacherError, *, begun: bool = False) -> None:
        """gRPC itself has asked again where the gateway was gone; what has begun cannot be begun again."""
        pause = retries.pause(failure)
        if begun or pause is None or failure.code is grpc.StatusCode.UNAVAILABLE:
            raise failure
        await asyncio.sleep(pause)
