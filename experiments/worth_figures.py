"""What the bars ask of the comparison of worth: what a backbone is worth, and who is ahead of whom.

Ids have ``_packages`` for the second text and ``_x<budget>`` for other budgets than the largest; those about the
recurrent student of K = 8 name no architecture.
"""

from collections.abc import Callable, Iterator, Sequence

from experiments.results import ModelResult
from experiments.scales import HELD_OUT
from experiments.worth_measured import WorthRun
from experiments.worth_plan import GRU, RECURRENT

_MAIN = (RECURRENT, 8)


def worth_results(runs: Sequence[WorthRun]) -> list[ModelResult]:
    """The figures of every student that has a transformer, by text and budget, the largest budget first."""
    budgets = sorted({run.budget for run in runs}, reverse=True)
    results = []
    for budget in budgets:
        at = [run for run in runs if run.budget == budget]
        for text in HELD_OUT:
            suffix = ("" if text == HELD_OUT[0] else f"_{text}") + ("" if budget == budgets[0] else f"_x{budget}")
            results += _figures(at, text, suffix)
    return results


def _figures(runs: Sequence[WorthRun], text: str, suffix: str) -> list[ModelResult]:
    found = []
    for student in (run for run in runs if run.measured.model.kind == "student" and run.group != GRU):
        name = _name(student)
        about = (
            _backbone(student, text, f"backbone_nats{name}{suffix}"),
            _vs_gru(student, runs, text, f"vs_gru{name}{suffix}", lambda gru, own: gru <= own),
            _vs_gru(student, runs, text, f"vs_best_gru{name}{suffix}", lambda gru, own: True),
            _vs_token_level(student, runs, text, f"vs_token_level{name or '_k8'}{suffix}"),
        )
        found += [result for result in about if result is not None]
    return found


def _name(student: WorthRun) -> str:
    k = student.measured.model.k
    if (student.group, k) == _MAIN:
        return ""
    return f"_k{k}" if student.group == RECURRENT else f"_{student.group.replace('-', '_')}_k{k}"


def _backbone(student: WorthRun, text: str, name: str) -> ModelResult | None:
    """Nats/token that the student loses with its backbone's state at its mean."""
    worth = student.figure("worth_backbone", text)
    if worth is None:
        return None
    about = {"student": student.measured.model.run, "tokens": student.measured.model.tokens}
    return ModelResult(
        id=name,
        value=worth.value,
        unit="nats/token",
        low=worth.low,
        high=worth.high,
        nats_per_token=student.nats(text),
        **about,
    )


def _vs_gru(
    student: WorthRun, runs: Sequence[WorthRun], text: str, name: str, admits: Callable[[float, float], bool]
) -> ModelResult | None:
    """Nats/token that it is ahead of the best GRU that ``admits`` takes by both speeds; None where it takes none."""
    own = student.tokens_per_s
    grus = [run for run in runs if run.group == GRU]
    if own is None or not (slow := [run for run in grus if run.tokens_per_s and admits(run.tokens_per_s, own)]):
        return None
    best = min(slow, key=lambda run: run.nats(text))
    return ModelResult(
        id=name,
        value=best.nats(text) - student.nats(text),
        unit="nats/token",
        baseline=best.architecture,
        nats_per_token=student.nats(text),
        baseline_nats_per_token=best.nats(text),
        tokens_per_s=own,
        baseline_tokens_per_s=best.tokens_per_s,
        student=student.measured.model.run,
        tokens=student.measured.model.tokens,
    )


def _vs_token_level(student: WorthRun, runs: Sequence[WorthRun], text: str, name: str) -> ModelResult | None:
    """Token-level sizes that it beats in both quality and speed, whichever output layer they have."""
    sizes: dict[str, list[WorthRun]] = {}
    for run in runs:
        if run.measured.model.kind == "token-level":
            sizes.setdefault(run.size, []).append(run)
    if student.tokens_per_s is None or not sizes:
        return None
    beaten = list(_beaten(student, sizes, text))
    return ModelResult(
        id=name,
        value=len(beaten),
        unit=f"of {len(sizes)} sizes",
        beaten=beaten,
        nats_per_token=student.nats(text),
        tokens_per_s=student.tokens_per_s,
        student=student.measured.model.run,
        tokens=student.measured.model.tokens,
    )


def _beaten(student: WorthRun, sizes: dict[str, list[WorthRun]], text: str) -> Iterator[str]:
    assert student.tokens_per_s is not None
    for size, forms in sizes.items():
        if all(
            run.tokens_per_s is not None
            and student.nats(text) < run.nats(text)
            and student.tokens_per_s > run.tokens_per_s
            for run in forms
        ):
            yield size
