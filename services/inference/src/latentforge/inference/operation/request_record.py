"""What is known of the request that is being answered: for its line in the log, its metrics and its span."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class RequestRecord:
    """One HTTP request; whoever answers it fills in what the edge cannot know.

    Attributes:
        request_id: the caller's, or a new one.
        checkpoint: the one that answers.
        prompt_tokens: of all its prompts.
        completion_tokens: of all its choices.
        queue_seconds: the longest time that one of its texts waited for a slot.
        first_token_seconds: the shortest time from the submission of one of its texts to its first tokens.
    """

    request_id: str
    checkpoint: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    queue_seconds: float | None = None
    first_token_seconds: float | None = None

    def fields(self) -> dict[str, str | int | float]:
        """What is known, by name; times in milliseconds."""
        known: dict[str, str | int | float] = {}
        for name in ("checkpoint", "prompt_tokens", "completion_tokens"):
            if (value := getattr(self, name)) is not None:
                known[name] = value
        for name in ("queue", "first_token"):
            if (seconds := getattr(self, f"{name}_seconds")) is not None:
                known[f"{name}_milliseconds"] = round(1000 * seconds, 3)
        return known


# Tasks that a request starts inherit it, and so write to the same record.
_current: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


def open_record(request_id: str) -> RequestRecord:
    """A record for the request that this task answers from now on."""
    record = RequestRecord(request_id)
    _current.set(record)
    return record


def note_request(*, checkpoint: str | None = None, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
    """Says of the request that is being answered which checkpoint answers it, and adds to its tokens."""
    record = _current.get()
    if record is None:
        return
    record.checkpoint = checkpoint or record.checkpoint
    record.prompt_tokens = (record.prompt_tokens or 0) + prompt_tokens
    record.completion_tokens = (record.completion_tokens or 0) + completion_tokens


def note_seconds(*, queue: float, first_token: float | None) -> None:
    """Says of the request that is being answered how long one of its texts was queued, and took to its first token."""
    record = _current.get()
    if record is None:
        return
    record.queue_seconds = max(record.queue_seconds or 0.0, queue)
    if first_token is not None:
        record.first_token_seconds = min(first_token, record.first_token_seconds or first_token)
