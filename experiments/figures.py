"""What the bars ask about measured models: gaps, sizes beaten, savings, speeds."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

from experiments.comparisons import (
    DENOISING,
    EMBEDDINGS,
    LATENT,
    LINEAR,
    LONGER,
    OWN_TEXT,
    SEED_OBJECTIVE,
)
from experiments.measured import Measured
from experiments.plan import FAST, Model, Vocabulary
from experiments.results import ModelResult
from latentforge.trainer.config.objectives import DEFAULT_OBJECTIVE

_Key = TypeVar("_Key")
# One request at a time, or 16 that step together.
Way = Literal["one", "many"]
# Groups of the comparison of latents, each with the one beside which it should save something.
_SAVINGS = {
    "longer_vs_linear": (LONGER, LINEAR),
    "longer_vs_default": (LONGER, LATENT),
    "denoising_vs_linear": (DENOISING, LINEAR),
    "own_text_vs_linear": (OWN_TEXT, LINEAR),
    "own_text_vs_embeddings": (OWN_TEXT, EMBEDDINGS),
}
# Token-level sizes that a student has to beat, by the bars.
_WORTH = 2


def pareto_results(measured: Sequence[Measured]) -> list[ModelResult]:
    """The bars about the chart: gaps, beaten sizes, speeds."""
    results: list[ModelResult] = []
    for k in (4, 8):
        results += _gap(measured, k)
    for k in (4, 8):
        results += _beaten(measured, k)
    for k in (4, 8):
        results += _decode(measured, k)
    return results + _fast(measured)


def objective_results(measured: Sequence[Measured]) -> list[ModelResult]:
    """The bars about objectives at equal tokens: KD against CE alone, over the seeds; and what the best one saves."""
    by_name = _by_objective(measured)
    # A bound is over fewer tokens than a likelihood, and no baseline of one.
    exact = [name for name, of in by_name.items() if of[0].value("nats_per_token") is not None]
    best = min(exact, key=lambda name: statistics.mean(m.nats for m in by_name[name]))
    results = [_saved("vs_seed_objective_equal_tokens", by_name, best)]
    for name, figure in (("kd_bound", "nats_per_token"), ("kd_kl", "kl_to_teacher")):
        results.append(_better(name, by_name["chunk-ce"], by_name["chunk-kd"], figure))
    return results


def draft_results(measured: Sequence[Measured]) -> list[ModelResult]:
    """What the teacher accepts more of 8 drafted tokens than of the default's, and of one; seed by seed."""
    by_name = _by_objective(measured)
    baselines = by_name.pop(DEFAULT_OBJECTIVE)
    figures = (("draft_mean_accepted", "tokens/draft"), ("acceptance", "share"), ("acceptance_low", "share"))
    results = []
    for objective, ours in by_name.items():
        for figure, unit in figures:
            pairs = [(m.value(figure), b.value(figure)) for m, b in zip(ours, baselines, strict=True)]
            more = [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]
            about = {"low": min(more), "high": max(more), "seeds": len(more)}
            results.append(_result(f"{figure}_{objective}", statistics.mean(more), unit, **about))
        results.append(_better(f"nats_{objective}", baselines, ours))
    return results


def equal_time_results(measured: Sequence[Measured]) -> list[ModelResult]:
    """What the default saves beside the regressed latent in the same time, over the seeds."""
    return [_saved("vs_seed_objective", _by_objective(measured), DEFAULT_OBJECTIVE)]


def latent_results(measured: Sequence[Measured]) -> list[ModelResult]:
    """What latents save beside a linear map, and those of an autoencoder that learns for longer beside the default's.

    Over the seeds, by held-out text; of the groups that were trained.
    """
    by_group = _grouped(measured, lambda model: model.group)
    return [
        _better(name + suffix, by_group[baseline], by_group[ours], held_out=held_out, seeds=len(by_group[ours]))
        for name, (ours, baseline) in _SAVINGS.items()
        if {ours, baseline} <= set(by_group)
        for held_out, suffix in (("stdlib", ""), ("packages", "_packages"))
    ]


def token_results(measured: Sequence[Measured]) -> list[ModelResult]:
    """How many nats/token the best student is ahead of the best token-level model after as many tokens.

    By vocabulary, tokens and held-out text, on each of which others may be best; the result names them.
    """
    results = []
    for (vocabulary, tokens), of in _grouped(measured, lambda model: (model.vocabulary, model.tokens)).items():
        for held_out, suffix in (("stdlib", ""), ("packages", "_packages")):
            student, baseline = (
                min(
                    (nats, m.model.run)
                    for m in of
                    if m.model.kind == kind and (nats := m.value("nats_per_token", held_out)) is not None
                )
                for kind in ("student", "token-level")
            )
            name, lead = f"lead_{vocabulary}_{tokens}{suffix}", baseline[0] - student[0]
            results.append(_result(name, lead, "nats/token", student=student[1], token_level=baseline[1]))
    return results


