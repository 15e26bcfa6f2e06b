"""What the time of a request's texts was spent on, for its line in the log and its spans."""

import time

from latentforge.core.tracing import past_span
from latentforge.inference.operation.request_record import note_seconds
from latentforge.model.engine.timings import Timings


def note_timings(timings: Timings) -> None:
    """Tells of one text, which may have been cancelled, in the request that is being answered."""
    note_seconds(queue=timings.queue_seconds, first_token=timings.first_token_seconds)
    # The engine's clock is the monotonic one; spans want the time of day.
    offset = time.time() - time.monotonic()
    marks = [timings.submitted, timings.started, timings.first_written, timings.ended]
    for name, start, end in zip(("queue", "prefill", "decode"), marks, marks[1:], strict=False):
        if start is not None and end is not None:
            past_span(name, start + offset, end + offset)
