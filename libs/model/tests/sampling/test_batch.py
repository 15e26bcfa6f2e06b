"""A text gets the same tokens whatever is beside it."""

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from latentforge.model.sampling import (
    LEAST_TEMPERATURE,
    BatchSampler,
    SamplingParams,
    TextSampling,
)
from latentforge.model.sampling.blocks import places
from latentforge.model.sampling.text import Uniforms

SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 0},
    {"top_p": 0.95, "temperature": 0.8},
    {"top_p": 0.1},
    {"min_p": 0.3},
    {"top_p": 0.8, "min_p": 0.02},
    {"top_k": 5},
    {"top_k": 300, "temperature": 1.5},
    {"top_k": 20, "top_p": 0.7, "min_p": 0.05},
    {"logit_bias": {3: 5, 2: -5}},
    {"repetition_penalty": 1.4},
    {"presence_penalty": 1, "frequency_penalty": 0.5, "temperature": 0},
    {"repetition_penalty": 0.8, "presence_penalty": -0.5, "frequency_penalty": 0.2, "top_p": 0.9, "top_k": 40},
]
NUM_TOKENS = 90


def logits_of(text: int, token: int, vocab_size: int, kind: str = "random") -> Tensor:
    """What the model says at a place of a text."""
    logits = 3 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(1000 * text + token))
    return logits.bfloat16().float() if kind == "ties" else logits


def text_of(text: int, vocab_size: int) -> TextSampling:
    params = SamplingParams(**SETTINGS[text % len(SETTINGS)], seed=text)
    return TextSampling(params, list(range(text, text + 20)), vocab_size)


def alone(text: int, vocab_size: int, kind: str, num: int) -> list[int]:
    sampler = BatchSampler([text_of(text, vocab_size)])
    return [int(sampler.draw(logits_of(text, at, vocab_size, kind)[None])) for at in range(num)]


@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize(("vocab_size", "num_tokens"), [(64, NUM_TOKENS), (2000, NUM_TOKENS), (8192, 12), (50_257, 4)])
def test_a_text_gets_what_it_gets_alone(vocab_size: int, num_tokens: int, kind: str) -> None:
    """Texts join and leave at random, in any order."""
    rng = random.Random(0)
    num_texts = 2 * len(SETTINGS)
    texts = {i: text_of(i, vocab_size) for i in range(num_texts)}
    written: dict[int, list[int]] = {i: [] for i in texts}
    while unfinished := [i for i in texts if len(written[i]) < num_tokens]:
        batch = rng.sample(unfinished, rng.randint(1, len(unfinished)))
        sampler = BatchSampler([texts[i] for i in batch])
        for _ in range(min(rng.choice([1, 3, 8]), num_tokens - max(len(written[i]) for i in batch))):
            logits = torch.stack([logits_of(i, len(written[i]), vocab_size, kind) for i in batch])
            for i, token in zip(batch, sampler.draw(logits).tolist(), strict=True):
                written[i].append(token)
    assert written == {i: alone(i, vocab_size, kind, num_tokens) for i in texts}
    assert len({tuple(ids) for ids in written.values()}) == num_texts


def test_a_seed_gives_its_tokens_again_and_another_does_not() -> None:
    first, again, other, fresh, fresher = (
        BatchSampler([TextSampling(SamplingParams(seed=seed), [], 500)]) for seed in (1, 1, 2, None, None)
    )
    logits = torch.randn(1, 500)
    texts = [[int(sampler.draw(logits)) for _ in range(70)] for sampler in (first, again, other, fresh, fresher)]
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts}) == 4


def test_seeds_that_differ_in_their_upper_half_only_differ() -> None:
    logits = torch.zeros(1, 500)
    texts = [BatchSampler([TextSampling(SamplingParams(seed=seed), [], 500)]) for seed in (1, 1 + 2**32, 1 + 2**62)]
    assert len({tuple(int(sampler.draw(logits)) for _ in range(20)) for sampler in texts}) == 3


def test_numbers_that_are_moved_ahead_are_those_that_are_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch had ahead when it was made anew is not lost."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)

    def texts() -> list[TextSampling]:
        return [TextSampling(SamplingParams(seed=seed), [], 9) for seed in range(3)]

    one_by_one, ahead = texts(), texts()
    for draws in (3, 100, 1, 65):
        uniforms = Uniforms(ahead)
        uniforms._is_cpu = False
        for _ in range(draws):
            assert uniforms.next().tolist() == [text.uniforms.take() for text in one_by_one]


def test_noise_follows_from_the_seed_and_from_nothing_else() -> None:
    def noise(seed: int, draws: int) -> list[float]:
        text = TextSampling(SamplingParams(seed=seed), [], 50)
        sampler = BatchSampler([text])
        for _ in range(draws):
            sampler.draw(torch.zeros(1, 50))
        return torch.rand(4, generator=text.noise).tolist()

    assert noise(1, 0) == noise(1, 3)
    assert noise(1, 0) != noise(2, 0)


@pytest.mark.parametrize("truncation", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.9}])
@pytest.mark.parametrize("temperature", [0, 5e-38, 1e-320, 1e-39, 1e-6, LEAST_TEMPERATURE])
def test_a_tiny_temperature_takes_the_likeliest(temperature: float, truncation: dict[str, float]) -> None:
    logits = torch.tensor([[-30.0, 30.0, 20.0, -torch.inf], [9.0, -9.0, 8.0, 0.0]])
    params = SamplingParams.model_validate({"temperature": temperature, **truncation})
    sampler = BatchSampler([TextSampling(params, [], 4), TextSampling(params, [], 4)])
    assert sampler.draw(logits).tolist() == [1, 0]
    assert sampler.take_finite().all()


