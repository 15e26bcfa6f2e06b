"""A continuation as callers see it: text, cut where it ends, beside each token's place and log probability."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from latentforge.model.decoding.batch import TokenLogprob
from latentforge.model.engine.requests import Written
from latentforge.snapshots.snapshot import Snapshot
from latentforge.text.stopping_text import StoppingText
from latentforge.text.text_stream import TextStream


@dataclass(frozen=True)
class PlacedToken:
    """A token of a text.

    Attributes:
        id: its id.
        offset: at which character of the text it begins.
        logprob: None where nothing comes before it.
        likeliest: ids in its place and their log probabilities, most likely first.
    """

    id: int
    offset: int
    logprob: float | None
    likeliest: Sequence[TokenLogprob]


@dataclass(frozen=True)
class TextPiece:
    """What one step adds to a text.

    Attributes:
        text: whole characters; what may still become a stop string waits for the next piece.
        token_ids: without an id that ends the text.
        tokens: where log probabilities were asked for; an id that ended the text is the last one.
        finish_reason: None while there is more to come.
    """

    text: str
    token_ids: list[int]
    tokens: list[PlacedToken]
    finish_reason: Literal["stop", "length"] | None = None


def joined(pieces: Sequence[TextPiece]) -> TextPiece:
    """At least one piece as one."""
    return TextPiece(
        "".join(piece.text for piece in pieces),
        [token_id for piece in pieces for token_id in piece.token_ids],
        [token for piece in pieces for token in piece.tokens],
        pieces[-1].finish_reason,
    )


@dataclass(frozen=True)
class Ends:
    """What ends a text.

    Attributes:
        stops: strings; the text ends before the one that is complete first.
        ids: they are no part of the text.
    """

    stops: Sequence[str] = ()
    ids: frozenset[int] = frozenset()

    def watch(self, snapshot: Snapshot) -> Callable[[Sequence[int]], int | None]:
        """For :class:`GenerationRequest`: ends a text with the fewest ids that hold a stop string, or an end id."""
        text = StoppingText(snapshot.tokenizer, self.stops)

        def stop(new_ids: Sequence[int]) -> int | None:
            for num, token_id in enumerate(new_ids, 1):
                if token_id in self.ids:
                    return num
                if self.stops:
                    text.push(token_id)
                    if text.is_over:
                        return num
            return None

        return stop


class ContinuedText:
    """Makes pieces of what steps write for one text.

    Args:
        snapshot: whose tokenizer reads the ids.
        ends: what ends the text; the steps may still hold the id that did.
        offset: characters that are before it.
    """

    def __init__(self, snapshot: Snapshot, ends: Ends, offset: int = 0) -> None:
        self._text = StoppingText(snapshot.tokenizer, ends.stops)
        self._end_ids = ends.ids
        # Where tokens begin is asked of a text that waits for nothing.
        self._decoded = TextStream(snapshot.tokenizer)
        self._offset = offset

    def push(self, written: Written) -> TextPiece:
        text, token_ids, tokens = "", [], []
        for at, token_id in enumerate(written.token_ids):
            if written.logprobs is not None:
                likeliest = written.likeliest[at] if written.likeliest else ()
                tokens.append(PlacedToken(token_id, self._offset, written.logprobs[at], likeliest))
                self._offset += len(self._decoded.push(token_id))
            if token_id in self._end_ids:
                break
            token_ids.append(token_id)
            if not self._text.is_over:
                text += self._text.push(token_id)
        if written.finish_reason is not None:
            text += self._text.flush()
        return TextPiece(text, token_ids, tokens, written.finish_reason)


def token_offsets(snapshot: Snapshot, ids: Sequence[int], text: str) -> list[int]:
    """At which character of ``text`` each of its tokens begins."""
    stream = TextStream(snapshot.tokenizer)
    offsets, length = [], 0
    for token_id in ids:
        offsets.append(length)
        length += len(stream.push(token_id))
    # A vocabulary that marks the beginnings of words decodes a blank before the first, which the text need not have.
    extra = max(0, length + len(stream.flush()) - len(text))
    return [max(0, offset - extra) for offset in offsets]
