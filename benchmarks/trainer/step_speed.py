"""How fast a student learns, beside a token-level one and beside itself as it was."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from benchmarks.trainer.bench import BenchError, TrainerBench
from benchmarks.trainer.workers import StepJob, StepWorker, checkout_of
from benchmarks.trainer.workload import TEACHER, write_batches
from latentforge.core.results import Result
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.recipe import Recipe, load_recipe
from latentforge.trainer.config.settings import TrainerSettings

BEFORE = "c66e1e7"
_BATCHES = 4
# Rounding alone: the same sums in another order, over some steps.
_SAME_LOSS = 1e-3


def student_tokens_per_s(bench: TrainerBench) -> list[Result]:
    """Tokens a second that the recipe's student learns, beside its token-level model: the same backbone, batches with
    the shipped teacher's rows, objective and optimizer. A process each, which step in turns; wall-clock time, the
    medians; the trainer's own number of threads beside a gateway.
    """
    with ExitStack() as stack:
        student = _worker(bench, stack, "student", "student")
        twin = _worker(bench, stack, "token-level", "token-level")
        return [_compared(bench, "student_tokens_per_s", student, twin, "the token-level model")]


def against_before(bench: TrainerBench) -> list[Result]:
    """Tokens a second that the recipe's student learns, beside commit c66e1e7's code with this Python and torch, from
    the same weights on the same batches; their losses must agree.
    """
    with ExitStack() as stack:
        now = _worker(bench, stack, "now", "student")
        before = _worker(bench, stack, "before", "student", checkout_of(BEFORE, bench.scratch / BEFORE))
        result = _compared(bench, "against_before", now, before, f"commit {BEFORE}")
    pairs = list(zip(now.figures.losses, before.figures.losses, strict=True))
    apart = max(abs(a - b) / abs(b) for a, b in pairs)
    bench.measured["against_before"] |= {"losses": pairs, "losses_apart": apart}
    if not apart <= _SAME_LOSS:
        raise BenchError(f"the losses differ by {apart:.2g}, more than {_SAME_LOSS:g}: not the same step")
    bench.notes.append(f"against_before: losses of {len(pairs)} steps differ by {apart:.1g} at most")
    return [result]


def _compared(bench: TrainerBench, id: str, ours: StepWorker, theirs: StepWorker, name: str) -> Result:  # noqa: A002
    tokens = _recipe(bench).student.optim.batch_size * _recipe(bench).data.sequence_length
    result = bench.compare(
        id, lambda: tokens / ours.take(bench.steps), lambda: tokens / theirs.take(bench.steps), name=name
    )
    cpu = {"ours_cpu_seconds": ours.figures.cpu_seconds, "baseline_cpu_seconds": theirs.figures.cpu_seconds}
    bench.measured[id] |= cpu
    least = [min(seconds) for seconds in cpu.values()]
    bench.notes.append(
        f"{id}: least CPU seconds of a step {least[0]:.3f} and {least[1]:.3f}, {least[1] / least[0]:.2f}x"
    )
    return result


def _recipe(bench: TrainerBench) -> Recipe:
    return load_recipe(bench.recipe, TrainerSettings().recipes_dir)


def _worker(
    bench: TrainerBench,
    stack: ExitStack,
    name: str,
    stage: Literal["student", "token-level"],
    checkout: Path | None = None,
) -> StepWorker:
    recipe, tokenizer = _recipe(bench), TextTokenizer(TEACHER)
    batches = bench.scratch / "batches.safetensors"
    if not batches.exists():
        bench.report.begin("the teacher's rows")
        write_batches(
            batches,
            _BATCHES,
            recipe.student.optim.batch_size,
            recipe.data.sequence_length,
            recipe.teacher.top_k,
        )
    job = StepJob(
        stage=stage,
        recipe=bench.recipe,
        recipes_dir=str((checkout / "services/trainer/recipes") if checkout else TrainerSettings().recipes_dir),
        batches=str(batches),
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        device=str(bench.device),
        # As RunContext.use_threads chooses beside a gateway.
        threads=max(1, len(os.sched_getaffinity(0)) - 1),
        overrides={"seed": bench.seed},
    )
    return StepWorker(stack, name, job, bench.scratch, checkout)
