import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from typer.testing import CliRunner

from benchmarks.inference.floor import Product, step_products
from benchmarks.inference.models import random_twin
from benchmarks.inference.plan import ModelSize
from benchmarks.inference.workload import PLAIN, random_prompt_ids
from benchmarks.long_context.__main__ import app
from benchmarks.long_context.chart import pace_by_context
from benchmarks.long_context.cost import token_cost
from benchmarks.long_context.device_speed import DeviceSpeed, measured_speed
from benchmarks.long_context.models import build_model, twin_config
from benchmarks.long_context.plan import K8, MODELS, QUICK, TWIN, LongContextCell, LongContextModel, LongContextPlan
from benchmarks.long_context.report import BARS, LongContextResults
from benchmarks.long_context.texts import LongTexts
from latentforge.model.config import InductionConfig
from latentforge.model.decoding.build import batch_decoding
from latentforge.model.latent_model import LatentModel
from latentforge.model.token_level import TokenLevelModel

CPU = torch.device("cpu")
SIZE = ModelSize(layers=3, width=256, vocab_size=512)
SPEED = DeviceSpeed(bytes_per_second=1e9, flops_per_second=1e12)
every_model = pytest.mark.parametrize("of", MODELS, ids=lambda of: of.key)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """The benchmark sets their number; the tests behind these keep theirs."""
    num = torch.get_num_threads()
    yield
    torch.set_num_threads(num)


@every_model
def test_a_step_reads_its_weights_once(of: LongContextModel) -> None:
    check_weights_are_read_once(build_model(of, SIZE, 256, CPU), of.chunk_size)


def test_a_step_of_narrow_tables_too() -> None:
    narrow = twin_config(SIZE, 256).model_copy(
        update={"embed_size": 24, "output_rank": 16, "induction": InductionConfig(context=2)}
    )
    check_weights_are_read_once(random_twin(narrow, CPU), 1)


def check_weights_are_read_once(model: LatentModel | TokenLevelModel, chunk_size: int) -> None:
    """Against the parameters that a step multiplies with."""
    products = step_products(model, 128, 3)
    is_unused = ["autoencoder.enc", "autoencoder.compress", "autoencoder.to_", "autoencoder.mask"]
    if isinstance(model, LatentModel) and not model.writes_from_latents:
        is_unused = ["autoencoder.", "student.head."]
    # Of the tables of tokens' embeddings a step looks up rows; the autoencoder's is its output layer too.
    looked_up = ("embedding.weight",) if isinstance(model, TokenLevelModel) else ("student.embedding.weight",)
    used = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and not name.startswith(tuple(is_unused)) and name not in looked_up
    }
    # What the window's tokens are multiplied with is another product of the same weights; so are a split decoder's
    # layers and its tokens' inputs.
    again = "window", "decoder layer", "decoder, input map"
    twice = sum(p.numbers_read for p in products if not p.cached and any(what in p.what for what in again))
    cost = token_cost(products, 3 * chunk_size, SPEED)
    assert cost.weight_bytes * 3 * chunk_size == pytest.approx(4 * (sum(used.values()) + twice))


