from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from benchmarks.benchmark_results import Bars
from benchmarks.gpu import CUDA_TESTS, GpuResults
from benchmarks.gpu import app as gpu_app
from benchmarks.trainer.__main__ import TrainerBenchResults, app
from benchmarks.trainer.bench import BenchError
from benchmarks.trainer.models import random_batch
from benchmarks.trainer.operations import OperationCounter, without_computing
from benchmarks.trainer.registry import MEASUREMENTS
from benchmarks.trainer.student_step import StudentStep, counted
from benchmarks.trainer.workers import StepJob, StepWorker, checkout_of
from latentforge.core.results import Result
from latentforge.trainer.config.recipe import Recipe, load_recipe
from latentforge.trainer.config.settings import TrainerSettings

RECIPES = TrainerSettings().recipes_dir


def smoke(**overrides: object) -> Recipe:
    return load_recipe("smoke", RECIPES, overrides)


def test_products_count_by_their_number_format() -> None:
    layer = nn.Linear(8, 16, bias=False)
    with OperationCounter() as counter:
        layer(torch.randn(4, 8))
        layer.bfloat16()(torch.randn(4, 8, dtype=torch.bfloat16))
    each = 2 * 4 * 8 * 16
    assert counter.counts == {torch.float32: each, torch.bfloat16: each}
    assert counter.cost == 4 * each + each


def test_what_is_counted_without_computing_is_what_computing_does() -> None:
    recipe = smoke(**{"data.sequence_length": 64})
    step = StudentStep(recipe, torch.device("cpu"), muon_dtype="bfloat16")
    with OperationCounter() as passes:
        step.passes()
    with OperationCounter() as optimizer:
        step.update()
    parts = counted(recipe)
    assert (parts.passes, parts.optimizer) == (passes.cost, optimizer.cost)
    assert parts.passes > 0 < parts.optimizer


def test_a_longer_step_leaves_the_optimizer_a_smaller_share() -> None:
    short, long = (counted(smoke(**{"student.optim.batch_size": size})) for size in (1, 4))
    assert long.optimizer == short.optimizer
    assert long.optimizer_share < short.optimizer_share / 2


def test_rows_of_random_batches_are_distributions_over_different_ids() -> None:
    batch = random_batch(smoke(), 2, torch.device("cpu"))
    assert batch.kd is not None
    torch.testing.assert_close(batch.kd.logprobs.exp().sum(-1) + batch.kd.tail_mass, torch.ones(batch.tokens.shape))
    assert all(len(set(ids.tolist())) == len(ids) for ids in batch.kd.ids[0])
    with without_computing():
        assert random_batch(smoke(), 2, torch.device("cpu")).tokens.shape == batch.tokens.shape


def test_bars_are_of_the_ratio_where_there_is_a_baseline() -> None:
    bars = Bars({"share": 0.25, "speed": 1.5}, at_most={"share"})
    assert bars.met(Result(id="share", value=0.2, unit="")) == "yes"
    assert bars.met(Result(id="share", value=0.3, unit="")) == "no"
    assert bars.met(Result.compared("speed", 16.0, "x", baseline="y", baseline_value=10.0)) == "yes"
    assert bars.met(Result.compared("speed", 14.0, "x", baseline="y", baseline_value=10.0)) == "no"
    assert bars.met(Result(id="other", value=0.3, unit="")) == ""


def test_a_commit_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="commit 0000000 is not in this checkout"):
        checkout_of("0000000", tmp_path)


def test_a_worker_that_ends_says_why(tmp_path: Path) -> None:
    job = StepJob("student", "smoke", str(RECIPES), str(tmp_path / "nothing"), 64, 1, 0, "cpu", 1)
    with ExitStack() as stack, pytest.raises(BenchError, match=r"now ended with exit code 1: .*nothing"):
        StepWorker(stack, "now", job, tmp_path).take(1)


def test_a_worker_that_loads_other_code_is_refused(tmp_path: Path) -> None:
    job = StepJob("student", "smoke", str(RECIPES), str(tmp_path / "batches"), 4096, 1, 0, "cpu", 1)
    batch = random_batch(smoke(**{"data.sequence_length": 16}), 1, torch.device("cpu"))
    save_file({name: value[None] for name, value in {"tokens": batch.tokens, **vars(batch.kd)}.items()}, job.batches)
    (tmp_path / "checkout").mkdir()
    with ExitStack() as stack, pytest.raises(BenchError, match=r"before runs /.*, which is not of .*/checkout"):
        StepWorker(stack, "before", job, tmp_path, tmp_path / "checkout").take(1)


def test_the_script_for_a_gpu_knows_where_all_cuda_tests_are() -> None:
    root = Path(__file__).parents[2]
    marked = [p for top in ("tests", "libs", "services") for p in (root / top).rglob("test_*.py")]
    marked = [p for p in marked if "pytest.mark." + "cuda" in p.read_text(encoding="utf-8")]
    assert marked
    assert all(any(p.is_relative_to(root / place) for place in CUDA_TESTS) for p in marked)


def test_every_measurement_says_how_and_an_unknown_one_is_named() -> None:
    run = CliRunner().invoke(app, ["--only", "optimizer_share,nonsense"])
    assert run.exit_code == 2
    assert "--only names 'nonsense'" in run.stderr
    assert all(name in run.stderr for name in MEASUREMENTS)
    assert all(measurement.measure.__doc__ for measurement in MEASUREMENTS.values())


@pytest.mark.slow
@pytest.mark.e2e
def test_a_quick_benchmark_measures_speed_and_writes_it_down(tmp_path: Path) -> None:
    ids = ["student_tokens_per_s", "against_before", "optimizer_share"]
    run = CliRunner().invoke(app, ["--quick", "--out", str(tmp_path), "--only", ",".join(ids)])
    assert run.exit_code == 0, run.output
    (path,) = tmp_path.glob("bench_trainer_*.json")
    found = TrainerBenchResults.read(path)
    assert list(found.by_id) == ids
    assert all(result.value is not None and result.value > 0 for result in found.results), found.notes
    assert len(found.measured["against_before"]["losses"]) == 2
    assert all(result.id in run.stdout for result in found.results)


@pytest.mark.slow
@pytest.mark.e2e
def test_the_script_for_a_gpu_is_tried_on_a_cpu(tmp_path: Path) -> None:
    run = CliRunner().invoke(gpu_app, ["--device", "cpu", "--quick", "--minutes", "3", "--out", str(tmp_path)])
    assert run.exit_code == 0, run.output
    (path,) = tmp_path.glob("gpu_*.json")
    found = GpuResults.read(path)
    assert found.by_id["cuda_tests"].value is None
    assert "cuda_tests: all were skipped" in found.notes
    assert (found.by_id["tokens_per_s_smoke"].value or 0) > 0
    assert 0 < (found.by_id["optimizer_share_smoke"].value or 0) < 1
