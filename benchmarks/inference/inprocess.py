"""What is measured in this process, without a server."""

import math
import statistics
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.inference import floor
from benchmarks.inference.bench import InferenceBench
from benchmarks.inference.decoding import engine_pace, fastest_threads, step_cpu_seconds
from benchmarks.inference.models import (
    DEFAULT_DECODER,
    Decoder,
    fast_decoder,
    random_student,
    sharpened,
    shipped_checkpoint,
    transformers_twin,
    twin_of,
)
from benchmarks.inference.plan import ModelSize
from benchmarks.inference.transformers_baseline import generated
from benchmarks.inference.vllm_baseline import VllmDtype, VllmError, vllm_paces
from benchmarks.inference.workload import NUCLEUS, PLAIN, random_prompt_ids, text_prompt_ids
from latentforge.core.results import Result
from latentforge.model.decoding.build import batch_decoding
from latentforge.model.io import load_autoencoder, load_student
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams
from latentforge.model.token_level import TokenLevelModel, token_level_config

# About what the shipped student's next tokens have.
_NATS = 3.0
_DTYPES: tuple[VllmDtype, ...] = ("float32", "bfloat16")


def step_over_floor(bench: InferenceBench) -> Result:
    """CPU time of a step of the shipped student over that of its matrix products."""
    plan = bench.plan
    torch.set_num_threads(1)
    place = shipped_checkpoint()
    model = LatentModel(load_autoencoder(place / "autoencoder"), load_student(place / "student")).eval()
    # So long a text that the steps end where it is full; the products are those of its middle.
    steps = min(plan.steps, model.max_tokens // model.chunk_size - 16)
    (prompt,) = text_prompt_ids(1, plan.prompt_tokens)
    products = floor.step_products(model, plan.prompt_tokens + steps * model.chunk_size // 2)
    decoding = batch_decoding(model, 1)

    def measure() -> float:
        ours = step_cpu_seconds(decoding, prompt, steps, PLAIN)
        least = floor.cpu_seconds(products, steps)
        record = bench.measured.setdefault("step_over_floor", {"step_ms": [], "floor_ms": []})
        record["step_ms"].append(1000 * ours)
        record["floor_ms"].append(1000 * least)
        return ours / least

    measure()
    bench.measured.pop("step_over_floor")
    result = bench.repeated("step_over_floor", measure, unit="times")
    bench.measured["step_over_floor"]["multiplications"] = sum(product.multiplications for product in products)
    return result


def decode_1(bench: InferenceBench) -> Result:
    """One request, default chunk decoder."""
    return _beside_transformers(bench, "decode_1", DEFAULT_DECODER, 1)


def decode_1_fast(bench: InferenceBench) -> Result:
    """One request, the fastest chunk decoder."""
    return _beside_transformers(bench, "decode_1_fast", fast_decoder(bench.plan.large.vocab_size), 1)


def decode_16_vs_hf(bench: InferenceBench) -> Result:
    """Many at once beside a static batch of transformers."""
    return _beside_transformers(bench, "decode_16_vs_hf", DEFAULT_DECODER, bench.plan.clients)


def decode_1_vs_twin(bench: InferenceBench) -> Result:
    """One request beside the token-level twin in this engine."""
    model = random_student(bench.plan.large, DEFAULT_DECODER, bench.device)
    twin = twin_of(model, bench.device)
    ours, baseline = _engine(bench, model, 1), _engine(bench, twin, 1)
    return _best_of_both(bench, "decode_1_vs_twin", ours, baseline, "the token-level twin in this engine")


def decode_16_vs_vllm(bench: InferenceBench) -> Result:
    """Many at once beside vLLM's CPU build, in whichever format that is faster in."""
    plan = bench.plan
    model = random_student(plan.large, DEFAULT_DECODER, bench.device)
    config = token_level_config(model.student.config)
    prompts = random_prompt_ids(plan.clients, plan.prompt_tokens, plan.large.vocab_size)
    paces: dict[str, list[float]] = {}
    version = ""
    for dtype in _DTYPES:
        bench.report.begin(f"vLLM in {dtype}")
        try:
            folder = bench.scratch / f"vllm-{dtype}"
            found = vllm_paces(config, dtype, prompts, plan.new_tokens, PLAIN, plan.repeats, folder)
        except VllmError as error:
            bench.notes.append(f"decode_16_vs_vllm: {error}")
            continue
        paces[dtype], version = found.tokens_per_second, found.version
        bench.report.figure(f"decode_16_vs_vllm, vLLM in {dtype}: {max(found.tokens_per_second):,.0f} tokens/s")
    measure = _engine(bench, model, plan.clients)
    threads = fastest_threads(measure, bench.threads)
    ours = [_told(bench, "decode_16_vs_vllm, ours", measure()) for _ in range(plan.repeats)]
    bench.notes.append(f"decode_16_vs_vllm: ours with {threads} torch threads, vLLM with what it takes by itself")
    if not paces:
        return bench.alone("decode_16_vs_vllm", ours, unit="tokens/s")
    best = max(paces, key=lambda dtype: statistics.median(paces[dtype]))
    name = f"vLLM {version}, CPU build, {best}, the same token-level backbone, {plan.clients} at once"
    result = bench.compared("decode_16_vs_vllm", ours, paces[best], name=name)
    bench.measured["decode_16_vs_vllm"]["vllm"] = paces
    return result


def top_p(bench: InferenceBench) -> Result:
    """Tokens per second with the seed's sampling over those at temperature 1, at many ids.

    The model is as large as the shipped one. Its next tokens are about as uncertain as that one's; in ``measured`` is
    one beside it whose random weights leave nearly every id likely. Of one text and many at once the worse counts.
    """
    plan = bench.plan
    size = ModelSize(layers=3, width=192, vocab_size=plan.sampling_vocab)
    torch.set_num_threads(1)
    ratios: dict[int, list[float]] = {}
    for name, nats in (("flat", math.inf), ("trained", _NATS)):
        model = sharpened(random_student(size, DEFAULT_DECODER, bench.device), nats)
        for at_once in (1, plan.clients):
            nucleus, plain = (_engine(bench, model, at_once, params) for params in (NUCLEUS, PLAIN))
            key = f"top_p_{name}_{at_once}"
            bench.compare(key, nucleus, plain, name="T = 1")
            pairs = zip(bench.measured[key]["ours"], bench.measured[key]["baseline"], strict=True)
            ratios[at_once] = [a / b for a, b in pairs]
    # Those of the trained one, which came last.
    worse = min(ratios, key=lambda at_once: statistics.median(ratios[at_once]))
    bench.notes.append(f"top_p: {worse} at once, which is the worse of 1 and {plan.clients}")
    return bench.alone("top_p", ratios[worse], unit="times")


def _beside_transformers(bench: InferenceBench, id: str, decoder: Decoder, at_once: int) -> Result:  # noqa: A002
    plan = bench.plan
    model = random_student(plan.large, decoder, bench.device)
    theirs = transformers_twin(token_level_config(model.student.config), bench.device)
    prompts = random_prompt_ids(at_once, plan.prompt_tokens, plan.large.vocab_size)
    baseline = partial(generated, theirs, prompts, plan.new_tokens, PLAIN)
    what = "with a cache" if at_once == 1 else f"static batch of {at_once}"
    bench.notes.append(f"{id}: {decoder.name}")
    return _best_of_both(bench, id, _engine(bench, model, at_once), baseline, f"transformers' generate() {what}")


def _best_of_both(
    bench: InferenceBench,
    id: str,  # noqa: A002
    ours: Callable[[], float],
    baseline: Callable[[], float],
    name: str,
) -> Result:
    """Compares the two, each with the number of threads that suits it."""
    bench.report.begin(f"{id}: trying threads")
    threads = {"ours": fastest_threads(ours, bench.threads), "baseline": fastest_threads(baseline, bench.threads)}

    def with_threads(side: str, measure: Callable[[], float]) -> float:
        torch.set_num_threads(threads[side])
        return measure()

    bench.notes.append(f"{id}: torch threads {threads['ours']}, the baseline's {threads['baseline']}")
    own, theirs = partial(with_threads, "ours", ours), partial(with_threads, "baseline", baseline)
    return bench.compare(id, own, theirs, name=name, are_warm=True)


def _engine(
    bench: InferenceBench, model: LatentModel | TokenLevelModel, at_once: int, params: SamplingParams = PLAIN
) -> Callable[[], float]:
    prompts = random_prompt_ids(at_once, bench.plan.prompt_tokens, model.vocab_size)
    return partial(engine_pace, batch_decoding(model, at_once), prompts, bench.plan.new_tokens, params)


def _told(bench: InferenceBench, what: str, figure: float) -> float:
    bench.report.figure(f"{what}: {figure:,.0f} tokens/s")
    return figure
