"""What the scorer counts, and the time that its backend was busy."""

import time
from dataclasses import dataclass


@dataclass
class ScoringStats:
    """Counted since the gateway started; ``teacher_seconds`` is the backend's time for ``timed_rows`` rows."""

    hits: int = 0
    misses: int = 0
    rows_from_cache: int = 0
    rows_computed: int = 0
    corrupt_entries: int = 0
    teacher_seconds: float = 0.0
    timed_rows: int = 0

    @property
    def saved_seconds(self) -> float:
        return self.rows_from_cache * self.seconds_per_row

    @property
    def seconds_per_row(self) -> float:
        return self.teacher_seconds / self.timed_rows if self.timed_rows else 0.0


class BusyClock:
    """Seconds during which at least one of several overlapping pieces of work was running."""

    def __init__(self) -> None:
        self._running = 0
        self._since = 0.0

    def start(self) -> None:
        if self._running == 0:
            self._since = time.perf_counter()
        self._running += 1

    def stop(self) -> float:
        """Ends one piece; returns the seconds that no earlier call returned."""
        self._running -= 1
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds
