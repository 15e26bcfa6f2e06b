import pytest
import torch

from latentforge.model.sampling import SamplingParams, sample

LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()


def frequencies(params: SamplingParams, logits: torch.Tensor = LOGITS) -> list[float]:
    generator = torch.Generator().manual_seed(5)
    drawn = sample(logits.expand(20_000, -1), params, generator)
    return (drawn.bincount(minlength=logits.shape[1]) / 20_000).tolist()


def test_temperature_zero_takes_the_likeliest() -> None:
    assert sample(LOGITS, SamplingParams(temperature=0)).tolist() == [1]


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
