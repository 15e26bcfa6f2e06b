"""Which of a text's tokens were drafted and accepted, and which the teacher wrote itself."""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from benchmarks.drafter.passes import Pass


@dataclass(frozen=True)
class Stretch:
    """A part of a text whose tokens have the same origin."""

    text: str
    is_accepted: bool


def accepted_tokens(passes: Sequence[Pass], length: int) -> list[bool]:
    """For each token of a text whether it is an accepted draft's; the last one that a pass gave is the teacher's.

    Args:
        passes: by which it was written, alone.
        length: tokens of the text; what the last pass gave beyond its end is in none.

    Raises:
        ValueError: the passes wrote several texts, or not all of this one.
    """
    found: list[bool] = []
    for one in passes:
        if len(one.requests) != 1:
            raise ValueError(f"a pass over {len(one.requests)} texts does not say whose tokens it gave")
        [(_, written)] = one.requests
        found += [True] * (written - 1) + [False] * (written > 0)
    if len(found) < length:
        raise ValueError(f"the passes gave {len(found)} tokens of a text of {length}")
    return found[:length]


def stretches(
    token_ids: Sequence[int], accepted: Sequence[bool], token_bytes: Mapping[int, bytes | None]
) -> list[Stretch]:
    """A text in parts; a character of several tokens belongs to the one that completes it.

    Args:
        token_bytes: of every id; None for control tokens, which are left out.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = [
        (decoder.decode(token_bytes.get(token_id) or b""), is_accepted)
        for token_id, is_accepted in zip(token_ids, accepted, strict=True)
    ]
    joined = [
        Stretch("".join(text for text, _ in group), is_accepted)
        for is_accepted, group in groupby(pieces, key=lambda piece: piece[1])
    ]
    return [stretch for stretch in joined if stretch.text]
