"""A run's metrics on disk: JSON lines that a killed run keeps."""

import json
import math
import time
from pathlib import Path
from typing import Any

from latentforge.trainer.run.events import Event


class MetricsFile:
    """Appends one JSON object per line and flushes it, so that a killed run keeps what it wrote.

    After a kill, steps since the last save are written twice. Figures that are not finite are left out, since JSON has
    no word for them.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        if self._file.tell() and not path.read_bytes().endswith(b"\n"):
            # Of a line that a kill cut.
            self._file.write("\n")

    def take(self, event: Event) -> None:
        if event.kind in ("train", "held_out"):
            pace = event.pace.figures if event.pace else {}
            head = {"stage": event.stage, "step": event.step, "kind": event.kind, "time": round(time.time(), 3)}
            figures = {name: value for name, value in event.figures.items() if math.isfinite(value)}
            self.write(**head, **figures, **pace)

    def write(self, **record: Any) -> None:
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
