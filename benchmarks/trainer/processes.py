"""A batch in parts, on several processes and in pieces against the same batch at once in one process: the losses."""

import sys
from collections.abc import Sequence

from benchmarks.trainer.bench import BenchError, TrainerBench
from latentforge.core.results import Result
from latentforge.trainer.results import read_progress
from tools.processes import Children

_STEPS, _BATCH = 20, 6
_STAGES = {"autoencoder": "ce", "student": "loss"}
# 4 does not divide the batch.
_PROCESSES = (2, 4)
_ALONE = "one"


def accumulate(bench: TrainerBench) -> Sequence[Result]:
    """Largest relative difference of the loss of autoencoder and student over 20 steps, the batch in 4 parts against
    the batch at once, float32, that of Muon's iteration too; the recipe's student with CE, MSE and the energy head's
    noise, on the standard library.
    """
    parts = ("student.optim.gradient_accumulation_steps=4", "autoencoder.optim.gradient_accumulation_steps=4")
    return [_difference(bench, "accumulate", [(1, parts)])]


def ddp(bench: TrainerBench) -> Sequence[Result]:
    """As accumulate, on 2 and 4 processes under torchrun that hold the whole model each; the larger of the two."""
    return [_difference(bench, "ddp", [(n, ("distributed=ddp",)) for n in _PROCESSES])]


def fsdp(bench: TrainerBench) -> Sequence[Result]:
    """As ddp, on processes that hold a piece of the student each (FSDP2); the autoencoder is whole on each."""
    return [_difference(bench, "fsdp", [(n, ("distributed=fsdp",)) for n in _PROCESSES])]


def _difference(bench: TrainerBench, name: str, tried: Sequence[tuple[int, Sequence[str]]]) -> Result:
    whole = _losses(bench, _ALONE, 1, ())
    differences = []
    for processes, sets in tried:
        found = _losses(bench, f"{name}-{processes}", processes, sets)
        if found.keys() != whole.keys() or len(found) != len(_STAGES) * _STEPS:
            raise BenchError(f"{processes} processes made {len(found)} steps, one made {len(whole)}")
        differences.append(max(abs(found[step] - whole[step]) / abs(whole[step]) for step in whole))
        bench.report.figure(f"{name}, {processes} processes: {differences[-1]:.2g}")
    return bench.alone(name, [max(differences)], unit="relative difference")


def _losses(bench: TrainerBench, run: str, processes: int, sets: Sequence[str]) -> dict[tuple[str, int], float]:
    """Of every step by stage; a run that is finished is not made again."""
    runs = bench.scratch / "processes"
    length = "data.sequence_length=128" if bench.quick else "data.sequence_length=512"
    fixed = [f"seed={bench.seed}", f"student.optim.steps={_STEPS}", f"autoencoder.optim.steps={_STEPS}", length]
    fixed += [f"student.optim.batch_size={_BATCH}", "student.weights.ce=1.0", "student.weights.kd=0.0"]
    fixed += ["student.weights.mse=0.1", "student.weights.energy=0.1", "student.model.head='energy'", "device='cpu'"]
    # In bfloat16, as the demo's recipe has it where it is fast, its rounding alone makes differences of 4e-5.
    fixed += [f"{stage}.optim.muon_dtype='float32'" for stage in _STAGES]
    trainer = ["-m", "latentforge.trainer", "run", "--recipe", bench.recipe, "--run-name", run, "--targets", "text"]
    trainer += [part for value in (*fixed, *sets) for part in ("--set", value)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    if run != _ALONE:
        packed = runs / "runs" / _ALONE / "data"
        trainer += ["--data", str(packed / "train"), "--held-out", str(packed / "held-out")]
    # One thread each: sums in another order would be a difference of their own.
    env = {"TRAINER_THREADS": "1", "OMP_NUM_THREADS": "1"}
    env |= {"RUNS_DIR": str(runs / "runs"), "CHECKPOINTS_DIR": str(runs / "checkpoints")}
    with Children(runs, env=env) as children:
        children.finish(children.start(run, [sys.executable, *(torchrun if processes > 1 else ()), *trainer]))
    return {
        (p.stage, p.step): p.figures[_STAGES[p.stage]]
        for p in read_progress(runs / "runs" / run)
        if p.kind == "train" and p.stage in _STAGES
    }
