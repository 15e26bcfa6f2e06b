"""The teacher beside the student: what it makes of a student's text, token by token, asked through the gateway."""

import asyncio
import math
from pathlib import Path
from typing import Annotated

import grpc
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from latentforge.inference.rest.errors import RestError
from latentforge.snapshots.snapshot import Snapshot
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.client import TeacherClient, TeacherError
from latentforge.teacher_client.sparse_rows import SparseRows

_SECONDS = 60.0
# Of the page's requests; the trainer's have the teacher to themselves otherwise.
_AT_ONCE = 2
_MOST_TOKENS = 4096
TokenId = Annotated[int, Field(ge=0, lt=2**32)]


class TeacherRequest(BaseModel):
    """A prompt and what a student wrote after it.

    Attributes:
        prompt: the text, or its ids.
        token_ids: what was written.
        top: alternatives for each token.
        model: the checkpoint that wrote it; None is the one that is served. Its tokenizer is used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str | Annotated[list[TokenId], Field(max_length=_MOST_TOKENS)]
    token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=_MOST_TOKENS)]
    top: int = Field(5, ge=1, le=20)
    model: str | None = None


class Alternative(BaseModel):
    """A token that could have stood there, with its log-probability in nats."""

    token_id: int
    token: str
    logprob: float


class JudgedToken(BaseModel):
    """What the teacher thinks of one token.

    Attributes:
        token_id: the token.
        logprob: its log-probability in nats.
        rank: 1 is the teacher's likeliest, 0 where the teacher does not say.
        top: its likeliest tokens, in order.
    """

    token_id: int
    logprob: float
    rank: int
    top: list[Alternative]


class TeacherAnswer(BaseModel):
    """The teacher's view of each token; None for a first token that nothing stands before."""

    teacher: str
    backend: str
    tokens: list[JudgedToken | None]


class TeacherJudge:
    """A teacher behind a gateway; the connection is made when it is first asked.

    Args:
        target: host:port of the gateway.
        api_key: the gateway's.
        tls_ca: PEM file of the root certificate of a gateway with TLS.
    """

    def __init__(self, target: str, api_key: SecretStr | None = None, tls_ca: Path | None = None) -> None:
        self.target = target
        self._api_key, self._tls_ca = api_key, tls_ca
        self._client: TeacherClient | None = None
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def judge(self, snapshot: Snapshot, asked: TeacherRequest) -> TeacherAnswer:
        """Scores what a student wrote.

        Raises:
            RestError: 400 for ids or lengths that do not fit, 409 for a teacher that cannot judge this student's text,
                503 where no gateway answers, 502 where it fails.
        """
        prompt_ids = _prompt_ids(snapshot, asked)
        async with self._free:
            try:
                about = await self._connected().teacher()
                _check_fit(about, snapshot, len(prompt_ids) + len(asked.token_ids))
                top = min(asked.top, about.max_top_k)
                rows = await self._connected().score([*prompt_ids, *asked.token_ids], top, "float32")
            except TeacherError as error:
                raise _as_rest_error(error) from None
        tokens = _judged(rows, asked.token_ids, len(prompt_ids), snapshot)
        return TeacherAnswer(teacher=about.model, backend=about.backend, tokens=tokens)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def _connected(self) -> TeacherClient:
        # In the event loop that it is used in.
        if self._client is None:
            self._client = TeacherClient(
                self.target, timeout=_SECONDS, api_key=self._api_key, tls_ca=self._tls_ca, attempts=1
            )
        return self._client


def _prompt_ids(snapshot: Snapshot, asked: TeacherRequest) -> list[int]:
    most = snapshot.max_context_tokens
    if isinstance(asked.prompt, str):
        if len(asked.prompt.encode(errors="replace")) > snapshot.max_prompt_bytes:
            raise RestError(
                400, "context_length_exceeded", f"prompt is longer than the {most} tokens of a context", param="prompt"
            )
        ids = snapshot.encode(asked.prompt)
    else:
        ids = asked.prompt
    for name, given in (("prompt", ids), ("token_ids", asked.token_ids)):
        if given and max(given) >= snapshot.tokenizer.vocab_size:
            raise RestError(
                400,
                "invalid_value",
                f"{name} has the id {max(given)}; {snapshot.id} has {snapshot.tokenizer.vocab_size} ids",
                param=name,
            )
    return ids


def _check_fit(about: pb.GetTeacherResponse, snapshot: Snapshot, num_tokens: int) -> None:
    who = f"the teacher {about.model} ({about.backend})"
    if about.tokenizer_fingerprint != snapshot.tokenizer.fingerprint:
        raise RestError(
            409,
            "tokenizer_mismatch",
            f"{who} has another tokenizer than {snapshot.id}: fingerprint {about.tokenizer_fingerprint[:12]}…, the "
            f"student's is {snapshot.tokenizer.fingerprint[:12]}…; it cannot judge this text",
        )
    if not about.can_score:
        raise RestError(409, "teacher_cannot_score", f"{who} only generates, and cannot judge given text")
    if num_tokens > about.max_sequence_length:
        raise RestError(
            400,
            "context_length_exceeded",
            f"prompt and text have {num_tokens} tokens; {who} takes {about.max_sequence_length}",
            param="token_ids",
        )


def _judged(rows: SparseRows, token_ids: list[int], num_prompt: int, snapshot: Snapshot) -> list[JudgedToken | None]:
    judged: list[JudgedToken | None] = []
    for position, token_id in enumerate(token_ids, num_prompt):
        row = position - rows.first_position
        if row < 0:
            judged.append(None)
            continue
        count = int(rows.counts[row])
        ids = [int(i) for i in rows.ids[row, :count]]
        texts = snapshot.tokenizer.decode_each(ids)
        top = [
            Alternative(token_id=i, token=text, logprob=float(logprob))
            for i, text, logprob in zip(ids, texts, rows.logprobs[row, :count], strict=True)
            if math.isfinite(logprob)
        ]
        judged.append(
            JudgedToken(
                token_id=token_id,
                # JSON has no infinity; a token that the teacher rules out is the least likely there is.
                logprob=max(float(rows.realised_logprobs[row]), -1e9),
                rank=int(rows.realised_ranks[row]),
                top=top,
            )
        )
    return judged


def _as_rest_error(error: TeacherError) -> RestError:
    if error.code is grpc.StatusCode.UNAVAILABLE:
        return RestError(503, "teacher_unavailable", error.message)
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return RestError(504, "teacher_too_slow", f"the teacher took longer than {_SECONDS:.0f} s")
    if error.code is grpc.StatusCode.UNAUTHENTICATED:
        return RestError(502, "teacher_refused", f"{error.message}; set GATEWAY_API_KEY of this server")
    return RestError(502, "teacher_failed", f"the teacher-gateway answered {error}")
