"""Everything that is measured: all engines write the same, in turns."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.benchmark import Report
from benchmarks.drafter.differences import Difference, differences, judged
from benchmarks.drafter.engines import VllmEngine, WrittenTexts
from benchmarks.drafter.fixed_drafter import LENGTHS
from benchmarks.drafter.passes import seconds_by_length
from benchmarks.drafter.plan import DrafterPlan
from benchmarks.drafter.prompts import DOMAINS, Domain, DrafterPrompt
from benchmarks.drafter.two_sample import two_sample_p

# Seeds of the two sides must not meet.
_SEEDS_APART = 1_000_000
# A beginning that is soon read: chats must be whole, of other texts so many tokens are enough.
_BEGINNING = 24


@dataclass(frozen=True)
class Together:
    """What every method wrote, group after group: prompts of one domain at once."""

    domains: list[Domain]
    written: dict[str, list[WrittenTexts]]

    def of(self, method: str, domain: Domain | None = None) -> list[WrittenTexts]:
        """A method's groups of a domain; None takes all."""
        pairs = zip(self.domains, self.written[method], strict=True)
        return [written for of, written in pairs if domain in (None, of)]

    def texts(self, method: str) -> list[list[int]]:
        """Ids of every text, in the order of the prompts."""
        return [ids for written in self.written[method] for ids in written.token_ids]


@dataclass(frozen=True)
class Single:
    """What every method wrote one request at a time: a list of texts for each repeat."""

    domains: list[Domain]
    written: dict[str, list[list[WrittenTexts]]]

    def texts(self, method: str) -> list[list[int]]:
        """Ids of every text of the first repeat."""
        return [ids for written in self.written[method][0] for ids in written.token_ids]


@dataclass(frozen=True)
class Sampled:
    """One method's texts beside the teacher's alone.

    Attributes:
        p: of the two-sample test.
        drafted, accepted: tokens, so that a test of no drafts is seen.
        samples: texts of each side.
    """

    p: float
    drafted: int
    accepted: int
    samples: int


