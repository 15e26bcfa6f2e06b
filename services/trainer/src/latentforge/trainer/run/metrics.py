"""A run's metrics on disk: JSON lines that a killed run keeps."""

import json
from pathlib import Path
from typing import Any


class MetricsWriter:
    """Appends one JSON object per line and flushes it, so that a killed run keeps what it wrote."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, **record: Any) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
