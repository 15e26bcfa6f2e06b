import math

import pytest
import torch

from latentforge.model.sampling import LEAST_TEMPERATURE, SamplingParams, sample, sample_with_logprobs

LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()


def frequencies(params: SamplingParams, logits: torch.Tensor = LOGITS) -> list[float]:
    generator = torch.Generator().manual_seed(5)
    drawn = sample(logits.expand(20_000, -1), params, generator)
    return (drawn.bincount(minlength=logits.shape[1]) / 20_000).tolist()


def test_temperature_zero_takes_the_likeliest() -> None:
    assert sample(LOGITS, SamplingParams(temperature=0)).tolist() == [1]


@pytest.mark.parametrize("truncation", [{}, {"top_k": 3}, {"top_p": 0.9}])
@pytest.mark.parametrize("temperature", [1e-320, 1e-39, 1e-6, LEAST_TEMPERATURE])
def test_a_tiny_temperature_takes_the_likeliest(temperature: float, truncation: dict[str, float]) -> None:
    logits = torch.tensor([[-30.0, 30.0, 20.0, -torch.inf], [9.0, -9.0, 8.0, 0.0]])
    params = SamplingParams.model_validate({"temperature": temperature, **truncation})
    ids, logprobs = sample_with_logprobs(logits, params)
    assert ids.tolist() == [1, 0]
    assert logprobs.isfinite().all()


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        (SamplingParams(), [0.1, 0.4, 0.2, 0.3]),
        (SamplingParams(temperature=0.5), [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        (SamplingParams(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (SamplingParams(top_p=0.6), [0, 4 / 7, 0, 3 / 7]),
        (SamplingParams(top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
        (SamplingParams(top_p=0.3), [0, 1, 0, 0]),
        (SamplingParams(top_k=3, top_p=0.5), [0, 4 / 7, 0, 3 / 7]),
        (SamplingParams(top_k=9), [0.1, 0.4, 0.2, 0.3]),
    ],
)
def test_tokens_are_drawn_in_proportion(params: SamplingParams, wanted: list[float]) -> None:
    assert frequencies(params) == pytest.approx(wanted, abs=0.015)


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), -9.0, float("-inf")]])
    got = frequencies(SamplingParams(temperature=2), logits)
    assert [got[0], got[2], got[4]] == [0, 0, 0]
    assert got[3] > 0


# Rows that are searched at once, or block by block, of which the last is whole or not.
@pytest.mark.parametrize(("num", "vocab_size"), [(50, 400), (50, 32_768), (3, 151_936), (200, 901)])
def test_a_draw_inverts_the_cumulative_mass(num: int, vocab_size: int) -> None:
    logits = 3 * torch.randn(num, vocab_size, generator=torch.Generator().manual_seed(0))
    logits[:, vocab_size // 3 : vocab_size // 2] = -torch.inf
    drawn = sample(logits, SamplingParams(), torch.Generator().manual_seed(1))
    uniform = torch.rand((num, 1), dtype=torch.float64, generator=torch.Generator().manual_seed(1))[:, 0].tolist()
    for mass, got, u in zip(logits.softmax(1).tolist(), drawn.tolist(), uniform, strict=True):
        total = math.fsum(mass)
        assert math.fsum(mass[:got]) <= u * total < math.fsum(mass[: got + 1])


@pytest.mark.parametrize("vocab_size", [1000, 140_000, 140_001])
def test_uniform_numbers_at_the_ends_draw_entries_that_have_mass(
    vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.full((1, vocab_size), float("-inf"))
    logits[0, [300, 301, 700]] = torch.tensor([0.0, -40.0, -40.0])
    # 1 is no random number, but rounding makes it where within a block to look.
    for uniform, wanted in ((0.0, {300}), (1 - 2**-53, {300, 301, 700}), (1.0, {300, 301, 700})):
        monkeypatch.setattr(torch, "rand", lambda size, u=uniform, **_: torch.full(size, u, dtype=torch.float64))
        assert int(sample(logits, SamplingParams())) in wanted


@pytest.mark.parametrize(
    "params",
    [SamplingParams(), SamplingParams(temperature=0.5), SamplingParams(top_k=3), SamplingParams(temperature=0)],
)
def test_log_probabilities_are_of_the_logits_as_they_are(params: SamplingParams) -> None:
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    ids, logprobs = sample_with_logprobs(logits, params, torch.Generator().manual_seed(2))
    assert ids.equal(sample(logits, params, torch.Generator().manual_seed(2)))
    assert torch.allclose(logprobs, logits.double().log_softmax(1).gather(1, ids[:, None])[:, 0].float(), atol=1e-6)


def test_the_same_generator_state_gives_the_same_tokens() -> None:
    logits = torch.randn(50, 30)
    first, again, other = (
        sample(logits, SamplingParams(), SamplingParams(seed=s).generator(logits.device)) for s in (1, 1, 2)
    )
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize(
    "field",
    [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.01}, {"top_k": -1}, {"seed": -1}],
)
def test_impossible_values_name_their_field(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        SamplingParams(**field)
