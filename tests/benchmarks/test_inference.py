import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from benchmarks.benchmark import alternated
from benchmarks.inference.__main__ import app
from benchmarks.inference.clients import LoadError, checked, percentile, tokens_per_second
from benchmarks.inference.floor import cpu_seconds, step_products
from benchmarks.inference.load import Answered
from benchmarks.inference.models import (
    DEFAULT_DECODER,
    Decoder,
    random_student,
    sharpened,
    shipped_checkpoint,
    student_config,
    student_of,
    transformers_twin,
    twin_of,
)
from benchmarks.inference.plan import QUICK, ModelSize
from benchmarks.inference.report import BARS, InferenceBenchResults
from benchmarks.inference.swaps import publish_copies
from benchmarks.inference.workload import text_prompts
from latentforge.core.checkpoint_files import verify_checkpoint
from latentforge.core.results import Result
from latentforge.model.chunks import to_chunks
from latentforge.model.config import ChunkDecoderConfig, InductionConfig
from latentforge.model.io import load_autoencoder, load_student
from latentforge.model.latent_model import LatentModel
from latentforge.model.token_level import token_level_config

CPU = torch.device("cpu")
TINY = ModelSize(layers=2, width=128, vocab_size=2048, chunk_size=4)


def test_tokens_count_by_the_time_that_they_share_with_the_window() -> None:
    # From 1 to 9: half of the first, all of the second, and of the last what lies before it began: nothing.
    answers = [
        Answered(began=0, ended=2, status=200, tokens=20),
        Answered(began=2, ended=6, status=200, tokens=30),
        Answered(began=9, ended=11, status=200, tokens=99),
    ]
    assert tokens_per_second(answers, warm_up=1) == pytest.approx((10 + 30) / 8)
    # Two clients that ask for ever write as much as both do.
    endless = [Answered(began=t, ended=t + 1, status=200, tokens=8) for t in range(10) for _ in range(2)]
    assert tokens_per_second(endless, warm_up=2.5) == pytest.approx(16)


def test_a_failed_request_is_no_figure() -> None:
    good = Answered(0, 1, 200, 5)
    assert checked([good, Answered(0, 1, 400, kind="flood")]) == [good]
    with pytest.raises(LoadError, match="1 of 2 requests failed, the first with status 500"):
        checked([good, Answered(0, 1, 500)])
    with pytest.raises(LoadError, match="no request was answered"):
        checked([])


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(v) for v in range(1, 101)]
    assert percentile(values, 0.99) == 99
    assert percentile(values, 0.5) == 50
    assert percentile([3.0], 0.99) == 3


def test_sides_take_turns() -> None:
    seen: list[str] = []

    def measure(side: str, figure: float) -> float:
        seen.append(side)
        return figure

    sides = partial(measure, "ours", 2.0), partial(measure, "baseline", 1.0)
    ours, theirs = alternated(*sides, 2, lambda side, figure: None)
    assert seen == ["ours", "baseline", "ours", "baseline", "baseline", "ours"]
    assert (ours, theirs) == ([2.0, 2.0], [1.0, 1.0])


def test_bars_are_met_from_the_right_side() -> None:
    assert BARS.met(Result(id="http_ms", value=1.9, unit="ms")) == "yes"
    assert BARS.met(Result(id="http_ms", value=2.1, unit="ms")) == "no"
    assert BARS.met(Result(id="top_p", value=0.95, unit="times")) == "yes"
    fast = Result.compared("decode_1", 50.0, "tokens/s", baseline="x", baseline_value=10.0)
    assert BARS.met(fast) == "yes"
    assert BARS.met(fast.model_copy(update={"id": "decode_1_fast"})) == "no"
    assert BARS.met(Result(id="rest_16", value=None, unit="")) == ""


def _shipped() -> LatentModel:
    place = shipped_checkpoint()
    return LatentModel(load_autoencoder(place / "autoencoder"), load_student(place / "student")).eval()