def _result(id: str, value: float, unit: str, **more: Any) -> ModelResult:  # noqa: A002 - the format names it so
    return ModelResult.compared(id, value, unit, **{"baseline": None, "baseline_value": None, **more})


def _by_objective(measured: Iterable[Measured]) -> dict[str | None, list[Measured]]:
    return _grouped(measured, lambda model: model.objective)


def _grouped(measured: Iterable[Measured], key: Callable[[Model], _Key]) -> dict[_Key, list[Measured]]:
    found: dict[_Key, list[Measured]] = {}
    for m in measured:
        found.setdefault(key(m.model), []).append(m)
    return found


def _saved(name: str, by_objective: Mapping[str | None, Sequence[Measured]], better: str | None) -> ModelResult:
    ours = by_objective[better]
    return _better(name, by_objective[SEED_OBJECTIVE], ours, best=better, tokens=ours[0].model.tokens)


def _better(
    name: str,
    baselines: Sequence[Measured],
    ours: Sequence[Measured],
    figure: str = "nats_per_token",
    held_out: str = "stdlib",
    **more: Any,
) -> ModelResult:
    """How much lower a figure is than the baselines', seed by seed."""
    pairs = [(r.value(figure, held_out), m.value(figure, held_out)) for r, m in zip(baselines, ours, strict=True)]
    saved = [theirs - mine for theirs, mine in pairs if theirs is not None and mine is not None]
    return _result(name, statistics.mean(saved), "nats/token", low=min(saved), high=max(saved), **more)


def _gap(measured: Sequence[Measured], k: int) -> list[ModelResult]:
    """Nats/token above the token-level student of the same backbone, over the seeds; the demo's vocabulary."""
    mine = (m for m in measured if m.model.k == k and m.model.vocabulary == "demo")
    found = []
    for size, seeds in _grouped(mine, lambda model: model.size).items():
        gaps = [m.nats - baseline.nats for m in seeds if (baseline := _baseline(measured, m)) is not None]
        if gaps:
            found.append((len(gaps), size, gaps))
    if not found:
        return []
    # Where most seeds were trained.
    _, size, gaps = max(found, key=lambda entry: entry[0])
    about = {"low": min(gaps), "high": max(gaps), "size": str(size), "seeds": len(gaps)}
    return [_result(f"gap_k{k}", statistics.mean(gaps), "nats/token", **about)]


def _beaten(measured: Sequence[Measured], k: int) -> list[ModelResult]:
    """How many token-level sizes the best student beats in both one-request speed and held-out nats/token."""
    results = []
    for vocabulary in get_args(Vocabulary):
        if (best := _best(measured, k, vocabulary)) is None:
            continue
        student, less = best
        about = {
            "student": student.model.run,
            "beaten": [str(m.model.size) for m in less],
            "beaten_in_writing": [str(m.model.size) for m in less if _writes_better(student, m)],
        }
        name = f"pareto_k{k}{'' if vocabulary == 'demo' else '_large'}"
        results.append(_result(name, len(less), "token-level sizes", **about))
    return results


def _best(measured: Sequence[Measured], k: int, vocabulary: Vocabulary) -> tuple[Measured, list[Measured]] | None:
    """The student that beats most token-level sizes, and those; of equals the one that writes best."""
    timed = [m for m in measured if _timed(m) and m.model.vocabulary == vocabulary]
    beaten = [(m, _beaten_by(m, measured)) for m in timed if m.model.k == k]
    has_baselines = any(m.model.k == 1 for m in timed)
    return max(beaten, key=lambda entry: (len(entry[1]), -entry[0].nats)) if beaten and has_baselines else None


def _beaten_by(student: Measured, measured: Sequence[Measured]) -> list[Measured]:
    """The token-level models of its vocabulary that a student beats."""
    baselines = (m for m in measured if _timed(m) and m.model.k == 1 and m.model.vocabulary == student.model.vocabulary)
    return [r for r in baselines if beats(student, r)]


def beats(student: Measured, baseline: Measured) -> bool:
    """At one request's speed and in held-out nats/token."""
    assert student.speed is not None
    assert baseline.speed is not None
    return student.speed.one_request > baseline.speed.one_request and student.nats < baseline.nats


