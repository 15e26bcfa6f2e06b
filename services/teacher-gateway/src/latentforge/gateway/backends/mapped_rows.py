"""A continuation whose tokens an API writes as text: its ids, its rows, and whether the answer agrees with itself."""

import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from latentforge.gateway.backends.base import ContinuationRequest, Piece
from latentforge.gateway.backends.continuations import FINISH_REASONS
from latentforge.gateway.backends.token_mapping import TokenMapping
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sparse_rows import SparseRows

# What rounding of the API's logprobs may add to the sum of a row.
_SUM_TOLERANCE = 0.01
# Of one probability, in nats, given twice in one answer.
_SAME_TOLERANCE = 1e-3
# Below it a probability is 0; engines write -9999 for it.
_LEAST_LOGPROB = -1000.0


class DroppedError(Exception):
    """The answer contradicts itself or cannot be read as ids, and how."""


@dataclass(frozen=True)
class WrittenToken:
    """A token as an API writes it; ``data`` are its bytes where the API gives them, ``logprob`` is in nats."""

    text: str
    data: bytes | None
    logprob: float


@dataclass(frozen=True)
class WrittenPosition:
    """The token that came at one position, and the most probable ones there, in any order."""

    own: WrittenToken
    top: Sequence[WrittenToken]


@dataclass(frozen=True)
class WrittenContinuation:
    """What an API answers, in no API's shape.

    Attributes:
        index: its number among the n of a request.
        finish_reason: in OpenAI's words.
        positions: of its tokens, in order.
        reasoned: there is a text of reasoning besides, whose tokens may be among these.
    """

    index: int
    finish_reason: str
    text: str
    positions: Sequence[WrittenPosition]
    reasoned: bool = False


@dataclass(frozen=True)
class _Row:
    """One position. ``ids`` and ``logprobs`` are in the order of rank, as long as there are entries with an id."""

    ids: list[int]
    logprobs: list[float]
    realised_logprob: float
    realised_rank: int
    unmapped_mass: float


def mapped_piece(
    written: WrittenContinuation, request: ContinuationRequest, top_k: int, mapping: TokenMapping
) -> Piece:
    """All of one continuation, with rows ``top_k`` wide; ``top_k`` 0 gives none.

    Row r is for token ``len(request.prompt_ids) + r``. Only entries with an id are in a row: ``tail_mass`` is 1 minus
    the sum of their probabilities, as for every teacher, and ``unmapped_mass`` is the part of that tail which belongs
    to entries that the API gave and no id could be found for. A continuation that contradicts itself is dropped whole.
    """
    try:
        reason = FINISH_REASONS.get(written.finish_reason)
        if reason is None:
            raise DroppedError(f"the answer ended with finish_reason {written.finish_reason!r}")
        positions = written.positions
        ids = _sampled_ids(positions, mapping)
        if not _agrees(ids, written.text, written.finish_reason, request.stop, mapping):
            raise DroppedError(_disagreement(ids, written, mapping))
        rows = None
        if top_k and ids:
            parts = [_row(at, said, i, top_k, mapping) for at, (said, i) in enumerate(zip(positions, ids, strict=True))]
            rows = _joined(parts, top_k, len(request.prompt_ids))
    except DroppedError as dropped:
        return Piece(written.index, [], "", None, pb.FINISH_REASON_DROPPED, str(dropped))
    return Piece(written.index, ids, written.text, rows, reason)


def _sampled_ids(positions: Sequence[WrittenPosition], mapping: TokenMapping) -> list[int]:
    ids = []
    for at, own in enumerate(position.own for position in positions):
        token_id = mapping.id_of(own.text, own.data)
        if token_id is None:
            raise DroppedError(f"no id is certain for token {at}, written {own.text!r} with {_shown(own.data)}")
        ids.append(token_id)
    return ids


def _shown(data: bytes | None) -> str:
    return "no bytes" if data is None else f"bytes {data.hex(' ')}"