@dataclass(kw_only=True)
class DrafterBench:
    """One run.

    Attributes:
        plan: how much is measured.
        prompts, ids: what is asked, and its token ids.
        dtype: that the teacher computes in.
        engines: by the name of their method; the first drafts nothing.
        report: is told of the progress.
    """

    plan: DrafterPlan
    prompts: Sequence[DrafterPrompt]
    ids: Sequence[Sequence[int]]
    dtype: str
    engines: Mapping[str, VllmEngine]
    report: Report
    seed: int = 0
    _turn: int = field(default=0, init=False)
    _plain_samples: list[list[list[int]]] | None = field(default=None, init=False)

    @property
    def alone(self) -> VllmEngine:
        return next(iter(self.engines.values()))

    @property
    def drafting(self) -> list[VllmEngine]:
        return list(self.engines.values())[1:]

    def warm_up(self) -> None:
        """Lets every engine compile what it will need."""
        for engine in self.engines.values():
            engine.write(self.ids[: self.plan.at_once], 8)
            engine.write(self.ids[:1], 8)

    def together(self) -> Together:
        """All prompts, ``at_once`` at a time."""
        found = Together([], {name: [] for name in self.engines})
        for engine in self.engines.values():
            engine.write(self.ids[:1], 1, forget=True)
        for domain, group in self._groups(self.plan.at_once):
            found.domains.append(domain)
            for engine in self._in_turns():
                written = engine.write(group, self.plan.new_tokens)
                found.written[engine.method.name].append(written)
                self._tell(f"{len(group)} at once, {domain}", engine, written)
        return found

    def single(self) -> Single:
        """Some of the prompts one request at a time, all of them in every repeat."""
        chosen = self._single()
        found = Single([domain for domain, _ in chosen], {name: [] for name in self.engines})
        for _ in range(self.plan.repeats):
            for name, engine in self.engines.items():
                found.written[name].append([])
                engine.write(self.ids[:1], 1, forget=True)
            for domain, ids in chosen:
                for engine in self._in_turns():
                    written = engine.write([ids], self.plan.new_tokens)
                    found.written[engine.method.name][-1].append(written)
                    self._tell(f"one request, {domain}", engine, written)
        return found

    def single_ids(self) -> list[Sequence[int]]:
        """What :meth:`single` asks for, in its order."""
        return [ids for _, ids in self._single()]

    def differing(
        self, prompts: Sequence[Sequence[int]], plain: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]
    ) -> list[Difference]:
        """Where texts part from the teacher's own, with what the teacher alone finds likeliest there.

        Args:
            prompts, plain, texts: ids; of each prompt what was written without drafts, and with.
        """
        parted = differences(plain, texts)
        beginnings = [[*prompts[one.prompt], *plain[one.prompt][: one.position]] for one in parted]
        tops = self.alone.write(beginnings, 1, with_top=True).top if parted else []
        return [judged(one, top, self.dtype) for one, top in zip(parted, tops, strict=True)]

    def sampled(self, engine: VllmEngine, temperature: float = 1.0) -> Sampled:
        """Texts of an engine beside the teacher's alone at T = 1, each with seeds of its own.

        Args:
            temperature: of the engine's texts; another one than 1 is what the test has to find.
        """
        plan = self.plan
        if self._plain_samples is None:
            self._plain_samples = [one.token_ids for one in self._samples(self.alone, 1.0, side=0)]
        written = self._samples(engine, temperature, side=1)
        theirs = [one.token_ids for one in written]
        p = two_sample_p(self._plain_samples, theirs, plan.sampled_tokens, plan.permutations, self.seed)
        read = [each for one in written for noted in one.passes for each in noted.requests if each[0]]
        drafted = sum(of or 0 for of, _ in read)
        accepted = sum(given - 1 for _, given in read)
        return Sampled(p, drafted, accepted, plan.samples * plan.sampled_prompts)

    def _samples(self, engine: VllmEngine, temperature: float, side: int) -> list[WrittenTexts]:
        """What an engine draws behind each of the beginnings."""
        found = []
        for number, beginning in enumerate(self._beginnings()):
            first = self.seed + side * _SEEDS_APART + number * self.plan.samples
            found.append(
                engine.write(
                    [beginning] * self.plan.samples,
                    self.plan.sampled_tokens,
                    temperature=temperature,
                    seeds=range(first, first + self.plan.samples),
                    forget=True,
                    at_once=None if engine is self.alone else self.plan.sampled_at_once,
                )
            )
            self._tell(f"sampled at T = {temperature:g}, prompt {number + 1}", engine, found[-1])
        return found

    def _single(self) -> list[tuple[Domain, Sequence[int]]]:
        return [
            (domain, ids)
            for place in range(self.plan.single_per_domain)
            for domain in DOMAINS
            for ids in self._of(domain)[place : place + 1]
        ]

    def _beginnings(self) -> list[Sequence[int]]:
        """Of the domains' first prompts in turns."""
        chosen: list[Sequence[int]] = []
        for number in range(self.plan.sampled_prompts):
            domain = DOMAINS[number % len(DOMAINS)]
            ids = self._of(domain)[number // len(DOMAINS)]
            chosen.append(ids if domain == "chat" else ids[:_BEGINNING])
        return chosen

    def _of(self, domain: Domain) -> list[Sequence[int]]:
        return [ids for prompt, ids in zip(self.prompts, self.ids, strict=True) if prompt.domain == domain]

    def _groups(self, size: int) -> Iterator[tuple[Domain, list[Sequence[int]]]]:
        for domain in DOMAINS:
            ids = self._of(domain)
            for start in range(0, len(ids), size):
                yield domain, ids[start : start + size]

    def _in_turns(self) -> list[VllmEngine]:
        """All engines, each in turn the first."""
        engines = list(self.engines.values())
        self._turn += 1
        first = self._turn % len(engines)
        return [*engines[first:], *engines[:first]]

    def _tell(self, what: str, engine: VllmEngine, written: WrittenTexts) -> None:
        self.report.figure(f"{what}, {engine.method.name}: {written.tokens / written.seconds:,.1f} tokens/s")


def time_passes(engine: VllmEngine, ids: Sequence[Sequence[int]], passes: int, at_once: int) -> dict[int, float]:
    """Milliseconds of the teacher's passes by the tokens that each request is read by: 1, 3, 5 and 9; medians.

    The worker alone, without scheduling and messages, behind real prompts.

    Args:
        engine: drafts by ``fixed_drafter``.
        passes: of each length; texts are as long as these need, drafts being nearly always wrong.
        at_once: requests.
    """
    noted = engine.write(ids[:at_once], len(LENGTHS) * passes).passes
    found = seconds_by_length(noted, at_once)
    return {tokens: 1000 * statistics.median(took) for tokens, took in found.items()}
