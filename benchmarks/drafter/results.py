"""What was written, as results: a list for each id of the issue's table, and what stands beside it."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.drafter.differences import Difference
from benchmarks.drafter.engines import WrittenTexts
from benchmarks.drafter.measures import Sampled, Single, Together
from benchmarks.drafter.passes import (
    DraftAcceptance,
    acceptance,
    acceptance_needed,
    draft_cost,
    step_seconds,
    tokens_needed,
)
from benchmarks.drafter.prompts import DOMAINS, Domain
from benchmarks.drafter.swaps import SwapFindings
from latentforge.core.results import Result

ALONE = "vLLM alone"
#: Times as fast as alone that speed_1 asks for.
GAIN = 1.4


@dataclass(frozen=True)
class FoundFigures:
    """Results and every figure behind them, by id."""

    results: list[Result]
    measured: dict[str, Any]


def speeds(
    id_: str, ours: Sequence[Sequence[WrittenTexts]], baseline: Sequence[Sequence[WrittenTexts]], name: str
) -> Result:
    """Tokens per second of several parts (repeats, or domains): the median ratio, and the least and the greatest.

    Args:
        ours, baseline: of each part what was written, of both the same prompts.
        name: of the baseline.
    """
    own, theirs = ([_pace(part) for part in side] for side in (ours, baseline))
    ratios = [a / b for a, b in zip(own, theirs, strict=True)]
    return Result(
        id=id_,
        value=statistics.median(own),
        unit="tokens/s",
        baseline=name,
        baseline_value=statistics.median(theirs),
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
    )


def accepted(method: str, suffix: str, found: Together, most_drafted: int) -> FoundFigures:
    """Tokens per pass of the teacher, by domain and their mean."""
    by_domain = {domain: _acceptance(found.of(method, domain), most_drafted) for domain in DOMAINS}
    each = {domain: of.tokens_per_pass for domain, of in by_domain.items()}
    results = [
        Result(
            id=f"mean_accepted{suffix}",
            value=statistics.fmean(each.values()),
            unit="tokens/pass",
            low=min(each.values()),
            high=max(each.values()),
        ),
        *(
            Result(id=f"mean_accepted_{domain}{suffix}", value=value, unit="tokens/pass")
            for domain, value in each.items()
        ),
    ]
    measured = {domain: asdict(of) | {"by_position": of.by_position} for domain, of in by_domain.items()}
    return FoundFigures(results, {f"mean_accepted{suffix}": measured})


def identical(suffix: str, parted: Sequence[Difference], num_texts: int) -> FoundFigures:
    """Texts that are not the teacher's own, ties at rounding counted apart."""
    ties = [one for one in parted if one.kind == "tie"]
    unit = f"of {num_texts} texts"
    results = [
        Result(id=f"identical{suffix}", value=len(parted) - len(ties), unit=unit),
        Result(id=f"identical_ties{suffix}", value=len(ties), unit=unit),
    ]
    return FoundFigures(results, {f"identical{suffix}": [asdict(one) for one in parted]})


def together_speeds(method: str, suffix: str, found: Together, alone: str) -> list[Result]:
    """speed_8: over all groups, bounded by the domains, and the slowest domain by itself."""
    ours, theirs = ([found.of(name, domain) for domain in DOMAINS] for name in (method, alone))
    of_domains = speeds(f"speed_8{suffix}", ours, theirs, ALONE)
    own, baseline = _pace(found.of(method)), _pace(found.of(alone))
    whole = of_domains.model_copy(update={"value": own, "baseline_value": baseline, "ratio": own / baseline})
    slowest = Result(id=f"speed_8_least{suffix}", value=whole.low, unit="times vLLM alone, the slowest domain")
    return [whole, slowest]


def single_speeds(method: str, suffix: str, found: Single, alone: str, baselines: Sequence[str]) -> list[Result]:
    """speed_1 beside vLLM alone and beside other ways to draft."""
    ours = found.written[method]
    return [
        speeds(f"speed_1{suffix}", ours, found.written[alone], ALONE),
        *(speeds(f"speed_1_vs_{name}{suffix}", ours, found.written[name], name) for name in baselines),
    ]


def single_speed_of(method: str, found: Single, alone: str, domain: Domain) -> float:
    """Times as fast as alone in one domain, over all repeats."""
    sides = []
    for name in (method, alone):
        written = [one for repeat in found.written[name] for one in _of_domain(repeat, found.domains, domain)]
        sides.append(_pace(written))
    return sides[0] / sides[1]


