"""Decode speed: the student beside a token-level model with the same backbone, one request at a time."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from latentforge.core.results import Result, ResultsFile
from latentforge.model.decoding.batch import BatchDecoding
from latentforge.model.decoding.build import batch_decoding
from latentforge.model.devices import device_description
from latentforge.model.engine import offline
from latentforge.model.engine.offline import GenerationResult
from latentforge.model.engine.requests import GenerationRequest
from latentforge.model.sampling import SamplingParams
from latentforge.model.token_level import TokenLevelModel, token_level_config
from latentforge.snapshots.snapshot import Snapshot

BASELINE = "token-level model, same backbone width and depth, KV cache"
BASELINE_NOTE = (
    "The token-level model's weights are random: its speed depends on its sizes alone, since both are made to write "
    "exactly max_tokens tokens (no end of text), drawn with the same settings."
)
_WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Pace:
    """One repeat over all prompts: tokens, steps and seconds in total, prompts' own processing included."""

    tokens: int
    steps: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.seconds


@dataclass(frozen=True)
class BenchPaces:
    """Paces of all repeats, ours and the baseline's at the same index taken one right after the other."""

    ours: list[Pace]
    baseline: list[Pace]

    def results(self, suffix: str = "") -> list[Result]:
        """What the file says; low and high bound the ratio where there is a baseline, else the value.

        Args:
            suffix: of the results' ids.
        """
        ratios = [a.tokens_per_second / b.tokens_per_second for a, b in zip(self.ours, self.baseline, strict=True)]
        steps = [pace.steps_per_second for pace in self.ours]
        compression = [pace.tokens / pace.steps for pace in self.ours]
        return [
            Result.compared(
                f"decode_tokens_per_s{suffix}",
                statistics.median(pace.tokens_per_second for pace in self.ours),
                "tokens/s",
                baseline=BASELINE,
                baseline_value=statistics.median(pace.tokens_per_second for pace in self.baseline),
                low=min(ratios),
                high=max(ratios),
            ),
            _alone(f"latent_steps_per_s{suffix}", steps, "steps/s"),
            _alone(f"compression_ratio{suffix}", compression, "tokens/step"),
        ]


class BenchResults(ResultsFile):
    """``bench_<time>.json``.

    Attributes:
        checkpoint: whose student it was.
        chunk_size: its K.
        torch_threads: of torch.
        sampling: how tokens were drawn, by the suffix of the results' ids.
        note: about the baseline.
        max_tokens, repeats, num_prompts: how much was written.
    """

    checkpoint: str
    chunk_size: int
    torch_threads: int
    sampling: dict[str, dict[str, Any]]
    note: str = BASELINE_NOTE
    max_tokens: int
    repeats: int
    num_prompts: int


def read_prompts(path: Path) -> list[str]:
    """One prompt a line, empty lines left out.

    Raises:
        ValueError: the file cannot be read, or holds no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"PROMPTS_FILE {path} cannot be read: {error}; give a text file with one prompt a line"
        ) from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"PROMPTS_FILE {path} holds no prompt; write one a line")
    return prompts


def measure(
    snapshot: Snapshot,
    prompts: Sequence[str],
    max_tokens: int,
    repeats: int,
    params: SamplingParams,
    on_run: Callable[[], None] = lambda: None,
) -> BenchPaces:
    """Runs every prompt ``repeats`` times with both models, one request at a time.

    The two alternate, and who goes first alternates too, so that neither has the cooler or quieter machine.

    Args:
        on_run: called after every request, 2 · repeats · len(prompts) times.

    Raises:
        ValueError: a prompt and max_tokens do not fit into the context.
    """
    baseline_model = TokenLevelModel(token_level_config(snapshot.model.student.config)).to(snapshot.model.device)
    baseline = batch_decoding(baseline_model, 1)
    prompt_ids = [snapshot.encode(prompt) for prompt in prompts]

    def run(decoding: BatchDecoding, ids: list[int], tokens: int) -> GenerationResult:
        [generation] = offline.run([GenerationRequest(decoding, ids, tokens, params)])
        if len(generation.token_ids) != tokens:
            raise ValueError(
                f"MAX_TOKENS is {tokens}, but after a prompt of {len(ids)} tokens there is room for "
                f"{len(generation.token_ids)} of {snapshot.max_context_tokens}; set it lower"
            )
        return generation

    for decoding in (snapshot.decoding, baseline):
        run(decoding, prompt_ids[0], min(max_tokens, _WARM_UP_TOKENS))
    ours: list[Pace] = []
    theirs: list[Pace] = []
    for repeat in range(repeats):
        order: list[tuple[BatchDecoding, list[GenerationResult]]]
        order = [(snapshot.decoding, []), (baseline, [])]
        for index, ids in enumerate(prompt_ids):
            for decoding, done in order if (repeat + index) % 2 == 0 else reversed(order):
                done.append(run(decoding, ids, max_tokens))
                on_run()
        ours.append(_pace(order[0][1]))
        theirs.append(_pace(order[1][1]))
    return BenchPaces(ours, theirs)


def table(results: Sequence[Result], title: str) -> Table:
    """The results for a terminal."""
    out = Table(title=title, caption=BASELINE_NOTE, caption_justify="left")
    for name in ("id", "value", "unit", "token-level", "ratio", "low", "high"):
        out.add_column(name, justify="left" if name in ("id", "unit") else "right", no_wrap=True)
    for result in results:
        numbers = (result.baseline_value, result.ratio, result.low, result.high)
        cells = ("" if n is None else f"{n:.2f}" for n in numbers)
        out.add_row(result.id, f"{result.value:.2f}", result.unit, *cells)
    return out


def write(
    folder: Path,
    snapshot: Snapshot,
    results: Sequence[Result],
    command: str,
    samplings: Mapping[str, SamplingParams],
    seed: int,
    **how: int,
) -> Path:
    """Writes ``bench_<time>.json``; ``how`` are max_tokens, repeats and num_prompts."""
    device = snapshot.model.device
    return BenchResults(
        name="bench",
        command=command,
        device=device_description(device),
        seed=seed,
        results=tuple(results),
        checkpoint=snapshot.id,
        chunk_size=snapshot.manifest.chunk_size,
        torch_threads=torch.get_num_threads(),
        sampling={suffix: params.model_dump(exclude={"seed"}) for suffix, params in samplings.items()},
        **how,
    ).write(folder)


def _alone(id: str, values: Sequence[float], unit: str) -> Result:  # noqa: A002
    return Result(id=id, value=statistics.median(values), unit=unit, low=min(values), high=max(values))


def _pace(runs: Sequence[GenerationResult]) -> Pace:
    return Pace(
        sum(len(run.token_ids) for run in runs),
        sum(run.timings.steps for run in runs),
        sum(run.timings.running_seconds for run in runs),
    )