@pytest.mark.parametrize("vocab_size", [9, 2000, 2048])
def test_greedy_takes_the_lowest_of_equal_ids(vocab_size: int) -> None:
    logits = torch.randn(1, vocab_size)
    for least in (vocab_size - 1, vocab_size // 2, 0):
        logits[0, least:] = logits.max().where(torch.rand(vocab_size - least) < 0.5, -20)
        logits[0, least] = logits.max()
        wanted = logits[0].tolist().index(float(logits.max()))
        assert BatchSampler([TextSampling(SamplingParams(temperature=0), [], vocab_size)]).draw(logits).tolist() == [
            wanted
        ]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("vocab_size", [40, 3000])
def test_tokens_without_probability_are_never_drawn(setting: dict[str, Any], vocab_size: int) -> None:
    logits = torch.full((200, vocab_size), -torch.inf)
    logits[:, [2, vocab_size // 2, vocab_size - 1]] = torch.tensor([0.0, -9.0, -3.0])
    texts = [TextSampling(SamplingParams(**setting, seed=i), [1, 2], vocab_size) for i in range(200)]
    sampler = BatchSampler(texts)
    for _ in range(10):
        assert set(sampler.draw(logits).tolist()) <= {2, vocab_size // 2, vocab_size - 1}


@pytest.mark.parametrize("setting", SETTINGS)
def test_forced_tokens_are_taken_and_counted(setting: dict[str, Any]) -> None:
    """A text that is forced to have what it wrote goes on as it did, as if it had drawn that."""
    params = SamplingParams(**setting, seed=5)
    samplers = [BatchSampler([TextSampling(params, [1], 300)]) for _ in range(2)]
    logits = [logits_of(0, token, 300)[None] for token in range(12)]
    wrote = [samplers[0].draw(x) for x in logits]
    again = [samplers[1].draw(x, forced=wrote[at] if at < 6 else torch.tensor([-1])) for at, x in enumerate(logits)]
    assert again == wrote
    other = BatchSampler([TextSampling(params, [1], 300)])
    assert other.draw(logits[0], forced=torch.tensor([299])).tolist() == [299]


def test_settings_that_callers_choose_leave_nothing_behind() -> None:
    logits = torch.randn(1, 200)

    def draw(top_k: int) -> None:
        BatchSampler([TextSampling(SamplingParams(top_k=top_k, seed=0), [], 200)]).draw(logits)

    draw(100)
    kept = places.cache_info().currsize
    for top_k in range(101, 200):
        draw(top_k)
    assert places.cache_info().currsize == kept


def test_logits_stay_as_they_are() -> None:
    logits = torch.randn(len(SETTINGS), 2000)
    before = logits.clone()
    BatchSampler([text_of(i, 2000) for i in range(len(SETTINGS))]).draw(logits)
    assert logits.equal(before)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("vocab_size", [400, 3001])
@pytest.mark.parametrize("bad", ["nan", "all nan", "inf", "-inf"])
def test_logits_of_a_broken_model_are_told_and_spare_the_neighbours(
    setting: dict[str, Any], vocab_size: int, bad: str
) -> None:
    def draw(broken: bool) -> tuple[BatchSampler, list[int]]:
        texts = [TextSampling(SamplingParams(**setting, seed=i), [1, 2], vocab_size) for i in range(3)]
        sampler = BatchSampler(texts)
        logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(0))
        if broken and bad == "nan":
            logits[1, vocab_size - 1] = torch.nan
        elif broken:
            logits[1] = float(bad.removeprefix("all "))
        sampler.draw(logits)
        ids = sampler.draw(logits).tolist()
        return sampler, ids

    sound, wanted = draw(False)
    assert sound.take_finite().all()
    sampler, ids = draw(True)
    assert [ids[0], ids[2]] == [wanted[0], wanted[2]]
    assert 0 <= ids[1] < vocab_size
    assert sampler.take_finite().tolist() == [True, False, True]
    assert sampler.take_finite().tolist() == [True, True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_other_types_are_read_as_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(len(SETTINGS), 70).to(dtype)
    draws = [BatchSampler([text_of(i, 70) for i in range(len(SETTINGS))]).draw(x) for x in (logits, logits.float())]
    assert draws[0].equal(draws[1])


@pytest.mark.parametrize("vocab_size", [400, 901, 32_768, 50_257])
def test_a_draw_inverts_the_cumulative_mass(vocab_size: int) -> None:
    num = 40
    logits = 3 * torch.randn(num, vocab_size, generator=torch.Generator().manual_seed(0))
    logits[:, vocab_size // 3 : vocab_size // 2] = -torch.inf
    texts = [TextSampling(SamplingParams(seed=i), [], vocab_size) for i in range(num)]
    uniform = [text.uniforms.peek(1)[0] for text in texts]
    drawn = BatchSampler(texts).draw(logits).tolist()
    # Sums of a block are float32.
    near = 0.0 if vocab_size < 1024 else 1e-6
    for mass, got, u in zip(logits.softmax(1).tolist(), drawn, uniform, strict=True):
        assert mass[got] > 0
        assert math.fsum(mass[:got]) - near <= u * math.fsum(mass) <= math.fsum(mass[: got + 1]) + near
