"""The texts that one decoding writes now."""

from dataclasses import dataclass
from typing import Literal

from latentforge.model.decoding.batch import BatchDecoding, OpenText, WrittenChunk
from latentforge.model.engine.requests import GenerationRequest, Written
from latentforge.model.engine.ticket import Ticket


@dataclass(eq=False)
class RunningText:
    """A generation that has a slot.

    Attributes:
        left: tokens that it may still get.
        num_pieces: pieces of its prompt that were read.
    """

    ticket: Ticket
    request: GenerationRequest
    text: OpenText
    left: int
    num_pieces: int = 0


class DecodingRunner:
    """Reads and steps a decoding's texts, in the order in which they came.

    Attributes:
        decoding: theirs.
        texts: with the oldest first.
    """

    def __init__(self, decoding: BatchDecoding) -> None:
        self.decoding = decoding
        self.texts: list[RunningText] = []

    @property
    def unread(self) -> list[RunningText]:
        return [running for running in self.texts if running.text.num_unread]

    def open(self, ticket: Ticket, request: GenerationRequest) -> RunningText:
        """Gives a request its slot; raises as :meth:`BatchDecoding.open`."""
        text = self.decoding.open(request.prompt_ids, request.params, request.logprobs)
        running = RunningText(ticket, request, text, min(request.max_tokens, text.room))
        self.texts.append(running)
        return running

    def of(self, ticket: Ticket) -> RunningText:
        """The text of a ticket that runs here."""
        return next(running for running in self.texts if running.ticket is ticket)

    def urgency(self, *, oldest_first: bool) -> float:
        """The lowest of those of its unread texts; see :meth:`prefill`."""
        return min(_urgency(running, oldest_first) for running in self.unread)

    def prefill(self, max_tokens: int, *, oldest_first: bool) -> int:
        """Reads one piece of the prompts, and says how many tokens that were.

        Args:
            max_tokens: the piece's size.
            oldest_first: otherwise first those of whose prompts least pieces were read, so that a short prompt never
                waits for the whole of a long one. Who takes turns starves neither.
        """
        unread = sorted(self.unread, key=lambda running: _urgency(running, oldest_first))
        before = [running.text.num_unread for running in unread]
        num_read = self.decoding.prefill([running.text for running in unread], max_tokens)
        for running, num_unread in zip(unread, before, strict=True):
            running.num_pieces += running.text.num_unread < num_unread
        return num_read

    def step(self) -> list[tuple[RunningText, WrittenChunk]]:
        """Writes a chunk for each text that has been read."""
        ready = [running for running in self.texts if not running.text.num_unread]
        if not ready:
            return []
        return list(zip(ready, self.decoding.step([running.text for running in ready]), strict=True))

    def close(self, running: RunningText) -> None:
        """Takes a text out and frees its slot."""
        self.texts.remove(running)
        self.decoding.close(running.text)


def _urgency(running: RunningText, oldest_first: bool) -> float:
    return running.ticket.timings.submitted if oldest_first else running.num_pieces


def cut(running: RunningText, chunk: WrittenChunk) -> Written:
    """What a step wrote for a text up to the text's end; ``running.left`` is lowered.

    Raises:
        ValueError: the request's ``stop`` gave a number that is none of the new ids'; or what it raises itself.
    """
    request = running.request
    reason: Literal["stop", "length"] | None = "length" if running.left <= len(chunk.token_ids) else None
    token_ids = chunk.token_ids[: running.left]
    end = next((at for at, token_id in enumerate(token_ids) if token_id in request.end_ids), None)
    if end is not None:
        token_ids, reason = token_ids[:end], "stop"
    if request.stop is not None and token_ids:
        num_kept = request.stop(token_ids)
        if num_kept is not None:
            if not 0 <= num_kept <= len(token_ids):
                raise ValueError(f"stop kept {num_kept} of {len(token_ids)} ids")
            token_ids, reason = token_ids[:num_kept], "stop"
    num = len(token_ids)
    running.left -= num
    return Written(
        token_ids,
        None if chunk.logprobs is None else chunk.logprobs[:num],
        None if chunk.likeliest is None else chunk.likeliest[:num],
        reason,
    )
