"""A benchmark's results: their file, their bars, their table, and which of them a command line asks for."""

import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from latentforge.core.command_line import WRONG_USAGE, fail
from latentforge.core.results import Result, ResultsFile


@dataclass(frozen=True)
class Bars:
    """What results are held against.

    Attributes:
        figures: by id, of the ratio where there is a baseline, else of the value.
        at_most: those that must not be exceeded.
    """

    figures: Mapping[str, float]
    at_most: Collection[str] = ()

    def met(self, result: Result) -> Literal["yes", "no", ""]:
        """Whether a result is as good as its bar; nothing where it has none."""
        bar = self.figures.get(result.id)
        figure = result.value if result.baseline is None else result.ratio
        if bar is None or figure is None:
            return ""
        return "yes" if (figure <= bar if result.id in self.at_most else figure >= bar) else "no"


class BenchmarkResults(ResultsFile):
    """What every benchmark writes.

    Attributes:
        bars: what ratios and values are held against, by id.
        measured: every repeat's figures, by id.
        notes: how it was measured, and what could not be.
        machine: the load before, and the versions of Python, torch and transformers.
        seconds: that it took.
    """

    bars: dict[str, float]
    measured: dict[str, Any]
    notes: list[str]
    machine: dict[str, Any]
    seconds: float

    def show(self, results: Path, table: Table) -> Path:
        """Writes the file into a folder and prints the results' table; gives the file."""
        path = self.write(results)
        console = Console()
        # Figures are compared by eye, so a narrow pipe must not fold them.
        console.width = max(console.width, 180)
        console.print(table)
        typer.echo(f"written to {path} after {self.seconds:.0f} s")
        return path


def results_table(results: Sequence[Result], bars: Bars, title: str, notes: Sequence[str]) -> Table:
    """The results for a terminal."""
    out = Table(title=title, caption="\n".join(notes), caption_justify="left")
    for name in ("id", "value", "unit", "baseline's", "ratio", "low", "high", "bar", "met"):
        out.add_column(name, justify="left" if name in ("id", "unit", "met") else "right", no_wrap=True)
    out.add_column("baseline")
    for result in results:
        numbers = (result.baseline_value, result.ratio, result.low, result.high, bars.figures.get(result.id))
        cells = ("" if n is None else f"{n:,.4g}" for n in numbers)
        value = "" if result.value is None else f"{result.value:,.4g}"
        out.add_row(result.id, value, result.unit, *cells, bars.met(result), result.baseline or "")
    return out


def command_line(module: str) -> str:
    """The command that this process was started with."""
    return f"python -m {module} {shlex.join(sys.argv[1:])}".strip()


def asked_ids(only: str, ids: Sequence[str], where: str) -> list[str]:
    """Those of ``ids`` that --only names, in their own order; an unknown one ends the command."""
    asked = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in ids]:
        fail(f"--only names {unknown[0]!r}; on {where} there are {', '.join(ids)}", code=WRONG_USAGE)
    return [name for name in ids if name in asked]


def machine() -> dict[str, Any]:
    """What else could have been running, the load before the first measurement, and the versions of what computes."""
    return {
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": sys.version.split()[0],
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
