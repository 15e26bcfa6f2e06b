"""The two shapes in which OpenAI-compatible servers give log-probabilities.

The old one of OpenAI's has columns: ``tokens``, ``token_logprobs`` and ``top_logprobs``, whose names are texts, or
``token_id:N`` from a server that was asked for those and knows how. llama.cpp's has a list of tokens under
``content``, each with its id and its bytes. Meant for a thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np

from latentforge.gateway.backends.base import BackendError, TokenIds
from latentforge.gateway.backends.completion_answers import AnsweredChoice, AnsweredCompletion, CompletionReader
from latentforge.gateway.backends.rows import Entries, WrongRowsError, rows_of
from latentforge.teacher_client.sparse_rows import SparseRows

_ID_PREFIX = "token_id:"
_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class _Token(msgspec.Struct, gc=False):
    token: str
    logprob: float | None = None
    id: int | None = None
    bytes: list[_Byte] | None = None
    top_logprobs: list["_Token"] = []


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class ServedChoice(AnsweredChoice, gc=False):
    text: str = ""
    logprobs: _Logprobs | None = None


ServedCompletion = AnsweredCompletion[ServedChoice]

ANSWERS = CompletionReader(msgspec.json.Decoder(ServedCompletion), "the server")


@dataclass(frozen=True)
class Named:
    """A token as a server writes it; ``logprob`` None for the first of a prompt, which has no context."""

    text: str
    token_id: int | None
    data: bytes | None
    logprob: float | None


@dataclass(frozen=True)
class SaidPosition:
    """What is said of one position: the token that is there, and the most probable ones, most probable first."""

    own: Named
    top: Sequence[Named]


def positions_of(choice: ServedChoice) -> list[SaidPosition]:
    """In order; none where the answer has no log-probabilities."""
    logprobs = choice.logprobs
    if logprobs is None:
        return []
    if logprobs.content is not None:
        return [
            SaidPosition(_named(token), sorted(map(_named, token.top_logprobs), key=_improbability))
            for token in logprobs.content
        ]
    tokens, own, top = logprobs.tokens or [], logprobs.token_logprobs or [], logprobs.top_logprobs or []
    if len(own) != len(tokens) or len(top) not in (0, len(tokens)):
        raise BackendError(f"the server gives {len(tokens)} tokens, {len(own)} log-probabilities and {len(top)} rows")
    rows = top or [None] * len(tokens)
    return [
        SaidPosition(
            _written(token, logprob),
            sorted((_written(text, value) for text, value in (row or {}).items()), key=_improbability),
        )
        for token, logprob, row in zip(tokens, own, rows, strict=True)
    ]


def has_ids(positions: Sequence[SaidPosition]) -> bool:
    """Whether every token comes with its id."""
    return all(named.token_id is not None for position in positions for named in (position.own, *position.top))


def exact_rows(
    positions: Sequence[SaidPosition], realised: TokenIds, first_position: int, top_k: int, vocab_size: int
) -> SparseRows:
    """Rows of positions whose tokens all have ids; ``realised`` is uint32 [n], the tokens that must be there.

    Raises:
        BackendError: they are not the rows of these tokens.
    """
    ids: list[int] = []
    logprobs: list[float] = []
    ranks: list[int] = []
    lengths: list[int] = []
    try:
        for at, (position, token_id) in enumerate(zip(positions, realised.tolist(), strict=True), first_position):
            if position.own.token_id != token_id:
                raise WrongRowsError(f"position {at} is said to have id {position.own.token_id}, and has {token_id}")
            top = [(named, rank if rank <= top_k else 0) for rank, named in enumerate(position.top, start=1)]
            if all(named.token_id != token_id for named, _ in top):
                top.append((position.own, 0))
            for named, rank in top:
                if named.logprob is None or named.token_id is None:
                    raise WrongRowsError(f"the row for position {at} has an entry without id or log-probability")
                ids.append(named.token_id)
                logprobs.append(named.logprob)
                ranks.append(rank)
            lengths.append(len(top))
        entries = Entries(
            np.array(lengths, np.int64), np.array(ids, np.int64), np.array(logprobs), np.array(ranks, np.int64)
        )
        return rows_of(entries, realised, first_position, top_k, vocab_size)
    except ValueError as error:  # of positions that are too few, too
        raise BackendError(f"the server's log-probabilities are wrong: {error}") from None


def _named(token: _Token) -> Named:
    data = None if token.bytes is None else bytes(token.bytes)
    return Named(token.token, token.id, data, token.logprob)


def _written(text: str, logprob: float | None) -> Named:
    number = text.removeprefix(_ID_PREFIX)
    if number != text and number.isdecimal():
        return Named(text, int(number), None, logprob)
    return Named(text, None, None, logprob)


def _improbability(named: Named) -> float:
    return 0.0 if named.logprob is None else -named.logprob
