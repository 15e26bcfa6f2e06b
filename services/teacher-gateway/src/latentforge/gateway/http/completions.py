"""POST /v1/completions: vLLM's, prompt_logprobs included, answered by the teacher and its cache."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from latentforge.gateway.backends.base import ContinuationRequest, TeacherDescription, TokenIds
from latentforge.gateway.http.call import HttpCall
from latentforge.gateway.http.completion_choices import CompletionText, ScoredTokens, logprobs_of, prompt_logprobs_of
from latentforge.gateway.http.completion_request import DEFAULT_MAX_TOKENS, TextRequest
from latentforge.gateway.http.decoding import Workers
from latentforge.gateway.http.errors import HttpError, invalid
from latentforge.gateway.http.scores import (
    check_answer_size,
    check_can_score,
    check_vocabulary,
    checked_ids,
    checked_top_k,
    score_all,
    unpacked,
)
from latentforge.gateway.http.writing import WrittenText, continuations, write_all
from latentforge.gateway.rpc.host import TeacherHost
from latentforge.gateway.rpc.request_size import max_text_bytes
from latentforge.gateway.rpc.token_names import TokenNames
from latentforge.gateway.rpc.validation import MAX_SEQUENCES
from latentforge.gateway.scoring.teacher import SequenceAnswer, Teacher
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.errors import TextError
from latentforge.text.tokenizer import TextTokenizer

# About what an entry of prompt_logprobs and a token of an answer take, and an id.
_ENTRY_BYTES, _ID_BYTES = 64, 6
# And one of a text and its id.
_TOKEN_BYTES = 16
_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True)
class CompletionsAnswer:
    """The body, and how many sequences were in the cache."""

    body: bytes
    num_cached: int
    num_scored: int


class Completions:
    """Answers requests for one gateway.

    Args:
        host: of the teacher; tokenises.
        workers: make the JSON.
        max_tokens_in_flight: that the continuations of one prompt may have together.
    """

    def __init__(self, host: TeacherHost, workers: Workers, max_tokens_in_flight: int) -> None:
        self._host = host
        self._workers = workers
        self._max_tokens_in_flight = max_tokens_in_flight

    async def answer(self, request: TextRequest, teacher: Teacher, call: HttpCall) -> CompletionsAnswer:
        """
        Raises:
            HttpError: the request is wrong, or the teacher failed.
        """
        about = teacher.description
        if request.model not in (None, about.model):
            raise HttpError(
                404, "model_not_found", f"model: this gateway serves {about.model} only; see /v1/models", param="model"
            )
        if request.scores:
            check_can_score(about)
        prompts = await self._prompts(request, teacher)
        names = self._host.names
        await self._workers.run_large(sum(map(len, prompts)), _check_size, request, prompts, names)
        asked = await self._to_write(request, prompts, teacher)
        scored = await self._score(request, prompts, teacher, call)
        written = await write_all(asked, teacher, self._max_tokens_in_flight, call) if asked else [[] for _ in prompts]
        num_written = sum(len(one.ids) for of_prompt in written for one in of_prompt)
        if request.is_greedy_look:
            num_written = len(prompts)
        parts = []
        for at, (ids, of_prompt) in enumerate(zip(prompts, written, strict=True)):
            text = request.prompts[at]
            maker = _Choices(request, ids, text if isinstance(text, str) else None, names, teacher.tokenizer)
            # One at a time, so that others get the interpreter in between.
            parts += await self._workers.run(maker.encoded, at, scored.get(at), of_prompt)
        body = _body(about, parts, sum(map(len, prompts)), num_written)
        return CompletionsAnswer(body, sum(one.cache_hit for one in scored.values()), len(scored))

    async def _prompts(self, request: TextRequest, teacher: Teacher) -> list[list[int]]:
        """The ids of each prompt."""
        if len(request.prompts) > MAX_SEQUENCES:
            raise invalid("prompt", f"has {len(request.prompts)} prompts; at most {MAX_SEQUENCES} are allowed")
        texts = [prompt for prompt in request.prompts if isinstance(prompt, str)]
        if not texts:
            every_ids = [prompt for prompt in request.prompts if not isinstance(prompt, str)]
            about = teacher.description
            await self._workers.run_large(sum(map(len, every_ids)), _check_ids, request, every_ids, about)
            return every_ids
        limit = max_text_bytes(teacher.description, teacher.tokenizer)
        for at, text in enumerate(texts):
            if (size := len(text.encode("utf-8", "replace"))) > limit:
                raise invalid(request.name_of(at), f"has {size} bytes; at most {limit} are tokenised")
        try:
            every = [await self._host.tokenise(teacher.tokenizer.encode, text) for text in texts]
        except TextError as error:
            raise invalid("prompt", str(error)) from None
        return [teacher.tokenizer.begin(ids) for ids in every] if request.add_special_tokens else every

    async def _score(
        self, request: TextRequest, prompts: Sequence[list[int]], teacher: Teacher, call: HttpCall
    ) -> dict[int, SequenceAnswer]:
        if not request.scores:
            return {}
        about = teacher.description
        asked = [entries for entries in (request.prompt_logprobs, request.logprobs) if entries is not None]
        name = "logprobs" if request.prompt_logprobs is None else "prompt_logprobs"
        top_k = checked_top_k(max(asked), name, about)
        sequences = await self._workers.run_large(sum(map(len, prompts)), _to_score, request, prompts, about)
        return await score_all(teacher, sequences, top_k, call)

    async def _to_write(
        self, request: TextRequest, prompts: Sequence[list[int]], teacher: Teacher
    ) -> list[ContinuationRequest]:
        """What is to be written, before anything is computed; nothing where no tokens are."""
        if not request.writes or request.is_greedy_look:
            return []
        # Each is checked, however short it is.
        size = sum(map(len, prompts)) + _ENTRY_BYTES * len(prompts)
        return await self._workers.run_large(size, continuations, request, prompts, teacher, self._max_tokens_in_flight)


def _check_ids(request: TextRequest, prompts: Sequence[list[int]], about: TeacherDescription) -> None:
    """Whatever is asked about them, even where the teacher never sees them."""
    for at, ids in enumerate(prompts):
        check_vocabulary(ids, request.name_of(at), about)


def _to_score(request: TextRequest, prompts: Sequence[list[int]], about: TeacherDescription) -> dict[int, TokenIds]:
    """By their places, those prompts that have rows to give."""
    sequences: dict[int, TokenIds] = {}
    for at, ids in enumerate(prompts):
        param = request.name_of(at)
        if request.is_greedy_look:
            if not 1 <= len(ids) < about.max_sequence_length:
                allowed = f"1 to {about.max_sequence_length - 1} where a token is to follow"
                raise invalid(param, f"has {len(ids)} tokens; allowed are {allowed}")
            # The row behind the prompt is that for one token more, whichever that is.
            sequences[at] = checked_ids([*ids, 0], param, about)
        elif len(ids) != 1:
            sequences[at] = checked_ids(ids, param, about)
    return sequences


def _check_size(request: TextRequest, prompts: Sequence[list[int]], names: TokenNames) -> None:
    tokens = sum(map(len, prompts)) * request.n
    if request.prompt_logprobs is not None:
        check_answer_size(tokens * (request.prompt_logprobs + 1) * _ENTRY_BYTES, "prompt_logprobs")
    if request.echo and request.logprobs is not None:
        check_answer_size(tokens * (request.logprobs + 1) * _ENTRY_BYTES, "logprobs")
    if request.writes and not request.is_greedy_look:
        each = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        entries = 0 if request.logprobs is None else request.logprobs + 1
        size = len(prompts) * request.n * each * (_TOKEN_BYTES + entries * _ENTRY_BYTES)
        what = f"{each} for each of {len(prompts)} prompts, n = {request.n} times"
        check_answer_size(size, "max_tokens", f"is {what}, which ")
    if request.echo:
        check_answer_size(sum(map(names.num_bytes, prompts)) * request.n, "echo")
    if request.return_ids:
        check_answer_size(tokens * _ID_BYTES, "return_token_ids")


class _Choices:
    """The choices of one prompt, in JSON."""

    def __init__(
        self, request: TextRequest, ids: list[int], text: str | None, names: TokenNames, tokenizer: TextTokenizer
    ) -> None:
        self._request = request
        self._ids = ids
        self._text = text
        self._names = names
        self._tokenizer = tokenizer

    def encoded(self, at: int, scored: SequenceAnswer | None, written: Sequence[WrittenText]) -> list[bytes]:
        """
        Args:
            at: the prompt's place in the request.
            scored: its rows, with one more behind it where the likeliest token is asked for.
        """
        request = self._request
        rows = None
        if scored is not None:
            entries = [k for k in (request.prompt_logprobs, request.logprobs) if k is not None]
            rows = unpacked(scored, max(entries) if not request.is_greedy_look else scored.rows.top_k)
        if request.is_greedy_look:
            assert rows is not None
            written = [self._likeliest(rows)]
            rows = rows.part(0, len(self._ids) - 1)
        return [
            _ENCODER.encode(self._choice(at * request.n + one.index, rows, one))
            for one in written or [WrittenText(index=i) for i in range(request.n)]
        ]

    def _choice(self, index: int, rows: SparseRows | None, written: WrittenText) -> CompletionText:
        request = self._request
        echoed = ""
        if request.echo:
            echoed = self._names.text(self._ids) if self._text is None else self._text
        logprobs = None
        if request.logprobs is not None:
            parts = []
            if request.echo:
                narrow = None if rows is None else rows.narrowed(min(request.logprobs, rows.top_k))
                parts.append(ScoredTokens(self._ids, narrow, num_unscored=1))
            tail = None if written.rows is None else written.rows.narrowed(min(request.logprobs, written.rows.top_k))
            parts.append(ScoredTokens(written.ids, tail))
            logprobs = logprobs_of(parts, self._names, as_ids=request.tokens_as_ids)
        prompt_logprobs = None
        if request.prompt_logprobs is not None:
            narrow = SparseRows.none(0) if rows is None else rows.narrowed(min(request.prompt_logprobs, rows.top_k))
            prompt_logprobs = prompt_logprobs_of(self._ids, narrow, self._names)
        return CompletionText(
            index,
            echoed + written.text,
            written.finish_reason,
            logprobs,
            prompt_logprobs,
            token_ids=written.ids if request.return_ids else None,
            prompt_token_ids=self._ids if request.return_ids else None,
        )

    def _likeliest(self, rows: SparseRows) -> WrittenText:
        """The token that the row behind the prompt puts first, as a teacher that writes it would give it."""
        last = rows.part(len(rows) - 1, len(rows))
        own = int(last.ids[0, 0])
        row = replace(last, realised_logprobs=last.logprobs[:, 0], realised_ranks=np.ones(1, np.uint32))
        if own in self._tokenizer.text_end_ids:
            return WrittenText(0, [own], "", row, "stop")
        text = self._tokenizer.decode([own], skip_special=True, goes_on=True)
        return WrittenText(0, [own], text, row, "length")


def _body(about: TeacherDescription, choices: Sequence[bytes], num_prompt: int, num_written: int) -> bytes:
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": about.model,
        # Changes when the teacher does, as vLLM's does when its server was restarted with another.
        "system_fingerprint": about.revision,
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_written,
            "total_tokens": num_prompt + num_written,
        },
    }
    return _ENCODER.encode(head)[:-1] + b',"choices":[' + b",".join(choices) + b"]}"
