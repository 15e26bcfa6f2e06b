"""The client of the teacher API for programs without asyncio: token ids in, numpy rows out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc
from numpy.typing import ArrayLike
from tenacity import Retrying

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client import calls, streams
from latentforge.teacher_client.base_client import BaseClient, Stream, Unary
from latentforge.teacher_client.calls import Prompt
from latentforge.teacher_client.channel import open_channel
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.retries import Tries
from latentforge.teacher_client.scored import RowEncodingName, Scored
from latentforge.teacher_client.sparse_rows import LogprobDtype, SparseRows

T = TypeVar("T")


class SyncTeacherClient(BaseClient):
    """Talks to one teacher-gateway, from any number of threads; ``TeacherClient`` does the same with asyncio.

    Use as ``with SyncTeacherClient("localhost:50051") as client``; arguments are those of :class:`BaseClient`. Every
    call raises :class:`TeacherError`.
    """

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
        return self._meet(self._ask(calls.get_teacher()))

    def score(
        self,
        token_ids: Sequence[int],
        top_k: int,
        dtype: LogprobDtype = "float16",
        row_encoding: RowEncodingName = "arrays",
        expected_revision: str = "",
    ) -> SparseRows:
        """Rows for tokens 1 … L−1 of one sequence of L ids; the arrays are views of the answer's bytes.

        Args:
            expected_revision: the teacher's, as GetTeacher gave it; rows of another are an error. Empty takes any.
        """
        scored = self.score_sequence(
            token_ids, top_k, dtype=dtype, row_encoding=row_encoding, expected_revision=expected_revision
        )
        assert scored.rows is not None
        return scored.rows

    def score_sequence(
        self,
        prompt: Prompt,
        top_k: int,
        *,
        candidates: ArrayLike | None = None,
        token_strings: bool = False,
        parse_special_tokens: bool = False,
        dtype: LogprobDtype = "float16",
        row_encoding: RowEncodingName = "arrays",
        expected_revision: str = "",
    ) -> Scored:
        """As :meth:`score`, of ids, a text or a chat, with the answer's provenance and what else was asked for.

        Args:
            prompt: token ids, a text, or (role, content) pairs; the answer has the ids of the last two.
            token_strings: the answer says how each of its ids is written.
            parse_special_tokens: what looks like a special token in a text is that token.
            candidates: ids [m], asked about at each position, or [L − 1, m]; those of row r are asked about for token
                r + 1.
        """
        known = self._known_fingerprint(needed=calls.has_ids(prompt))
        return self._ask(
            calls.score_sequence(
                known,
                prompt,
                top_k,
                candidates,
                dtype,
                row_encoding,
                expected_revision,
                token_strings=token_strings,
                parse_special_tokens=parse_special_tokens,
            )
        )

    def score_batch(
        self,
        sequences: Sequence[Sequence[int]],
        top_k: int,
        dtype: LogprobDtype = "float16",
        row_encoding: RowEncodingName = "arrays",
        expected_revision: str = "",
        candidates: Sequence[ArrayLike] | None = None,
    ) -> Iterator[Scored]:
        """Scores many sequences; answers come as they are ready, in any order, exactly one for each.

        More than one call holds is sent as several, one after another. A stream that breaks off is asked for again, for
        what is missing only. A sequence that the gateway refuses is an answer with an error; another revision than
        ``expected_revision``, unless that is empty, is the call's. ``candidates`` has one entry for each sequence, as
        in :meth:`score_sequence`; an empty one asks about nothing.
        """
        return self._stream(
            lambda known: (
                streams.BatchScoring(known, sequences, top_k, dtype, row_encoding, expected_revision, candidates, part)
                for part in streams.batch_parts(sequences, candidates)
            )
        )

    def generate(self, request: pb.GenerateRequest) -> Iterator[pb.GenerateResponse]:
        """Continues a prompt; a fingerprint that ids need is filled in. ``wire.rows_from_proto`` reads the rows.

        An answer of another revision than the request's ``expected_revision``, unless that is empty, is an error.
        """
        has_ids = request.WhichOneof("prompt") == "token_ids"
        return self._stream(lambda known: [streams.Generating(known, request)], has_ids=has_ids)

    def tokenize(self, text: str, *, parse_special_tokens: bool = False) -> list[int]:
        """Ids of a text; what looks like a special token is text unless ``parse_special_tokens``."""
        return self._ask(calls.tokenize(text, parse_special_tokens=parse_special_tokens))

    def tokenize_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of (role, content) pairs, rendered with the teacher's chat template."""
        return self._ask(calls.tokenize_chat(messages))

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return self._ask(calls.detokenize(self._known_fingerprint(), token_ids))

    def cache_stats(self) -> pb.GetCacheStatsResponse:
        return self._ask(calls.cache_stats())

    def _open(self, target: str, tls_ca: Path | str | None) -> grpc.Channel:
        return open_channel(target, tls_ca=tls_ca)

    def _known_fingerprint(self, *, needed: bool = True) -> str:
        """Of the ids that are sent; without any, what is known without asking, so that one client has one tokenizer."""
        if not needed:
            return self._fingerprint or ""
        if self._fingerprint is None:
            return self.teacher().tokenizer_fingerprint
        return self._fingerprint

    def _ask(self, call: Unary[T]) -> T:
        tries = self._tries()
        answer: T = Retrying(**tries.options())(self._once, call, tries)
        return answer

    def _once(self, call: Unary[T], tries: Tries) -> T:
        try:
            return call.value(self._send(call, tries))
        except grpc.RpcError as error:
            raise self._failure(error) from None

    def _stream(self, make: Callable[[str], Iterable[Stream[T]]], *, has_ids: bool = True) -> Iterator[T]:
        known, tries = self._known_fingerprint(needed=has_ids), self._tries()
        for stream in make(known):
            yield from self._answers(stream, tries)

    def _answers(self, stream: Stream[T], tries: Tries) -> Iterator[T]:
        try:
            for attempt in Retrying(**tries.options(stream.may_retry)):
                with attempt:
                    answers, broken = self._send(stream, tries), None
                    try:
                        for answer in answers:
                            if (taken := stream.take(answer)) is not None:
                                yield taken
                    except grpc.RpcError as error:
                        broken = error
                    finally:
                        answers.cancel()
                    self._end_try(stream, attempt.retry_state, broken)
        except TeacherError:
            if (instead := stream.given_up()) is None:
                raise
            yield from instead
