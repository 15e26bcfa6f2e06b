"""What POST /v1/completions answers: choices, as vLLM writes them. Meant for a thread: answers have megabytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import msgspec
import numpy as np

from latentforge.gateway.rpc.token_names import TokenNames
from latentforge.teacher_client.sparse_rows import SparseRows

# What stands for -inf in JSON, as in vLLM's.
_NOTHING = -9999.0


class PromptEntry(msgspec.Struct, gc=False):
    """One token at one position of a prompt: nats, and rank 1 for the likeliest."""

    logprob: float
    rank: int
    decoded_token: str


class EchoedLogprobs(msgspec.Struct, gc=False):
    """Of each token of a text: how it reads, its nats, the likeliest tokens, and where in the text it begins."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionText(msgspec.Struct, omit_defaults=False, gc=False):
    """One text; ``prompt_logprobs`` has an entry for each token of the prompt, the first of which is null."""

    index: int
    text: str
    finish_reason: str
    logprobs: EchoedLogprobs | None
    prompt_logprobs: list[dict[int, PromptEntry] | None] | None
    stop_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


@dataclass
class ScoredTokens:
    """Tokens with the rows that were asked for, if any: of ``ids``, those from ``num_unscored`` on have one."""

    ids: list[int]
    rows: SparseRows | None = None
    num_unscored: int = 0


def prompt_logprobs_of(ids: Sequence[int], rows: SparseRows, names: TokenNames) -> list[dict[int, PromptEntry] | None]:
    """PromptEntry i is for token i: first the token that is there, then the others by rank, k or k + 1 of them.

    Args:
        ids: of L tokens.
        rows: for tokens 1 … L − 1, with k entries; 0 of them leaves the token that is there.
        names: how tokens read.
    """
    table = names.table
    k = rows.top_k
    own_logprobs, own_ranks, row_logprobs = _numbers(rows)
    ranks = range(1, k + 1)
    answer: list[dict[int, PromptEntry] | None] = [None]
    for own, logprob, rank, others, logprobs in zip(
        ids[1:], own_logprobs, own_ranks, _entries(rows), row_logprobs, strict=True
    ):
        entries = {own: PromptEntry(logprob, rank, table[own])}
        # Puts the token that is there at its place in the row, if it has one, without moving it behind the others.
        entries.update(zip(others, map(PromptEntry, logprobs, ranks, map(table.__getitem__, others)), strict=False))
        answer.append(entries)
    return answer


def logprobs_of(parts: Sequence[ScoredTokens], names: TokenNames, *, as_ids: bool, offset: int = 0) -> EchoedLogprobs:
    """Of the tokens of all parts, one behind the other; those without a row have null.

    Args:
        as_ids: tokens are written as ``token_id:17``.
        offset: at which character of the choice's text the first begins.
    """
    answer = EchoedLogprobs([], [], [], [])
    every = [i for part in parts for i in part.ids]
    answer.text_offset = [offset + at for at in names.offsets(every)]
    for part in parts:
        written = _written(part.ids, names, as_ids=as_ids)
        answer.tokens += written
        if part.rows is None:
            answer.token_logprobs += repeat(None, len(part.ids))
            answer.top_logprobs += repeat(None, len(part.ids))
            continue
        answer.token_logprobs += repeat(None, part.num_unscored)
        answer.top_logprobs += repeat(None, part.num_unscored)
        own_logprobs, _, row_logprobs = _numbers(part.rows)
        for own, logprob, others, logprobs in zip(
            written[part.num_unscored :], own_logprobs, _entries(part.rows), row_logprobs, strict=True
        ):
            top = {own: logprob}
            top.update(zip(_written(others, names, as_ids=as_ids), logprobs, strict=False))
            # The row's own figure, so that whoever looks for the likeliest token finds the very same one.
            answer.token_logprobs.append(top[own])
            answer.top_logprobs.append(top)
    return answer


def _written(ids: Sequence[int], names: TokenNames, *, as_ids: bool) -> list[str]:
    return [f"token_id:{i}" for i in ids] if as_ids else [names.table[i] for i in ids]


def _numbers(rows: SparseRows) -> tuple[list[float], list[int], list[list[float]]]:
    """The realised tokens' log-probabilities and ranks, and the entries' log-probabilities.

    A rank that the teacher does not tell is given as k + 1, the best that it can be.
    """
    own = np.maximum(rows.realised_logprobs, _NOTHING).tolist()
    ranks = np.where(rows.realised_ranks == 0, rows.top_k + 1, rows.realised_ranks).tolist()
    return own, ranks, np.maximum(rows.logprobs, _NOTHING).tolist()


def _entries(rows: SparseRows) -> list[list[int]]:
    ids: list[list[int]] = rows.ids.tolist()
    if (rows.counts == rows.top_k).all():
        return ids
    return [row[:count] for row, count in zip(ids, rows.counts.tolist(), strict=True)]
