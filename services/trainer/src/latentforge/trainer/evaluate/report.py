"""An evaluation's figures as the rows of a results file, and their table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from latentforge.core.results import result_row
from latentforge.model.metrics.brier import BrierScore
from latentforge.trainer.evaluate.estimate import Estimate
from latentforge.trainer.evaluate.generations import TextScore
from latentforge.trainer.evaluate.likelihood import Likelihood
from latentforge.trainer.evaluate.reconstruction import Reconstruction

Row = dict[str, Any]


@dataclass
class Figures:
    """What was measured of one model; None and empty where it was not.

    Attributes:
        likelihood: exact, or that under one drawn latent where ``bounds`` has the bounds by number of latents.
        bits_per_byte: of the likelihood, or of the best bound.
        bounds: of an energy head.
        brier: BrierLM.
        generations: by temperature.
        reference: the text itself behind the prompts.
        teacher_tokens: whether the teacher judged what was written in tokens of its own, other than the model's.
        reconstruction: of a latent student.
    """

    likelihood: Likelihood
    bits_per_byte: Estimate
    bounds: Mapping[int, Likelihood] = field(default_factory=dict)
    brier: BrierScore | None = None
    generations: Mapping[float, TextScore] = field(default_factory=dict)
    reference: TextScore | None = None
    teacher_tokens: bool = False
    reconstruction: Reconstruction | None = None


def figure_rows(figures: Figures, seed: int = 0) -> list[Row]:
    """The rows; every id is the same for every model that has the figure."""
    rows = _likelihood_rows(figures, seed)
    if figures.brier is not None:
        rows += _brier_rows(figures.brier)
    unit = "nats/teacher's token" if figures.teacher_tokens else "nats/token"
    for temperature, score in figures.generations.items():
        rows += _text_rows(setting_name(temperature), score, figures.reference, unit)
    if figures.reference is not None:
        rows += _text_rows("reference", figures.reference, None, unit)
    if figures.reconstruction is not None:
        rows += _reconstruction_rows(figures.reconstruction)
    return rows


def setting_name(temperature: float) -> str:
    """gen_t1, gen_t07, gen_greedy."""
    return "gen_greedy" if temperature == 0 else f"gen_t{temperature:g}".replace(".", "")


def _likelihood_rows(figures: Figures, seed: int) -> list[Row]:
    """A bound and figures of one drawn latent are named as such: no exact likelihood bears their ids."""
    likelihood, bounds = figures.likelihood, figures.bounds
    teacher = likelihood.mean_teacher(seed)
    one = "_one_latent" if bounds else ""
    rows: list[Row] = []
    for size, bound in bounds.items():
        # Of whole chunks only: the teacher's figure is of all tokens, and not to be set beside it.
        rows.append(_row(f"nats_per_token_bound_n{size}", bound.mean(seed), "nats/token"))
    best = f"_bound_n{max(bounds)}" if bounds else ""
    tightest = bounds[max(bounds)] if bounds else likelihood
    if not bounds:
        rows.append(_nats(likelihood.mean(seed), teacher))
    if tightest.chunk_size > 1:
        for k, estimate in enumerate(tightest.by_position(seed)):
            rows.append(_row(f"nats_per_token{best}_k{k}", estimate, "nats/token"))
    rows.append(_row(f"bits_per_byte{best}", figures.bits_per_byte, "bits/byte"))
    if teacher is not None:
        rows.append(_row("teacher_nats_per_token", teacher, "nats/token"))
    if (kl := likelihood.mean_kl(seed)) is not None:
        rows.append(_row(f"kl_to_teacher{one}", kl, "nats/token"))
    if (error := likelihood.calibration_error()) is not None:
        rows.append(result_row(f"calibration_error{one}", error, "share"))
    return rows


def _nats(estimate: Estimate, teacher: Estimate | None) -> Row:
    return result_row(
        "nats_per_token",
        estimate.value,
        "nats/token",
        rival=None if teacher is None else "teacher",
        rival_value=None if teacher is None else teacher.value,
        smaller_is_better=True,
        low=estimate.low,
        high=estimate.high,
    )


def _row(name: str, estimate: Estimate, unit: str) -> Row:
    return result_row(name, estimate.value, unit, low=estimate.low, high=estimate.high)


def _brier_rows(score: BrierScore) -> list[Row]:
    rows = [result_row("brier_lm", score.value, "0-100", low=score.low, high=score.high)]
    rows += [result_row(f"brier_{n}", value, "score") for n, value in enumerate(score.brier_n[:4], 1)]
    if score.brier_8 is not None:
        rows.append(result_row("brier_8", score.brier_8, "score"))
    return rows


def _text_rows(name: str, score: TextScore, reference: TextScore | None, teacher_unit: str) -> list[Row]:
    rows: list[Row] = []
    if score.teacher_nats is not None:
        rows.append(_row(f"{name}_teacher_nats", score.teacher_nats, teacher_unit))
    for what, unit in (("distinct_3", "share"), ("repetition", "share"), ("mean_length", "tokens")):
        value = getattr(score, what)
        if value is None:
            continue
        beside = getattr(reference, what) if reference is not None else None
        row = result_row(f"{name}_{what}", value, unit, rival="reference" if reference else None, rival_value=beside)
        # Nearer to the text's own is better, whichever side it is on; a ratio would say otherwise.
        rows.append(row | {"ratio": None})
    return rows


def _reconstruction_rows(found: Reconstruction) -> list[Row]:
    figures: Sequence[tuple[str, float | None, str]] = (
        ("ae_clean", found.clean, "share"),
        ("ae_noisy", found.noisy, "share"),
        ("ae_at_student", found.student, "share"),
        ("ae_margin", found.margin, "logit"),
        ("ae_active_dims", found.active_dims, "dimensions"),
        ("latent_mse", found.mse, "per dimension"),
    )
    return [result_row(name, value, unit) for name, value, unit in figures if value is not None]


def table(rows: Sequence[Row], title: str) -> Table:
    """The rows for a terminal."""
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("id", "value", "low", "high", "unit", "beside"):
        out.add_column(name, justify="left" if name in ("id", "unit", "beside") else "right", no_wrap=True)
    for row in rows:
        beside = "" if row["rival_value"] is None else f"{row['rival']} {row['rival_value']:.4g}"
        out.add_row(row["id"], *(_number(row[name]) for name in ("value", "low", "high")), row["unit"], beside)
    return out


def print_table(rows: Sequence[Row], title: str) -> None:
    """Prints the table whole: in a narrow terminal its lines break, and no figure is cut."""
    console = Console()
    made = table(rows, title)
    console.width = max(console.width, console.measure(made, options=console.options.update_width(1000)).maximum)
    console.print(made)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