def _agrees(ids: Sequence[int], text: str, finish: str, stop: Sequence[str], mapping: TokenMapping) -> bool:
    """Whether the tokens make the text.

    Special tokens are left out of a text or written in it; the token that ended it is listed or not. An incomplete
    character at the end is left out or replaced. Of a text that a stop string ended, the rest begins with it.
    """
    for special in (False, True):
        data = mapping.text_of(ids, special=special)
        whole = data.decode("utf-8", "replace")
        complete = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
        if text in (whole, complete):
            return True
        if finish == "stop" and any(whole.startswith(text + s) for s in stop):
            return True
    ended = finish == "stop" and bool(ids) and ids[-1] in mapping.special_ids
    return ended and mapping.text_of(ids[:-1], special=True).decode("utf-8", "replace") == text


def _disagreement(ids: Sequence[int], written: WrittenContinuation, mapping: TokenMapping) -> str:
    if written.reasoned:
        return "the model reasoned although it was told not to, and its tokens are not those of its text"
    text = written.text
    made = mapping.text_of(ids, special=False).decode("utf-8", "replace")
    at = next((i for i, (a, b) in enumerate(zip(made, text, strict=False)) if a != b), min(len(made), len(text)))
    return (
        f"the {len(ids)} sampled tokens do not make the text: they have {len(made)} characters, it has {len(text)}, "
        f"and they differ from character {at} on"
    )


def _row(at: int, said: WrittenPosition, token_id: int, top_k: int, mapping: TokenMapping) -> _Row:
    given = [min(0.0, c.logprob) for c in said.top]
    order = sorted(range(len(given)), key=lambda i: -given[i])
    found: dict[int, float] = {}
    total = unmapped = 0.0
    realised_logprob = min(0.0, said.own.logprob)
    realised_rank = 0
    for rank, index in enumerate(order, start=1):
        candidate, logprob = said.top[index], given[index]
        candidate_id = mapping.id_of(candidate.text, candidate.data)
        if candidate_id is not None and candidate_id in found:
            _check_same(at, candidate.text, found[candidate_id], logprob)
            continue
        if candidate_id == token_id:
            _check_same(at, candidate.text, realised_logprob, logprob)
            realised_rank = rank
        if rank > top_k or logprob < _LEAST_LOGPROB:
            continue
        total += math.exp(logprob)
        if candidate_id is None:
            unmapped += math.exp(logprob)
        else:
            found[candidate_id] = logprob
    if total > 1 + _SUM_TOLERANCE:
        raise DroppedError(f"the probabilities at token {at} sum to {total:.3f}")
    # Some engines list the sampled token among the others whatever its rank is, which only its place can show.
    ordered = all(a >= b for a, b in pairwise(given))
    if realised_rank == len(order) and (not ordered or len(order) > top_k):
        realised_rank = 0
    ids, logprobs = list(found), list(found.values())
    return _Row(ids, logprobs, realised_logprob, realised_rank, unmapped)


def _check_same(at: int, token: str, one: float, other: float) -> None:
    if abs(one - other) > _SAME_TOLERANCE and max(one, other) >= _LEAST_LOGPROB:
        raise DroppedError(f"token {at} has two log-probabilities for {token!r}: {one:g} and {other:g}")


def _joined(parts: Sequence[_Row], top_k: int, first_position: int) -> SparseRows:
    ids = np.zeros((len(parts), top_k), np.uint32)
    logprobs = np.full((len(parts), top_k), -np.inf, np.float32)
    tail_mass = np.empty(len(parts), np.float32)
    for at, row in enumerate(parts):
        ids[at, : len(row.ids)] = row.ids
        logprobs[at, : len(row.ids)] = row.logprobs
        tail_mass[at] = max(0.0, 1.0 - math.fsum(math.exp(p) for p in row.logprobs))
    return SparseRows(
        first_position=first_position,
        ids=ids,
        logprobs=logprobs,
        counts=np.array([len(row.ids) for row in parts], np.uint16),
        realised_logprobs=np.array([row.realised_logprob for row in parts], np.float32),
        realised_ranks=np.array([row.realised_rank for row in parts], np.uint32),
        tail_mass=tail_mass,
        unmapped_mass=np.array([row.unmapped_mass for row in parts], np.float32),
    )
