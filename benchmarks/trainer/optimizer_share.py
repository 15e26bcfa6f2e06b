"""The optimizer's share of a step on a GPU."""

import statistics

from benchmarks.trainer.bench import TrainerBench
from benchmarks.trainer.student_step import StepParts, StudentStep, counted
from latentforge.core.results import Result
from latentforge.trainer.config.recipe import load_recipe
from latentforge.trainer.config.settings import TrainerSettings

_WARM = 3


def optimizer_share(bench: TrainerBench) -> list[Result]:
    """The optimizer's share of a step of gb10-single. By operations of matrix products, attention's included, counted
    from their shapes in the formats that CUDA gets (nothing is computed): one in bfloat16 counts 1, one in float32 4,
    a GB10's peaks by its specification. What is done entry by entry, AdamW all of it, is not in it. On a GPU by time,
    and by operations beside it (optimizer_share_operations).
    """
    recipe = load_recipe("smoke" if bench.quick else "gb10-single", TrainerSettings().recipes_dir)
    operations = counted(recipe)
    bench.measured["optimizer_share"] = {"operations": vars(operations)}
    if bench.device.type != "cuda":
        return [Result(id="optimizer_share", value=operations.optimizer_share, unit="of operations")]
    step = StudentStep(recipe, bench.device)
    taken = [step.timed() for _ in range(_WARM + bench.repeats)][_WARM:]
    seconds = StepParts(statistics.median(p.passes for p in taken), statistics.median(p.optimizer for p in taken))
    bench.measured["optimizer_share"]["seconds"] = [vars(parts) for parts in taken]
    return [
        Result(id="optimizer_share", value=seconds.optimizer_share, unit="of time"),
        Result(id="optimizer_share_operations", value=operations.optimizer_share, unit="of operations"),
    ]