RECURRENT = Decoder("recurrent", ChunkDecoderConfig(kind="recurrent", width=64, rank=32, num_layers=2, num_blocks=3))
SPLIT = Decoder("split", ChunkDecoderConfig(kind="split", width=48, rank=32, num_layers=1, num_blocks=2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: random_student(TINY, DEFAULT_DECODER, CPU),
        _shipped,
        lambda: random_student(TINY, RECURRENT, CPU),
        lambda: random_student(replace(TINY, layers=0), RECURRENT, CPU),
        lambda: student_of(
            student_config(TINY, RECURRENT).model_copy(update={"positions": "tokens", "embed_size": 48}), CPU
        ),
        lambda: random_student(TINY, SPLIT, CPU),
    ],
    ids=["tiny", "shipped", "recurrent", "no-layers", "token-positions", "split"],
)
def test_the_floor_lists_every_product_with_weights(make: Callable[[], LatentModel]) -> None:
    """Against torch's own count: what one chunk more adds to reading a whole text at once."""
    model = make()
    config = model.student.config
    k, chunks = config.chunk_size, 16
    ids = torch.randint(2, config.vocab_size, (1, chunks * k))

    def counted(num_chunks: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.logits(to_chunks(ids[:, : num_chunks * k], k, config.pad_id))
        of = counter.get_flop_counts()["Global"]
        return int(of[torch.ops.aten.mm] + of[torch.ops.aten.addmm]) // 2

    listed = step_products(model, (chunks - 1) * k)
    with_weights = [product for product in listed if not product.cached]
    added = counted(chunks) - counted(chunks - 1)
    if config.chunk_decoder.kind == "split":
        # A whole text's keys, values and queries at the last layers are made twice, and its latents too, which nothing
        # reads; inputs of tokens once, but twice by steps.
        of_heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        added -= config.chunk_decoder.num_layers * k * config.hidden_size * of_heads
        added -= sum(weight.numel() for weight in model.student.head.parameters() if weight.ndim == 2)
        added += (k - 1) * config.embed_size * config.hidden_size
    assert sum(product.multiplications for product in with_weights) == added


def test_the_floor_of_a_longer_text_has_more_to_attend_to() -> None:
    model = student_of(student_config(TINY, DEFAULT_DECODER, induction=InductionConfig(context=2)), CPU)
    short, long = (sum(p.multiplications for p in step_products(model, tokens)) for tokens in (64, 64 + 80))
    # 20 keys more for 2 layers of 2 heads, and 80 for 2 induction heads at each of 4 tokens, of 64 dimensions, twice.
    assert long - short == 2 * 64 * (20 * 2 * 2 + 80 * 2 * 4)


def test_the_floor_of_a_larger_model_takes_longer() -> None:
    small, large = (random_student(ModelSize(2, width, 2048), DEFAULT_DECODER, CPU) for width in (64, 1024))
    assert sum(p.multiplications for p in step_products(large, 64)) > 4 * sum(
        p.multiplications for p in step_products(small, 64)
    )
    assert cpu_seconds(step_products(large, 64), 3) > cpu_seconds(step_products(small, 64), 3) > 0


def test_twins_are_as_large_as_the_backbone_that_they_stand_beside() -> None:
    model = random_student(TINY, DEFAULT_DECODER, CPU)
    twin = twin_of(model, CPU)
    theirs = transformers_twin(token_level_config(model.student.config), CPU)

    def layers(module: torch.nn.Module) -> int:
        return sum(p.numel() for name, p in module.named_parameters() if "layers." in name)

    assert model.student.backbone is not None
    assert layers(twin.backbone) == layers(model.student.backbone) == layers(theirs.model)
    assert theirs.lm_head.weight.shape == (TINY.vocab_size, TINY.width)


def test_a_sharpened_model_is_about_as_uncertain_as_asked_for() -> None:
    model = sharpened(random_student(ModelSize(2, 64, 32_768), DEFAULT_DECODER, CPU), 3.0)
    logprobs = model.student.bias.detach().log_softmax(0)
    assert float(-(logprobs.exp() * logprobs).sum()) == pytest.approx(3.0, abs=0.01)


def test_copies_are_checkpoints_that_pass_every_check(tmp_path: Path) -> None:
    places = [*publish_copies(shipped_checkpoint(), tmp_path, 2), *publish_copies(shipped_checkpoint(), tmp_path, 1)]
    assert [place.name for place in places] == ["step-00000001", "step-00000002", "step-00000003"]
    assert all(verify_checkpoint(place).run == "swapped" for place in places)


def test_prompts_are_different_pieces_of_text() -> None:
    prompts = text_prompts(16, 32)
    assert len(set(prompts)) == 16
    assert all(len(prompt) > 16 for prompt in prompts)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_a_quick_benchmark_measures_what_is_asked_for_and_writes_it_down(tmp_path: Path) -> None:
    ids = ["step_over_floor", "decode_1_vs_twin", "rest_16", "rest_16_vs_token_level", "http_ms", "hostile", "swap_p99"]
    command = [sys.executable, "-m", "benchmarks.inference", "--quick", "--results", str(tmp_path)]
    run = subprocess.run([*command, "--only", ",".join(ids)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.glob("bench_inference_*.json")
    found = InferenceBenchResults.read(path)
    assert set(found.by_id) == set(ids)
    assert all(result.value is not None and result.value > 0 for result in found.results), found.notes
    assert found.plan["clients"] == QUICK.clients
    assert found.measured["swap_p99"]["failures"] == 0
    assert found.measured["swap_p99"]["swaps"] == QUICK.swaps
    assert all(result.id in run.stdout for result in found.results)


def test_every_bar_has_its_measurement_and_an_unknown_one_is_named() -> None:
    run = CliRunner().invoke(app, ["--only", "decode_1,nonsense"])
    assert run.exit_code == 2
    assert "--only names 'nonsense'" in run.stderr
    assert all(name in run.stderr for name in BARS.figures)
