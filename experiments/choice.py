"""What to serve: quality against speed of every way to have a teacher's text, from published results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from experiments.labels import AROUND, Label, place_labels
from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.results import ResultsFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

Kind = Literal["teacher", "drafts", "lookup", "student", "token-level"]
CHOICE_CHART = "quality-speed.png"
_BENCH, _PACE, _WORTH = "drafter", "choice", "worth"
# Okabe and Ito's colours; the markers tell kinds apart without them.
_LOOKS: dict[Kind, tuple[str, str]] = {
    "teacher": ("#000000", "*"),
    "drafts": ("#D55E00", "D"),
    "lookup": ("#56B4E9", "^"),
    "student": ("#0072B2", "o"),
    "token-level": ("#009E73", "s"),
}
_SAID: dict[Kind, str] = {
    "teacher": "the teacher alone",
    "drafts": "the teacher behind its student's drafts",
    "lookup": "the teacher behind n-gram or suffix lookup",
    "student": "a student alone",
    "token-level": "a token-level student alone",
}


@dataclass(frozen=True)
class ServingWay:
    """One way to have text.

    Attributes:
        name: in the chart.
        kind: of its marker.
        kl: nats/token from the teacher's distribution; 0 where the text is the teacher's own.
        one, many: times the tokens/s of the teacher alone by the same engine, one request and several at once.
    """

    name: str
    kind: Kind
    kl: float
    one: float
    many: float


def choices(results: Path, students: Path) -> dict[str, list[ServingWay]]:
    """All ways that were measured, by what the panel is called.

    Args:
        results: the folder of published results.
        students: the folder of the shipped models.

    Raises:
        ResultsError: a file of them is not one.
        KeyError: it lacks a figure.
    """
    return {
        "embedded teacher, 6M": _embedded(results),
        "SmolLM2-135M-Instruct": _smollm2(results, students / "smollm2-student"),
    }


def draw_choices(found: dict[str, list[ServingWay]], path: Path) -> None:
    """Writes the chart as PNG: a row for each teacher, one request and several at once."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.5), layout="constrained")
    panels = figure.subplots(len(found), 2, squeeze=False)
    labels: dict[Axes, list[Label]] = {}
    for (teacher, ways), row in zip(found.items(), panels, strict=True):
        for axes, requests in zip(row, ("one request", "8 requests (students alone: 16)"), strict=True):
            labels[axes] = _draw(axes, ways, f"{teacher}: {requests}", is_one=requests == "one request")
    _legend(figure)
    place_labels(figure, labels)
    figure.savefig(path, dpi=120)


def _embedded(results: Path) -> list[ServingWay]:
    pace = _figures(results / _WORTH / "pace.json")
    found = [ServingWay("teacher", "teacher", 0.0, 1.0, 1.0)]
    students: list[tuple[str, Kind, str, str]] = [
        ("four layers", "token-level", "cut", "cut"),
        ("split, K = 8", "student", "split", "stdlib-student"),
        ("GRU", "student", "gru", "gru"),
        ("chunks, K = 8", "student", "before", "stdlib-student-before"),
    ]
    for name, kind, evaluated, timed in students:
        kl = _figures(results / _WORTH / f"{evaluated}.json")["kl_full"]
        alone, many = pace["pace_stdlib-teacher"], pace["pace_stdlib-teacher_16"]
        found.append(ServingWay(name, kind, kl, pace[f"pace_{timed}"] / alone, pace[f"pace_{timed}_16"] / many))
    return found + _drafted(results / _PACE / "stdlib-drafted.json")


def _smollm2(results: Path, student: Path) -> list[ServingWay]:
    pace = _figures(results / _PACE / "smollm2-pace.json")
    manifest = read_manifest(list_checkpoints(student)[-1])
    alone = ServingWay(
        "GRU, K = 8",
        "student",
        manifest.metrics["held_out_kd"],
        pace["pace_smollm2-student"] / pace["pace_smollm2"],
        pace["pace_smollm2-student_16"] / pace["pace_smollm2_16"],
    )
    return [ServingWay("teacher", "teacher", 0.0, 1.0, 1.0), alone, *_drafted(results / _BENCH / "bench.json")]


def _drafted(path: Path) -> list[ServingWay]:
    ratios = {id_: one.ratio for id_, one in ResultsFile.read(path).by_id.items() if one.ratio is not None}
    ways: list[tuple[str, Kind, str]] = [
        ("drafts", "drafts", ""),
        ("n-grams", "lookup", "_ngram"),
        ("suffixes", "lookup", "_suffix"),
    ]
    return [
        ServingWay(name, kind, 0.0, ratios[f"speed_1{suffix}"], ratios[f"speed_8{suffix}"])
        for name, kind, suffix in ways
        if f"speed_1{suffix}" in ratios
    ]


def _figures(path: Path) -> dict[str, float]:
    return {id_: one.value for id_, one in ResultsFile.read(path).by_id.items() if one.value is not None}


def _draw(axes: "Axes", ways: Sequence[ServingWay], title: str, *, is_one: bool) -> list[Label]:
    labels = []
    for way in ways:
        colour, marker = _LOOKS[way.kind]
        x = way.one if is_one else way.many
        axes.plot([x], [way.kl], color=colour, marker=marker, markersize=9, linestyle="none")
        text: Annotation = axes.annotate(
            way.name, (x, way.kl), (0, 12), textcoords="offset points", ha="center", va="center", fontsize=9
        )
        labels.append(Label(text, AROUND))
    axes.axvline(1, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ymargin(0.18)
    axes.set_xmargin(0.15)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("times the teacher alone's tokens/s (right is faster)")
    axes.set_ylabel("KL to the teacher, nats/token (up is better)")
    return labels


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=8, label=_SAID[kind])
        for kind, (colour, marker) in _LOOKS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
