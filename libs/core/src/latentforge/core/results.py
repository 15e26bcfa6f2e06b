"""What runs leave behind: metrics as JSON lines, results as one JSON file per measurement."""

import json
import math
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from latentforge.core.files import write_atomically


class JsonlWriter:
    """Appends one JSON object per line and flushes it, so that a killed run keeps what it wrote."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, **record: Any) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def result_row(
    id: str,  # noqa: A002 - the results format names it so
    value: float,
    unit: str,
    *,
    rival: str | None = None,
    rival_value: float | None = None,
    smaller_is_better: bool = False,
    low: float | None = None,
    high: float | None = None,
) -> dict[str, Any]:
    """One row of a results file; ``ratio`` is more than 1 where ours is better."""
    ratio = None
    if rival_value is not None and value and rival_value:
        ratio = rival_value / value if smaller_is_better else value / rival_value
    row = {
        "id": id,
        "value": value,
        "unit": unit,
        "rival": rival,
        "rival_value": rival_value,
        "ratio": ratio,
        "low": low,
        "high": high,
    }
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def write_results(
    folder: Path, name: str, *, command: str, device: str, seed: int, rows: list[dict[str, Any]], **more: Any
) -> Path:
    """Writes ``<folder>/<name>_<YYYYMMDD_HHMMSS>.json`` and returns its path."""
    now = datetime.now(UTC)
    record = {
        "name": name,
        "command": command,
        "commit": commit(),
        "device": device,
        "date": now.isoformat(timespec="seconds"),
        "seed": seed,
        "rows": rows,
        **more,
    }
    path = folder / f"{name}_{now:%Y%m%d_%H%M%S}.json"
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    return path


def commit() -> str:
    """The checkout's commit, or "unknown" outside of one."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()


def cpu_description() -> str:
    """The processor's name and how many of its cores this process may use."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model} ({platform.machine()}), {len(os.sched_getaffinity(0))} cores"
