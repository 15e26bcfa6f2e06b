"""The client of the teacher API for programs without asyncio: token ids in, numpy rows out."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from pydantic import SecretStr

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1 import teacher_pb2_grpc
from latentforge.teacher_client.calls import BatchScoring, Retries, RowEncodingName, Scored, chat_request, score_request
from latentforge.teacher_client.channel import MAX_ATTEMPTS, key_metadata, open_channel
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import LogprobDtype, SparseRows
from latentforge.teacher_client.wire import rows_from_proto


class SyncTeacherClient:
    """Talks to one teacher-gateway, from any number of threads; ``TeacherClient`` does the same with asyncio.

    Use as ``with SyncTeacherClient("localhost:50051") as client``. Every call raises :class:`TeacherError`.

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
        self._channel = open_channel(target, tls_ca=tls_ca, retries=attempts > 1)
        self._stub: Any = teacher_pb2_grpc.TeacherServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def teacher(self) -> pb.GetTeacherResponse:
        """What the teacher is and can do; its tokenizer's fingerprint goes with every later request."""
        answer: pb.GetTeacherResponse = self._ask(self._stub.GetTeacher, pb.GetTeacherRequest())
        self._fingerprint = answer.tokenizer_fingerprint
        return answer

    def score(
        self,
        token_ids: Sequence[int],
        top_k: int,
        dtype: LogprobDtype = "float16",
        row_encoding: RowEncodingName = "arrays",
    ) -> SparseRows:
        """Rows for tokens 1 … L−1 of one sequence of L ids; the arrays are views of the answer's bytes."""
        request = score_request(self._known_fingerprint(), token_ids, top_k, dtype, row_encoding)
        return rows_from_proto(self._ask(self._stub.Score, request).rows)

    def score_batch(
        self,
        sequences: Sequence[Sequence[int]],
        top_k: int,
        dtype: LogprobDtype = "float16",
        row_encoding: RowEncodingName = "arrays",
    ) -> Iterator[Scored]:
        """Scores many sequences; answers come as they are ready, in any order, exactly one for each.

        A stream that breaks off is asked for again, for what is missing only. A sequence that the gateway refuses is
        an answer with an error.
        """
        retries = Retries(self._timeout, self._attempts)
        batch = BatchScoring(self._known_fingerprint(), sequences, top_k, dtype, row_encoding)
        while True:
            call = self._stub.ScoreBatch(batch.request(), timeout=retries.seconds_left, metadata=self._metadata)
            failure: TeacherError | None
            try:
                for answer in call:
                    if (scored := batch.take(answer)) is not None:
                        yield scored
                failure = batch.failure()
            except grpc.RpcError as error:
                failure = TeacherError.from_rpc(error, self.target)
            finally:
                call.cancel()
            if failure is None:
                return
            pause = batch.pause(retries, failure)
            if pause is None:
                if (refused := batch.given_up()) is None:
                    raise failure
                yield from refused
                return
            time.sleep(pause)

    def generate(self, request: pb.GenerateRequest) -> Iterator[pb.GenerateResponse]:
        """Continues a prompt; the request's fingerprint is filled in. ``wire.rows_from_proto`` reads the rows."""
        request.tokenizer_fingerprint = self._known_fingerprint()
        retries = Retries(self._timeout, self._attempts)
        begun = False
        while True:
            call = self._stub.Generate(request, timeout=retries.seconds_left, metadata=self._metadata)
            try:
                for answer in call:
                    begun = True
                    yield answer
                return
            except grpc.RpcError as error:
                failure = TeacherError.from_rpc(error, self.target)
            finally:
                call.cancel()
            self._wait_or_raise(retries, failure, begun=begun)

    def tokenize(self, text: str, *, parse_special_tokens: bool = False) -> list[int]:
        """Ids of a text; what looks like a special token is text unless ``parse_special_tokens``."""
        request = pb.TokenizeRequest(text=text, parse_special_tokens=parse_special_tokens)
        return list(self._ask(self._stub.Tokenize, request).token_ids)

    def tokenize_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of (role, content) pairs, rendered with the teacher's chat template."""
        return list(self._ask(self._stub.Tokenize, chat_request(messages)).token_ids)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        request = pb.DetokenizeRequest(tokenizer_fingerprint=self._known_fingerprint(), token_ids=token_ids)
        text: str = self._ask(self._stub.Detokenize, request).text
        return text

    def cache_stats(self) -> pb.GetCacheStatsResponse:
        answer: pb.GetCacheStatsResponse = self._ask(self._stub.GetCacheStats, pb.GetCacheStatsRequest())
        return answer

    def _known_fingerprint(self) -> str:
        if self._fingerprint is None:
            self.teacher()
        assert self._fingerprint is not None
        return self._fingerprint

    def _ask(self, method: Any, request: Any) -> Any:
        retries = Retries(self._timeout, self._attempts)
        while True:
            try:
                return method(request, timeout=retries.seconds_left, metadata=self._metadata)
            except grpc.RpcError as error:
                failure = TeacherError.from_rpc(error, self.target)
            self._wait_or_raise(retries, failure)

    def _wait_or_raise(self, retries: Retries, failure: TeacherError, *, begun: bool = False) -> None:
        """gRPC itself has asked again where the gateway was gone; what has begun cannot be begun again."""
        pause = retries.pause(failure)
        if begun or pause is None or failure.code is grpc.StatusCode.UNAVAILABLE:
            raise failure
        time.sleep(pause)
