"""One cell: every model reads the same contexts, then all write behind them in turns."""

import gc
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from benchmarks.benchmark import Benchmark, in_turns
from benchmarks.inference.decoding import fastest_threads
from benchmarks.inference.floor import step_products
from benchmarks.inference.vllm_baseline import VllmError
from benchmarks.inference.workload import PLAIN, random_prompt_ids
from benchmarks.long_context.cost import TokenCost, token_cost
from benchmarks.long_context.device_speed import DeviceSpeed
from benchmarks.long_context.models import build_model, twin_config
from benchmarks.long_context.plan import MODELS, LongContextCell, LongContextModel, LongContextPlan
from benchmarks.long_context.texts import LongTexts
from benchmarks.long_context.vllm_twin import cache_bytes_per_token, vllm_paces_behind

VLLM, VLLM_NAME = "vllm", "token-level twin in vLLM"


class LongContextFigures(BaseModel):
    """What one model gave in one cell.

    Attributes:
        cell: its id.
        requests, context: texts at once, and tokens before the first figure of each.
        model, name: as of :class:`LongContextModel`; ``vllm`` is the twin in vLLM.
        chunk_size: tokens a step.
        threads: of torch; None where the baseline chose by itself.
        paces: tokens/s of all texts together, one figure a repeat.
        cost: what a token costs at least; None where that is not known.
        cache_bytes: memory that was taken for keys and values; None where that is not known.
        cache_bytes_per_token: the same for each token of a text that it has room for.
    """

    model_config = ConfigDict(frozen=True)

    cell: str
    requests: int
    context: int
    model: str
    name: str
    chunk_size: int
    threads: int | None
    paces: list[float]
    cost: TokenCost | None
    cache_bytes: int | None
    cache_bytes_per_token: float | None

    @property
    def pace(self) -> float:
        """The median."""
        return statistics.median(self.paces)


@dataclass(kw_only=True)
class LongContextBench(Benchmark):
    """One run of the benchmark.

    Attributes:
        plan: how much is measured.
        device: of the models in this process.
        threads: numbers of torch threads that each model may try.
        speed: of the device.
        vllm: whether the twin runs in vLLM too.
        scratch: a folder that is removed at the end.
    """

    plan: LongContextPlan
    device: torch.device
    threads: tuple[int, ...]
    speed: DeviceSpeed
    vllm: bool
    scratch: Path

    def figures_of(self, cell: LongContextCell) -> list[LongContextFigures]:
        """Measures every model in a cell; of the device's memory nothing stays taken.

        Raises:
            torch.OutOfMemoryError: the device has too little for all models' caches.
        """
        prompts = random_prompt_ids(cell.requests, cell.context, self.plan.size.vocab_size)
        # In a process of its own, while nothing of ours takes memory.
        beside = self._in_vllm(cell, prompts) if self.vllm else []
        try:
            return self._in_engine(cell, prompts) + beside
        finally:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _in_engine(self, cell: LongContextCell, prompts: Sequence[Sequence[int]]) -> list[LongContextFigures]:
        plan, room = self.plan, self.plan.room(len(self.threads))
        texts, costs, threads = {}, {}, {}
        for of in MODELS:
            torch.set_num_threads(max(self.threads))
            model = build_model(of, plan.size, cell.context + room, self.device)
            # A figure's tokens stand behind this many on average.
            products = step_products(model, cell.context + room // 2, cell.requests)
            costs[of] = token_cost(products, cell.requests * of.chunk_size, self.speed)
            texts[of] = LongTexts(model, prompts, room, PLAIN)
            self._read(f"{cell.id}, {of.name}", texts[of])
            threads[of] = fastest_threads(partial(texts[of].pace, plan.trial_tokens), self.threads)

        def pace(of: LongContextModel) -> float:
            torch.set_num_threads(threads[of])
            return texts[of].pace(plan.new_tokens)

        names = {of.key: of.name for of in MODELS}
        paces = in_turns(
            {of.key: partial(pace, of) for of in MODELS},
            self.repeats,
            lambda key, figure: self.report.figure(f"{cell.id}, {names[key]}: {figure:,.4g} tokens/s"),
        )
        return [
            LongContextFigures(
                cell=cell.id,
                requests=cell.requests,
                context=cell.context,
                model=of.key,
                name=of.name,
                chunk_size=of.chunk_size,
                threads=threads[of],
                paces=paces[of.key],
                cost=costs[of],
                cache_bytes=texts[of].cache_bytes,
                cache_bytes_per_token=texts[of].cache_bytes / (cell.requests * (cell.context + room)),
            )
            for of in MODELS
        ]

    def _read(self, what: str, texts: LongTexts) -> None:
        """Reads the prompts, and tells of it now and then."""
        told = -1

        def tell(share: float) -> None:
            nonlocal told
            if int(4 * share) > told:
                told = int(4 * share)
                self.report.begin(f"{what}: {share:.0%} of the contexts read")

        tell(0.0)
        texts.read(tell)

    def _in_vllm(self, cell: LongContextCell, prompts: Sequence[Sequence[int]]) -> list[LongContextFigures]:
        plan = self.plan
        config = twin_config(plan.size, cell.context + plan.new_tokens)
        self.report.begin(f"{cell.id}, {VLLM_NAME}")
        try:
            found = vllm_paces_behind(config, prompts, plan.new_tokens, self.repeats, self.scratch / cell.id)
        except VllmError as error:
            self.notes.append(f"{cell.id}: {error}")
            return []
        for figure in found.tokens_per_second:
            self.report.figure(f"{cell.id}, {VLLM_NAME}: {figure:,.4g} tokens/s")
        return [
            LongContextFigures(
                cell=cell.id,
                requests=cell.requests,
                context=cell.context,
                model=VLLM,
                name=f"{VLLM_NAME} {found.version}, CPU build, bfloat16",
                chunk_size=1,
                threads=None,
                paces=found.tokens_per_second,
                cost=None,
                cache_bytes=None,
                cache_bytes_per_token=cache_bytes_per_token(config),
            )
        ]