@every_model
def test_what_is_read_of_the_cache_is_counted(of: LongContextModel) -> None:
    """Against a count of one key and one value after the other."""
    model, texts, context = build_model(of, SIZE, 256, CPU), 3, 128
    config = model.config if isinstance(model, TokenLevelModel) else model.student.config
    num_bytes = flops = 0
    splits = of.decoder.kind == "split"
    seen, queries = (1 + context, of.chunk_size) if splits else (1 + context // of.chunk_size, 1)
    for _ in range(texts):
        for _ in range(config.num_layers * config.num_kv_heads):
            for _ in range(seen):
                num_bytes += 4 * 2 * config.head_dim
                # Two query heads a key head; a dot product with the key, and the value times what it gives.
                flops += queries * 2 * 2 * 2 * config.head_dim
        if splits:
            # The last layers again at each of its tokens but the first.
            for place in range(1, of.chunk_size):
                for _ in range(of.decoder.num_layers * config.num_kv_heads * (seen + place)):
                    num_bytes += 4 * 2 * config.head_dim
                    flops += 2 * 2 * 2 * config.head_dim
        if of.induction:
            for _ in range(of.chunk_size * of.induction.num_heads * context):
                num_bytes += 4 * 2 * of.induction.size
                flops += 2 * 2 * of.induction.size
    tokens = texts * of.chunk_size
    cost = token_cost(step_products(model, context, texts), tokens, SPEED)
    assert cost.cache_bytes * tokens == pytest.approx(num_bytes)
    assert cost.attention_flops * tokens == pytest.approx(flops)


def test_a_product_takes_as_long_as_reading_or_computing_it() -> None:
    read = Product("read", rows=1, inner=1000, columns=1000)
    computed = Product("computed", rows=1000, inner=1000, columns=10, count=2)
    cost = token_cost([read, computed], 5, DeviceSpeed(bytes_per_second=4e6, flops_per_second=1e7))
    # 4 MB in 1 s, where computing takes 0.2; 40 MFLOP in 4 s, where reading takes 0.02.
    assert cost.pace == pytest.approx(5 / (1 + 4))
    assert cost.flops == pytest.approx((2e6 + 4e7) / 5)
    assert cost.attention_flops == cost.cache_bytes == 0


def test_with_long_contexts_the_cache_decides_what_k_may_gain() -> None:
    """At 16 × 8k a token of the twin reads the cache and hardly anything else."""
    plan = LongContextPlan()
    costs = {}
    for of in (TWIN, K8):
        with torch.device("meta"):
            model = build_model(of, plan.size, 8192, torch.device("meta"))
        costs[of.key] = token_cost(step_products(model, 8192, 16), 16 * of.chunk_size, SPEED)
    assert costs["twin"].cache_bytes > 10 * costs["twin"].weight_bytes
    # K times fewer positions, read K times less often.
    assert costs["twin"].cache_bytes / costs["k8"].cache_bytes == pytest.approx(64, rel=0.01)


@every_model
def test_texts_are_read_by_the_engine_and_stepped_together(of: LongContextModel) -> None:
    """What a figure stands behind: texts as long as they should be, with tokens that the engine wrote."""
    model = build_model(of, SIZE, 256, CPU)
    prompts = random_prompt_ids(3, 136, SIZE.vocab_size)
    texts = LongTexts(model, prompts, 64, PLAIN)
    shares: list[float] = []
    texts.read(shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert texts.pace(16) > 0
    lengths = {text.num_read for text in texts._decoding._texts}
    assert lengths == {136 + of.chunk_size + 16}
    assert all(text.ids[:136] == ids for text, ids in zip(texts._decoding._texts, prompts, strict=True))


def test_the_cache_is_the_memory_that_was_taken() -> None:
    sizes = {of.key: batch_decoding(build_model(of, SIZE, 512, CPU), 2, max_tokens=512).cache_bytes for of in MODELS}
    # Keys and values of 3 layers, 2 heads, 64 dimensions, of two texts; and the column that a step writes.
    assert sizes["twin"] == 2 * 3 * 2 * 64 * 4 * 2 * (512 + 1)
    # And what the first layers gave at each text's border.
    assert sizes["k8_split"] == sizes["twin"] + 2 * 256 * 4
    assert sizes["k8"] == 2 * 3 * 2 * 64 * 4 * 2 * (512 // 8 + 1)
    # Of two induction heads keys and values of every token, beside its id and a base for each head.
    assert sizes["k8_heads"] - sizes["k8"] > 2 * 512 * (2 * 2 * 64 * 4 + 8 + 2 * 4)


def test_a_device_reads_and_multiplies() -> None:
    speed = measured_speed(CPU, 2**24, 256)
    assert speed.bytes_per_second > 1e8
    assert speed.flops_per_second > 1e8


def test_cells_are_called_as_their_bars() -> None:
    assert [cell.id for cell in LongContextPlan().cells] == ["kv_1x2k", "kv_16x2k", "kv_1x8k", "kv_16x8k"]
    assert LongContextCell(2, 64).id == "kv_2x64"
    assert set(BARS.figures) <= {cell.id for cell in LongContextPlan().cells}
    # Students read whole chunks only.
    for plan in (LongContextPlan(), QUICK):
        of_all = [*plan.contexts, plan.new_tokens, plan.trial_tokens, plan.room(1), plan.room(2)]
        assert not any(tokens % of.chunk_size for tokens in of_all for of in MODELS)


def test_a_quick_benchmark_measures_every_cell_and_draws_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another number of threads is tried below.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    run = CliRunner().invoke(app, ["--quick", "--results", str(tmp_path)])
    assert run.exit_code == 0, run.output
    (path,) = tmp_path.glob("long_context_*.json")
    found = LongContextResults.read(path)
    cells = ["kv_1x64", "kv_2x64", "kv_1x128", "kv_2x128"]
    assert [(each.cell, each.model) for each in found.figures] == [(cell, of.key) for cell in cells for of in MODELS]
    suffixes = ["", "_cache", "_k4", "_k4_cache", "_k8_heads", "_k8_heads_cache", "_k8_split", "_k8_split_cache"]
    assert set(found.by_id) == {cell + suffix for cell in cells for suffix in suffixes}
    for each in found.figures:
        assert each.pace > 0
        assert each.cost is not None
    ratio = found.by_id["kv_2x128"]
    twin, k8 = (next(e for e in found.figures if (e.cell, e.model) == ("kv_2x128", key)) for key in ("twin", "k8"))
    assert (ratio.value, ratio.baseline_value) == (k8.pace, twin.pace)
    assert ratio.ratio == pytest.approx(k8.pace / twin.pace)
    for name in (*cells, "attention MFLOP", "student, K = 4"):
        assert name in run.output
    assert imread(path.with_suffix(".png")).shape[2] == 4
    panels = pace_by_context(found.figures, "note").axes
    assert [axes.get_title() for axes in panels] == ["1 request at once", "2 requests at once"]
    drawn = {line.get_label(): np.asarray(line.get_ydata()) for line in panels[1].lines}
    paces = [each.pace for each in found.figures if each.requests == 2 and each.model == "k8"]
    assert drawn["student, K = 8"] == pytest.approx(paces)


def test_only_some_cells_are_measured_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["--only", "kv_16x3k"])
    assert run.exit_code == 2
    assert "--only names 'kv_16x3k'; on cpu there are kv_1x2k, kv_16x2k, kv_1x8k, kv_16x8k" in run.stderr
    run = CliRunner().invoke(app, ["--quick", "--only", "kv_1x64", "--results", str(tmp_path)])
    assert run.exit_code == 0, run.output
    (path,) = tmp_path.glob("*.json")
    figures = LongContextResults.read(path).figures
    assert {each.cell for each in figures} == {"kv_1x64"}
    assert {each.threads for each in figures} <= {1, len(os.sched_getaffinity(0))}
