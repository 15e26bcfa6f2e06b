"""One run: what of it is asked for, and the results in the order of the issue's table."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.drafter import results
from benchmarks.drafter.differences import Difference
from benchmarks.drafter.measures import DrafterBench, Single, Together
from benchmarks.drafter.plan import DrafterPlan
from benchmarks.drafter.prompts import DOMAINS
from benchmarks.drafter.swaps import SwapFindings
from latentforge.core.results import Result

# Ids whose figures come from the same texts.
_TOGETHER = {"identical", "mean_accepted", "speed_8", "draft_cost"}
_SINGLE = {"identical", "speed_1", "draft_cost"}
_PASSES = {"passes", "draft_cost"}
# The issue's own, before what stands beside them.
_FIRST = (
    "identical",
    "sampled",
    "mean_accepted",
    "speed_1",
    "speed_1_vs_ngram",
    "speed_1_vs_suffix",
    "speed_8",
    "draft_cost",
    "swaps",
    "swaps_bad_used",
)
#: T that the two-sample test must tell from 1.
_CONTROL_TEMPERATURE = 0.8


@dataclass(frozen=True)
class Measurements:
    """Results, every figure behind them by id, and what is to be said of them."""

    results: list[Result] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def needs_passes(wanted: Collection[str]) -> bool:
    """Whether passes of several lengths are timed."""
    return not _PASSES.isdisjoint(wanted)


def num_figures(plan: DrafterPlan, num_drafting: int, num_students: int, wanted: Collection[str]) -> int:
    """Figures of a whole run, about."""
    engines = 1 + num_drafting
    groups = len(DOMAINS) * -(-plan.per_domain // plan.at_once)
    total = 2 * needs_passes(wanted) + ("swaps" in wanted)
    total += engines * groups * (not _TOGETHER.isdisjoint(wanted))
    total += engines * len(DOMAINS) * plan.single_per_domain * plan.repeats * (not _SINGLE.isdisjoint(wanted))
    # The teacher alone twice: at T = 1, and what the test must find.
    return total + (num_students + 2) * plan.sampled_prompts * ("sampled" in wanted)


def measure(
    bench: DrafterBench,
    wanted: Collection[str],
    students: Sequence[str],
    passes_ms: dict[int, dict[int, float]],
    swapped: SwapFindings | None = None,
) -> Measurements:
    """All that is asked for.

    Args:
        students: names of the methods that are ours, the one that the bars are for first.
        passes_ms: milliseconds of a pass by requests at once and tokens; nothing where they were not timed.
        swapped: what came of swaps, if any were made.
    """
    bench.report.begin("warming up")
    bench.warm_up()
    together = bench.together() if not _TOGETHER.isdisjoint(wanted) else None
    single = bench.single() if not _SINGLE.isdisjoint(wanted) else None
    found = Measurements()
    if passes_ms:
        found.results.extend(results.pass_results(passes_ms))
        found.measured["passes_ms"] = passes_ms
    if together is not None and single is not None and "identical" in wanted:
        _of_one_request(bench, together, single, students, found)
    for engine in bench.drafting:
        name = engine.method.name
        suffix = "" if name in students[:1] else f"_{name}"
        if together is not None:
            _of_together(bench, together, name, suffix, wanted, found)
        if single is not None and "speed_1" in wanted:
            others = [other.method.name for other in bench.drafting if other.method.name not in students]
            baselines = others if name in students else []
            found.results.extend(results.single_speeds(name, suffix, single, bench.alone.method.name, baselines))
            _say_domains(bench, single, name, suffix, found)
        if passes_ms and "draft_cost" in wanted:
            costs = results.drafting_costs(name, suffix, passes_ms, single, together)
            found.results.extend(costs)
            if single is not None and costs:
                _of_parts(bench, single, name, suffix, passes_ms[1], costs[0], found)
    if "sampled" in wanted:
        _sampled(bench, students, found)
    if swapped is not None:
        found.results.extend(results.swap_results(swapped))
        found.measured["swaps"] = swapped.said
    return Measurements(_in_order(found.results), found.measured, found.notes)


def _of_together(
    bench: DrafterBench, together: Together, name: str, suffix: str, wanted: Collection[str], found: Measurements
) -> None:
    alone = bench.alone.method.name
    if "identical" in wanted:
        parted = bench.differing(bench.ids, together.texts(alone), together.texts(name))
        of = results.identical(suffix, parted, len(bench.ids))
        found.results.extend(of.results)
        found.measured.update(of.measured)
        found.notes.extend(_said(one, name) for one in parted)
    if "mean_accepted" in wanted:
        of = results.accepted(name, suffix, together, bench.plan.most_drafted)
        found.results.extend(of.results)
        found.measured.update(of.measured)
    if "speed_8" in wanted:
        found.results.extend(results.together_speeds(name, suffix, together, alone))
        found.measured[f"speed_8{suffix}"] = [
            {"domain": domain, "ours_s": ours.seconds, "alone_s": theirs.seconds, "tokens": ours.tokens}
            for domain, ours, theirs in zip(together.domains, together.of(name), together.of(alone), strict=True)
        ]


def _of_one_request(
    bench: DrafterBench, together: Together, single: Single, students: Sequence[str], found: Measurements
) -> None:
    """Texts that part where a request is alone, and how often the teacher's own do so from eight at once.

    A pass over one token may be computed by another kernel than one over several: then both part at ties.
    """
    alone = bench.alone.method.name
    prompts = bench.single_ids()
    plain = single.texts(alone)
    texts = dict(zip(map(tuple, bench.ids), together.texts(alone), strict=True))
    sides = {"_control": [texts[tuple(ids)] for ids in prompts]}
    for engine in bench.drafting:
        name = engine.method.name
        sides["_1" if name in students[:1] else f"_1_{name}"] = single.texts(name)
    for suffix, other in sides.items():
        parted = bench.differing(prompts, plain, other)
        of = results.identical(suffix, parted, len(prompts))
        found.results.extend(of.results)
        found.measured.update(of.measured)
        found.notes.extend(_said(one, suffix.strip("_")) for one in parted)


def _say_domains(bench: DrafterBench, single: Single, name: str, suffix: str, found: Measurements) -> None:
    alone = bench.alone.method.name
    each = {domain: results.single_speed_of(name, single, alone, domain) for domain in DOMAINS}
    found.measured[f"speed_1{suffix}"] = {
        "ratio_by_domain": each,
        "ours_s": [sum(one.seconds for one in repeat) for repeat in single.written[name]],
        "alone_s": [sum(one.seconds for one in repeat) for repeat in single.written[alone]],
    }
    said = ", ".join(f"{domain} {ratio:.2f}" for domain, ratio in each.items())
    found.notes.append(f"speed_1{suffix} by domain, times vLLM alone: {said}")


def _of_parts(
    bench: DrafterBench,
    single: Single,
    name: str,
    suffix: str,
    passes_ms: dict[int, float],
    cost: Result,
    found: Measurements,
) -> None:
    """What the measured parts come to, where passes were flat and for the bar."""
    assert cost.value is not None
    of = results.single_acceptance(name, single, bench.plan.most_drafted)
    found.results.append(results.flat_speed(suffix, of.tokens_per_pass, cost.value))
    found.measured[f"single_acceptance{suffix}"] = asdict(of)
    if not suffix or bench.drafting[0].method.name == name:
        step_ms = results.step_ms_of(single, bench.alone.method.name)
        found.measured["step_ms"] = step_ms
        floors = results.floors(passes_ms, step_ms, cost.value)
        found.results.extend(floors)
        drafted = [tokens - 1 for tokens in passes_ms if tokens > 1]
        found.notes.extend(results.note_on_floor(*pair) for pair in zip(floors, drafted, strict=True))


def _sampled(bench: DrafterBench, students: Sequence[str], found: Measurements) -> None:
    control = bench.sampled(bench.alone, _CONTROL_TEMPERATURE)
    found.results.append(results.sampled_result("_control", control))
    # What others draft is of interest where there is no student.
    for engine in [one for one in bench.drafting if one.method.name in students] or bench.drafting:
        name = engine.method.name
        suffix = "" if name in students[:1] else f"_{name}"
        of = bench.sampled(engine)
        found.results.append(results.sampled_result(suffix, of))
        found.measured[f"sampled{suffix}"] = asdict(of)
        found.notes.append(f"sampled{suffix}: of {of.drafted} tokens drafted {of.accepted} were accepted")


def _said(one: Difference, name: str) -> str:
    gap = "" if one.gap is None else f", {one.gap:.4f} nats apart"
    return (
        f"identical, {name}: prompt {one.prompt}, token {one.position}: {one.drafted} for {one.plain}, "
        f"{one.kind}{gap}; likeliest {list(one.top)}"
    )


def _in_order(found: Sequence[Result]) -> list[Result]:
    """Those with bars first, as they were found."""
    return sorted(found, key=lambda result: result.id not in _FIRST)