def drafting_costs(
    method: str, suffix: str, passes_ms: dict[int, dict[int, float]], single: Single | None, together: Together | None
) -> list[Result]:
    """Time to draft over a pass of one token, for one request and for several at once.

    Args:
        passes_ms: milliseconds of a pass by requests at once and by tokens.
    """
    results = []
    alone = [one for repeat in single.written[method] for one in repeat] if single else []
    company = together.of(method) if together else []
    for end, at_once, written in (("", 1, alone), ("_8", max(passes_ms), company)):
        passes = [noted for one in written for noted in one.passes]
        cost = draft_cost(passes, passes_ms[at_once][1] / 1000, at_once)
        if cost is not None:
            results.append(Result(id=f"draft_cost{end}{suffix}", value=cost, unit="passes without drafts"))
    return results


def pass_results(passes_ms: dict[int, dict[int, float]]) -> list[Result]:
    """What a pass of more tokens costs, in passes of one."""
    return [
        Result.compared(
            f"pass_{tokens}" if at_once == 1 else f"pass_{tokens}_{at_once}",
            took,
            "ms",
            baseline="a pass of 1 token",
            baseline_value=by_tokens[1],
            smaller_is_better=True,
        )
        for at_once, by_tokens in passes_ms.items()
        for tokens, took in by_tokens.items()
        if tokens > 1
    ]


def floors(passes_ms: dict[int, float], step_ms: float, cost: float) -> list[Result]:
    """Tokens a pass must give for speed_1's bar, by the length of drafts, from the measured times of passes.

    Args:
        passes_ms: of one request, by tokens.
        step_ms: from one pass of one token to the next, scheduling and messages included.
        cost: of drafting, in passes of one token.
    """
    draft_ms = cost * passes_ms[1]
    return [
        Result(
            id=f"needed_{tokens - 1}",
            value=tokens_needed(GAIN, step_ms, step_ms - passes_ms[1] + took, draft_ms),
            unit=f"tokens/pass for {GAIN:g} times, drafts of {tokens - 1}",
        )
        for tokens, took in passes_ms.items()
        if tokens > 1
    ]


def note_on_floor(result: Result, drafted: int) -> str:
    """What acceptance a floor takes, whoever drafts at that cost."""
    assert result.value is not None
    share = acceptance_needed(result.value, drafted)
    said = "which no draft of that length gives" if share is None else f"an acceptance of {share:.2f} at every position"
    return f"{result.id}: {result.value:.2f} tokens a pass, {said}"


def flat_speed(suffix: str, tokens_per_pass: float, cost: float) -> Result:
    """speed_1 where a pass of a whole draft costs as one of one token: arithmetic from measured parts."""
    value = tokens_per_pass / (1 + cost)
    return Result(id=f"speed_1_flat{suffix}", value=value, unit="times vLLM alone, were passes of 9 as fast as of 1")


def sampled_result(suffix: str, found: Sampled) -> Result:
    """p of the two-sample test."""
    return Result(id=f"sampled{suffix}", value=found.p, unit=f"p, {found.samples} texts a side")


def swap_results(found: SwapFindings) -> list[Result]:
    """Texts that were wrong, and bad checkpoints that drafted."""
    unit = f"wrong of {found.texts} texts, while {found.published} checkpoints came"
    return [
        Result(id="swaps", value=found.wrong, unit=unit),
        Result(id="swaps_bad_used", value=len(found.bad_used), unit=f"of {len(found.bad)} bad checkpoints"),
    ]


def single_acceptance(method: str, found: Single, most_drafted: int) -> DraftAcceptance:
    """Of the requests that were alone."""
    return _acceptance([one for repeat in found.written[method] for one in repeat], most_drafted)


def step_ms_of(found: Single, alone: str) -> float:
    """Milliseconds from one pass of vLLM alone to the next, one request; median."""
    steps = [took for repeat in found.written[alone] for one in repeat for took in step_seconds(one.passes, 1)]
    return 1000 * statistics.median(steps)


def _pace(written: Sequence[WrittenTexts]) -> float:
    return sum(one.tokens for one in written) / sum(one.seconds for one in written)


def _of_domain(written: Sequence[WrittenTexts], domains: Sequence[Domain], domain: Domain) -> list[WrittenTexts]:
    return [one for one, of in zip(written, domains, strict=True) if of == domain]


def _acceptance(written: Sequence[WrittenTexts], most_drafted: int) -> DraftAcceptance:
    passes = [noted for one in written for noted in one.passes]
    return acceptance(passes, [ids for one in written for ids in one.token_ids], most_drafted)
