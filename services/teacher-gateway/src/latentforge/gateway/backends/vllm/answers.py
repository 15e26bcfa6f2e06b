"""What vLLM answers to POST /v1/completions, read into arrays. Meant for a thread: answers hold megabytes of JSON."""

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from latentforge.gateway.backends.base import BackendError, ContinuationRequest, FailureKind, Piece, TokenIds
from latentforge.gateway.backends.completion_answers import AnsweredCompletion, CompletionReader, ScoredChoice
from latentforge.gateway.backends.continuations import FINISH_REASONS, text_of
from latentforge.gateway.backends.rows import Entries, Entry, WrongRowsError, entries_of, rows_of
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.tokenizer import TextTokenizer


class _Logprobs(msgspec.Struct, gc=False):
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class VllmChoice(ScoredChoice, gc=False):
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    prompt_token_ids: list[int] | None = None


VllmAnswer = AnsweredCompletion[VllmChoice]

# Skips the token strings, which are most of an answer, and makes no dict for an entry.
ANSWERS = CompletionReader(msgspec.json.Decoder(VllmAnswer), "vLLM")
_ID_PREFIX = "token_id:"


class _Error(msgspec.Struct, gc=False):
    message: str


class _ErrorAnswer(msgspec.Struct, gc=False):
    error: _Error


_ERROR_DECODER = msgspec.json.Decoder(_ErrorAnswer)


def blames_request(body: bytes) -> bool:
    """Whether a 500 tells of a request that the server fails on, as one whose log-probabilities are NaN.

    An engine that is dead or about to be says so by that name, or with no words at all.
    """
    try:
        message = _ERROR_DECODER.decode(body).error.message
    except msgspec.DecodeError:
        return False
    return bool(message) and "engine" not in message.lower()


def scored(
    body: bytes,
    sequences: Sequence[TokenIds],
    top_k: int,
    vocab_size: int,
    *,
    check: Callable[[VllmAnswer], None] = lambda answer: None,
) -> list[SparseRows]:
    """Rows for tokens 1 … L−1 of each sequence; ``check`` refuses an answer as a whole.

    Raises:
        BackendError: an answer is missing, short, null or impossible, and where; or what ``check`` raises.
    """
    answer = ANSWERS.read(body, len(sequences))
    check(answer)
    return [
        prompt_rows(choice.prompt_logprobs, token_ids, top_k, vocab_size)
        for choice, token_ids in zip(answer.choices, sequences, strict=True)
    ]


def prompt_rows(
    prompt_logprobs: Sequence[Mapping[int, Entry] | None] | None, token_ids: TokenIds, top_k: int, vocab_size: int
) -> SparseRows:
    """Rows for tokens 1 … L−1 of uint32 ids [L]; of prompt_logprobs, entry i is for token i and entry 0 is null.

    Raises:
        BackendError: they are not what this is.
    """
    try:
        if prompt_logprobs is None:
            raise WrongRowsError("prompt_logprobs is null")
        if len(prompt_logprobs) != len(token_ids):
            raise WrongRowsError(f"prompt_logprobs has {len(prompt_logprobs)} entries for {len(token_ids)} tokens")
        return rows_of(entries_of(prompt_logprobs[1:], 1), token_ids[1:], 1, top_k, vocab_size)
    except WrongRowsError as error:
        raise wrong_rows(error) from None


def continuation(
    body: bytes,
    index: int,
    request: ContinuationRequest,
    tokenizer: TextTokenizer,
    vocab_size: int,
    *,
    check: Callable[[VllmAnswer], None] = lambda answer: None,
) -> Piece:
    """The whole of one continuation, with rows if they were asked for; ``check`` refuses an answer as a whole.

    Raises:
        BackendError: it did not end as a continuation does, or its rows are not those of its tokens; or what ``check``
            raises.
    """
    answer = ANSWERS.read(body, 1)
    check(answer)
    (choice,) = answer.choices
    reason = FINISH_REASONS.get(choice.finish_reason or "")
    if reason is None:
        # "abort" is what it says while it goes down.
        raise BackendError(f"vLLM ended a continuation with {choice.finish_reason!r}", FailureKind.GONE)
    if not choice.token_ids:
        raise BackendError("vLLM gives a continuation without token_ids; version 0.11 or newer is needed")
    rows = generated_rows(choice, len(request.prompt_ids), request.top_k, vocab_size) if request.top_k else None
    text = text_of(choice.token_ids, reason, choice.stop_reason, request, tokenizer)
    return Piece(index, choice.token_ids, text, rows, reason)


def generated_rows(choice: VllmChoice, prompt_length: int, top_k: int, vocab_size: int) -> SparseRows:
    """Rows for the tokens of a continuation: first_position is the prompt's length.

    The answer has no ranks. A token that is not among the first ``top_k`` comes as entry k+1, and its rank is unknown.

    Raises:
        BackendError: they are not the rows of these tokens.
    """
    assert choice.token_ids is not None
    try:
        if choice.logprobs is None:
            raise WrongRowsError("logprobs is null")
        if choice.logprobs.tokens != [f"{_ID_PREFIX}{token_id}" for token_id in choice.token_ids]:
            raise WrongRowsError("the tokens of logprobs are not token_ids")
        entries = _ranked(choice.logprobs.top_logprobs, choice.token_ids, prompt_length, top_k)
        return rows_of(entries, np.array(choice.token_ids, np.uint32), prompt_length, top_k, vocab_size)
    except ValueError as error:  # of an id that is no number, too
        raise wrong_rows(error) from None


def _ranked(
    rows: Sequence[Mapping[str, float] | None], token_ids: Sequence[int], prompt_length: int, top_k: int
) -> Entries:
    ids: list[int] = []
    logprobs: list[float] = []
    ranks: list[int] = []
    for at, (row, own) in enumerate(zip(rows, token_ids, strict=False)):
        if row is None or not all(name.startswith(_ID_PREFIX) for name in row):
            raise WrongRowsError(f"the row for position {prompt_length + at} has no token ids")
        # Stable: of equally probable tokens the answer's order decides, as it does for the prompt's rows.
        entries = sorted(
            ((int(name.removeprefix(_ID_PREFIX)), logprob) for name, logprob in row.items()), key=lambda e: -e[1]
        )
        if len(entries) > top_k:
            entries.sort(key=lambda e: e[0] == own)
        ids += [token_id for token_id, _ in entries]
        logprobs += [logprob for _, logprob in entries]
        ranks += [rank if rank <= top_k else 0 for rank in range(1, len(entries) + 1)]
    lengths = np.array([0 if row is None else len(row) for row in rows], np.int64)
    return Entries(lengths, np.array(ids, np.int64), np.array(logprobs), np.array(ranks, np.int64))


def wrong_rows(error: ValueError) -> BackendError:
    return BackendError(
        f"vLLM's log-probabilities are wrong: {error}; serve it without speculative decoding and with "
        "--no-enable-prefix-caching"
    )
