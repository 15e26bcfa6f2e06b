"""An evaluation's figures as results, and their table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from latentforge.core.results import Result
from latentforge.model.ablation import Part
from latentforge.model.metrics.brier import BrierScore
from latentforge.trainer.evaluate.drafts import Drafts
from latentforge.trainer.evaluate.estimate import Estimate
from latentforge.trainer.evaluate.full_kl import FullKl
from latentforge.trainer.evaluate.generations import TextScore
from latentforge.trainer.evaluate.likelihood import Likelihood
from latentforge.trainer.evaluate.reconstruction import Reconstruction


@dataclass
class Figures:
    """What was measured of one model; None and empty where it was not.

    Attributes:
        likelihood: exact, or that under one drawn latent where ``bounds`` has the bounds by number of latents.
        bits_per_byte: of the likelihood, or of the best bound.
        worth: nats that a token costs more without a part of the model.
        bounds: of an energy head.
        drafts: what the teacher accepts of the student's drafts.
        brier: BrierLM.
        full_kl: where the teacher gives whole distributions.
        generations: by temperature.
        teacher_generations: the teacher's own behind the same prompts, likewise.
        reference: the text itself behind them.
        teacher_tokens: whether the teacher judged what was written in tokens of its own, other than the model's.
        reconstruction: of a latent student.
    """

    likelihood: Likelihood
    bits_per_byte: Estimate
    worth: Mapping[Part, Estimate]
    bounds: Mapping[int, Likelihood] = field(default_factory=dict)
    drafts: Drafts | None = None
    brier: BrierScore | None = None
    full_kl: FullKl | None = None
    generations: Mapping[float, TextScore] = field(default_factory=dict)
    teacher_generations: Mapping[float, TextScore] = field(default_factory=dict)
    reference: TextScore | None = None
    teacher_tokens: bool = False
    reconstruction: Reconstruction | None = None


def results_of(figures: Figures, seed: int = 0) -> list[Result]:
    """The results; every id is the same for every model that has the figure."""
    results = _likelihood_results(figures, seed)
    if figures.drafts is not None:
        results += _draft_results(figures.drafts, seed)
    if figures.brier is not None:
        results += _brier_results(figures.brier)
    unit = "nats/teacher's token" if figures.teacher_tokens else "nats/token"
    for temperature, score in figures.generations.items():
        results += _text_results(setting_name(temperature), score, figures.reference, unit)
    for temperature, score in figures.teacher_generations.items():
        results += _text_results(f"teacher_{setting_name(temperature)}", score, figures.reference, unit)
    if figures.reference is not None:
        results += _text_results("reference", figures.reference, None, unit)
    if figures.reconstruction is not None:
        results += _reconstruction_results(figures.reconstruction)
    return results


def setting_name(temperature: float) -> str:
    """gen_t1, gen_t07, gen_greedy."""
    return "gen_greedy" if temperature == 0 else f"gen_t{temperature:g}".replace(".", "")


def _likelihood_results(figures: Figures, seed: int) -> list[Result]:
    """A bound and figures of one drawn latent are named as such: no exact likelihood bears their ids."""
    likelihood, bounds = figures.likelihood, figures.bounds
    teacher = likelihood.mean_teacher(seed)
    one = "_one_latent" if bounds else ""
    results: list[Result] = []
    for size, bound in bounds.items():
        # Of whole chunks only: the teacher's figure is of all tokens, and not to be set beside it.
        results.append(_result(f"nats_per_token_bound_n{size}", bound.mean(seed), "nats/token"))
    best = f"_bound_n{max(bounds)}" if bounds else ""
    tightest = bounds[max(bounds)] if bounds else likelihood
    if not bounds:
        results.append(_nats(likelihood.mean(seed), teacher))
    if tightest.chunk_size > 1:
        for k, estimate in enumerate(tightest.by_position(seed)):
            results.append(_result(f"nats_per_token{best}_k{k}", estimate, "nats/token"))
    results.append(_result(f"bits_per_byte{best}", figures.bits_per_byte, "bits/byte"))
    for part, estimate in figures.worth.items():
        results.append(_result(f"worth_{part}{one}", estimate, "nats/token"))
    if teacher is not None:
        results.append(_result("teacher_nats_per_token", teacher, "nats/token"))
    if (kl := likelihood.mean_kl(seed)) is not None:
        results.append(_result(f"kl_to_teacher{one}", kl, "nats/token, at least"))
    if (found := figures.full_kl) is not None:
        full = _result(f"kl_full{one}", found.full, "nats/token")
        beside = {"baseline": "lower bound, same tokens", "baseline_value": found.bound.value}
        results.append(full.model_copy(update=beside))
    for name, estimate in likelihood.mean_acceptance(seed).items():
        results.append(_result(f"{name}{one}", estimate, "tokens/chunk" if "accepted" in name else "share"))
    if (error := likelihood.calibration_error()) is not None:
        results.append(Result(id=f"calibration_error{one}", value=error, unit="share"))
    return results


def _nats(estimate: Estimate, teacher: Estimate | None) -> Result:
    return Result.compared(
        "nats_per_token",
        estimate.value,
        "nats/token",
        baseline=None if teacher is None else "teacher",
        baseline_value=None if teacher is None else teacher.value,
        smaller_is_better=True,
        low=estimate.low,
        high=estimate.high,
    )


def _result(name: str, estimate: Estimate, unit: str) -> Result:
    return Result(id=name, value=estimate.value, unit=unit, low=estimate.low, high=estimate.high)


def _draft_results(drafts: Drafts, seed: int) -> list[Result]:
    results = [_result("draft_mean_accepted", drafts.mean_accepted(seed), "tokens/draft")]
    for k, estimate in enumerate(drafts.by_position(seed)):
        results.append(_result(f"draft_acceptance_k{k}", estimate, "share"))
    return results


def _brier_results(score: BrierScore) -> list[Result]:
    results = [Result(id="brier_lm", value=score.value, unit="0-100", low=score.low, high=score.high)]
    results += [Result(id=f"brier_{n}", value=value, unit="score") for n, value in enumerate(score.brier_n[:4], 1)]
    if score.brier_8 is not None:
        results.append(Result(id="brier_8", value=score.brier_8, unit="score"))
    return results


def _text_results(name: str, score: TextScore, reference: TextScore | None, teacher_unit: str) -> list[Result]:
    results: list[Result] = []
    if score.teacher_nats is not None:
        results.append(_result(f"{name}_teacher_nats", score.teacher_nats, teacher_unit))
    for what, unit in (("distinct_3", "share"), ("repetition", "share"), ("mean_length", "tokens")):
        value = getattr(score, what)
        if value is None:
            continue
        low, high = (score.repetition_interval or (None, None)) if what == "repetition" else (None, None)
        # Nearer to the text's own is better, whichever side it is on; a ratio would say otherwise.
        results.append(
            Result(
                id=f"{name}_{what}",
                value=value,
                unit=unit,
                baseline="reference" if reference else None,
                baseline_value=getattr(reference, what) if reference else None,
                low=low,
                high=high,
            )
        )
    return results


def _reconstruction_results(found: Reconstruction) -> list[Result]:
    # Beside: a ratio of shares near 1 would say nothing.
    results = [
        Result(id=name, value=value, unit="share", baseline="untrained", baseline_value=untrained)
        for name, value, untrained in (
            ("ae_clean", found.clean, found.untrained_clean),
            ("ae_noisy", found.noisy, found.untrained_noisy),
        )
    ]
    figures: Sequence[tuple[str, float | None, str]] = (
        ("ae_at_student", found.student, "share"),
        ("ae_margin", found.margin, "logit"),
        ("ae_active_dims", found.active_dims, "dimensions"),
        ("latent_mse", found.mse, "per dimension"),
    )
    return results + [Result(id=name, value=value, unit=unit) for name, value, unit in figures if value is not None]


def table(results: Sequence[Result], title: str) -> Table:
    """The results for a terminal."""
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("id", "value", "low", "high", "unit", "beside"):
        out.add_column(name, justify="left" if name in ("id", "unit", "beside") else "right", no_wrap=True)
    for result in results:
        beside = "" if result.baseline_value is None else f"{result.baseline} {result.baseline_value:.4g}"
        numbers = map(_number, (result.value, result.low, result.high))
        out.add_row(result.id, *numbers, result.unit, beside)
    return out


def print_table(results: Sequence[Result], title: str) -> None:
    """Prints the table whole: in a narrow terminal its lines break, and no figure is cut."""
    console = Console()
    made = table(results, title)
    console.width = max(console.width, console.measure(made, options=console.options.update_width(1000)).maximum)
    console.print(made)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
