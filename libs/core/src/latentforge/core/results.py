"""What was measured: a JSON file per measurement, with how it was made, in one format that every reader checks."""

import json
import math
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from latentforge.core.errors import describe_errors
from latentforge.core.files import write_atomically

# They have defaults for writers; a file without them says nothing about how it was made.
_ALWAYS_THERE = ("format_version", "commit", "date")


class ResultsError(ValueError):
    """A file that is not what its reader asked for; the message names it and what is wrong."""


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity; a figure that is one is not there."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Figure = Annotated[float | None, BeforeValidator(_finite)]


class Result(BaseModel):
    """One figure, and what it is compared with.

    Attributes:
        id: what it is; the same for every model or service that has it.
        value: None where there is no finite one.
        unit: of the value and the baseline's.
        baseline: what it is compared with.
        baseline_value: that one's figure; None where there is none.
        ratio: how many times as good as the baseline; above 1 is better whichever way the figure points.
        low, high: bounds of the value, or of the ratio where the producer says so.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    value: Figure
    unit: str
    baseline: str | None = None
    baseline_value: Figure = None
    ratio: Figure = None
    low: Figure = None
    high: Figure = None

    @classmethod
    def compared(
        cls,
        id: str,  # noqa: A002 - the format names it so
        value: float,
        unit: str,
        *,
        baseline: str | None,
        baseline_value: float | None,
        smaller_is_better: bool = False,
        **more: Any,
    ) -> Self:
        """A figure beside a baseline's, with their ratio."""
        ratio = None
        if baseline_value and value:
            ratio = baseline_value / value if smaller_is_better else value / baseline_value
        beside = {"baseline": baseline, "baseline_value": baseline_value, "ratio": ratio}
        return cls.model_validate({"id": id, "value": value, "unit": unit, **beside, **more})


def commit() -> str:
    """The checkout's commit, or "unknown" outside of one."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()


class ResultsFile(BaseModel):
    """A results file. Producers with sections of their own subclass it; who reads only the results need not know them.

    Attributes:
        name: of the measurement, and of the file.
        command: what makes it again.
        commit: of the checkout.
        device: what it ran on.
        date: when it was written.
        seed: of everything random.
        results: the figures.
    """

    model_config = ConfigDict(frozen=True)

    format_version: Literal[2] = 2
    name: str
    command: str
    commit: str = Field(default_factory=commit)
    device: str
    date: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    seed: int
    results: tuple[Result, ...]

    @property
    def by_id(self) -> dict[str, Result]:
        return {result.id: result for result in self.results}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file that :meth:`write` wrote; sections that this class does not know are passed over.

        Raises:
            ResultsError: there is no such file, or it is not of this kind and version.
        """
        try:
            found = cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ResultsError(f"{path} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            wrong = "; ".join(describe_errors(error))
            raise ResultsError(f"{path} is not a {cls.__name__} of this version: {wrong}") from None
        if missing := [name for name in _ALWAYS_THERE if name not in found.model_fields_set]:
            raise ResultsError(f"{path} is not a {cls.__name__} of this version: {missing[0]} is missing")
        return found

    def write(self, folder: Path) -> Path:
        """Writes ``<folder>/<name>_<YYYYMMDD_HHMMSS>.json``, whole or not at all, and returns its path."""
        path = folder / f"{self.name}_{datetime.fromisoformat(self.date):%Y%m%d_%H%M%S}.json"
        write_atomically(path, json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
        return path


def cpu_description() -> str:
    """The processor's name and how many of its cores this process may use."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model} ({platform.machine()}), {len(os.sched_getaffinity(0))} cores"