def _writes_better(student: Measured, baseline: Measured) -> bool:
    """By what the teacher says of their text at T=0.7, beside which its variety has to be looked at."""
    ours, theirs = student.value("gen_t07_teacher_nats"), baseline.value("gen_t07_teacher_nats")
    return ours is not None and theirs is not None and ours < theirs


def speed_results(measured: Sequence[Measured]) -> list[ModelResult]:
    """Every timed student's tokens/s, one request and 16 at once, beside its backbone's token-level model."""
    ways: tuple[tuple[str, Way], ...] = (("speed", "one"), ("speed16", "many"))
    return [
        _pace(f"{name}_k{k}_{m.model.size}", m, baseline, way)
        for name, way in ways
        for k in (2, 4, 8)
        for m, baseline in _pairs(measured, k)
    ]


def _decode(measured: Sequence[Measured], k: int) -> list[ModelResult]:
    """Tokens/s of the large vocabulary's students beside the token-level one with the same backbone.

    ``decode_k4`` and ``decode_k8`` are the best ratio of a student that is worth having: there, and with the same
    backbone at the demo's vocabulary, it beats at least ``_WORTH`` token-level sizes (both numbers are in the result;
    None where it was not trained). Where there is none, that of the one that comes nearest. Larger backbones, which
    K=8 alone has, are left to ``fast_k8``, so that both K are held to the same sizes.
    """
    pairs = _pairs(measured, k)
    results = []
    for m, baseline in pairs:
        twin = _twin(measured, m.model, "demo")
        beaten = {
            "beaten": len(_beaten_by(m, measured)),
            "beaten_demo": None if twin is None else len(_beaten_by(twin, measured)),
        }
        results.append(_pace(f"decode_k{k}_{m.model.size}", m, baseline, more=_likelihoods(m, baseline) | beaten))
    if common := [result for result, (m, _) in zip(results, pairs, strict=True) if m.model.group != FAST]:
        chosen = max(common, key=lambda result: (_worth(result), result.ratio or 0.0))
        results[results.index(chosen)] = chosen.model_copy(update={"id": f"decode_k{k}"})
    return results


def _twin(measured: Sequence[Measured], student: Model, vocabulary: Vocabulary) -> Measured | None:
    """The student of the same K and backbone at a vocabulary; None where there is none."""
    twins = (m for m in measured if _timed(m) and (m.model.k, m.model.size) == (student.k, student.size))
    return next((m for m in twins if m.model.vocabulary == vocabulary), None)


def _worth(result: ModelResult) -> int:
    """How many sizes it beats wherever it was trained, no more than are asked."""
    return min(_WORTH, *(beaten for beaten in (result.beaten, result.beaten_demo) if isinstance(beaten, int)))


def _fast(measured: Sequence[Measured]) -> list[ModelResult]:
    """The K=8 setting that is fastest beside its baseline."""
    results = [_pace("fast_k8", m, baseline, more=_likelihoods(m, baseline)) for m, baseline in _pairs(measured, 8)]
    return [max(results, key=lambda result: result.ratio or 0.0)] if results else []


def _pairs(measured: Sequence[Measured], k: int) -> list[tuple[Measured, Measured]]:
    """The large vocabulary's students with their baselines."""
    mine = [m for m in measured if _timed(m) and m.model.k == k and m.model.vocabulary == "large"]
    return [(m, baseline) for m in mine if (baseline := _baseline(measured, m)) is not None and _timed(baseline)]


def _pace(
    name: str, student: Measured, baseline: Measured, way: Way = "one", more: Mapping[str, Any] | None = None
) -> ModelResult:
    """The ratio is the median over the rounds, in each of which the two were timed one after the other."""
    assert student.speed is not None
    assert baseline.speed is not None
    ours: tuple[float, ...] = getattr(student.speed, way)
    theirs: tuple[float, ...] = getattr(baseline.speed, way)
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return _result(
        name,
        statistics.median(ours),
        "tokens/s",
        baseline=f"token-level {baseline.model.size}",
        baseline_value=statistics.median(theirs),
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        size=str(student.model.size),
        **(more or {}),
    )


def _likelihoods(student: Measured, baseline: Measured) -> dict[str, Any]:
    return {"nats_per_token": student.nats, "baseline_nats_per_token": baseline.nats}


def _timed(measured: Measured) -> bool:
    return measured.speed is not None


def _baseline(measured: Sequence[Measured], student: Measured) -> Measured | None:
    """The token-level student of the same backbone, vocabulary, tokens and seed, with an induction head as it has."""
    for other in measured:
        ours, theirs = student.model, other.model
        if theirs.kind == "token-level" and all(
            getattr(ours, name) == getattr(theirs, name)
            for name in ("vocabulary", "size", "tokens", "seed", "induction")
        ):
            return other
    return None
