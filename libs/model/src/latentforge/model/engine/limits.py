"""The bounds of an engine."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class EngineLimits:
    """How much an engine takes on; how many texts run at once is for each decoding's slots to say.

    Attributes:
        queue_limit: requests that may be queued, those not counted for which a slot is free.
        queue_tokens: tokens, of prompts and max_tokens together, that queued requests may come to; one request is
            taken however long it is.
        prefill_tokens: tokens of prompts that are read between two steps, which is how long a long prompt holds up
            the texts beside it.
        scoring_slots: texts that are scored in turns; more are queued.
        request_seconds: the longest that a request may take, time in the queue included.

    Raises:
        ValueError: one is too small.
    """

    queue_limit: int = 64
    queue_tokens: int = 262_144
    prefill_tokens: int = 512
    scoring_slots: int = 4
    request_seconds: float = 300.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "queue_limit" else 1
            if field.name == "request_seconds":
                if not value > 0:
                    raise ValueError(f"request_seconds={value}; set more than 0")
            elif value < least:
                raise ValueError(f"{field.name}={value}; set at least {least}")
