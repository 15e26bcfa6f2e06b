from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latentforge.model.batch_generation import generate_batch
from latentforge.model.chunks import to_chunks
from latentforge.model.config import ChunkDecoderConfig, InductionConfig, LogitFeaturesConfig, StudentConfig
from latentforge.model.generation import ChunkGenerator, TokenGenerator
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel, token_level_config

MakeModel = Callable[..., LatentModel]
V, K, EOS, PAD = 64, 4, 0, 1
GREEDY = SamplingParams(temperature=0)

STUDENTS: dict[str, dict[str, Any]] = {
    **{
        f"{kind}-window{window}": {
            "chunk_decoder": ChunkDecoderConfig(kind=kind, width=16, rank=8, window=window, num_layers=1 + window)
        }
        for kind in ("gru", "transformer")
        for window in (0, 1, 2)
    },
    "no-decoder": {"chunk_decoder": ChunkDecoderConfig(kind="none")},
    "frequent-ids": {"chunk_decoder": ChunkDecoderConfig(width=16, rank=8, frequent_ids=9)},
    "linear-features": {"logit_features": LogitFeaturesConfig(kind="linear", width=12)},
    "features-of-embeddings": {"logit_features": LogitFeaturesConfig(kind="embeddings", width=16)},
    "induction": {"induction": InductionConfig(context=2, size=12)},
    "induction-transformer": {
        "induction": InductionConfig(context=5),
        "chunk_decoder": ChunkDecoderConfig(kind="transformer", width=16, rank=8),
    },
    "recurrent": {"chunk_decoder": ChunkDecoderConfig(kind="recurrent", width=16, rank=8)},
    "K1": {"chunk_size": 1, "max_chunks": 40},
    "K1-no-window": {"chunk_size": 1, "max_chunks": 40, "chunk_decoder": ChunkDecoderConfig(width=16, window=0)},
}


@pytest.fixture
def make_student(make_model: MakeModel) -> Callable[[str], LatentModel]:
    """Makes one of STUDENTS."""

    def make(name: str) -> LatentModel:
        return make_model(**STUDENTS[name])

    return make


@pytest.fixture(params=[0, 3])
def token_model(request: pytest.FixtureRequest, student_config: Callable[..., StudentConfig]) -> TokenLevelModel:
    torch.manual_seed(5)
    induction = InductionConfig(context=request.param)
    model = TokenLevelModel(token_level_config(student_config(induction=induction))).eval()
    model.output_table.weight.data.normal_(std=0.1)
    model.bias.data.normal_()
    return model


def student_of(model: LatentModel | TokenLevelModel) -> Student | TokenLevelModel:
    return model.student if isinstance(model, LatentModel) else model


def make_prompts(num: int, length: int) -> Tensor:
    return torch.randint(2, V, (num, length), generator=torch.Generator().manual_seed(length))


def alone(model: LatentModel | TokenLevelModel, prompts: Tensor, num_tokens: int) -> list[list[int]]:
    """Each prompt by the generators for one request, greedily, up to its end of text."""
    generator = ChunkGenerator(model) if isinstance(model, LatentModel) else TokenGenerator(model)
    return [
        [i for chunk in generator.generate(prompt, num_tokens, GREEDY) for i in chunk.token_ids]
        for prompt in prompts.tolist()
    ]


@pytest.mark.parametrize("length", [0, 3, 8, 9])
@pytest.mark.parametrize("name", STUDENTS)
def test_every_text_is_what_its_prompt_gives_alone(make_student: Any, name: str, length: int) -> None:
    model, prompts = make_student(name), make_prompts(5, length)
    got = generate_batch(model, prompts, 14, GREEDY)
    texts = [ids[:n] for ids, n in zip(got.token_ids.tolist(), got.lengths.tolist(), strict=True)]
    assert texts == alone(model, prompts, 14)
    assert length == 0 or len({tuple(text) for text in texts}) > 1


@pytest.mark.parametrize("length", [0, 1, 9])
def test_every_text_of_the_baseline_is_what_its_prompt_gives_alone(token_model: TokenLevelModel, length: int) -> None:
    prompts = make_prompts(5, length)
    got = generate_batch(token_model, prompts, 14, GREEDY)
    texts = [ids[:n] for ids, n in zip(got.token_ids.tolist(), got.lengths.tolist(), strict=True)]
    assert texts == alone(token_model, prompts, 14)
    assert got.steps == 14


@pytest.mark.parametrize("name", STUDENTS)
def test_greedy_tokens_are_the_likeliest_of_the_teacher_forced_logits(make_student: Any, name: str) -> None:
    model, prompts = make_student(name), make_prompts(3, 6)
    k = model.chunk_size
    written = generate_batch(model, prompts, 11, GREEDY, stop_at_eos=False).token_ids
    whole = torch.cat([prompts, written], 1)
    # The last chunk is cut by num_tokens; what follows it does not matter to causal logits.
    tail = -(whole.shape[1] + (-6 % k)) % k
    tokens = to_chunks(torch.cat([whole, whole.new_full((3, tail), 5)], 1), k, PAD)
    with torch.no_grad():
        logits = model.logits(tokens).logits.flatten(1, 2)
    logits[..., PAD] = -torch.inf
    first = 6 + (-6 % k)
    assert written.equal(logits[:, first : first + 11].argmax(-1))


def test_greedy_tokens_of_the_baseline_are_the_likeliest(token_model: TokenLevelModel) -> None:
    prompts = make_prompts(3, 6)
    written = generate_batch(token_model, prompts, 11, GREEDY, stop_at_eos=False).token_ids
    with torch.no_grad():
        logits = token_model.logits(torch.cat([prompts, written], 1))[:, 6:]
    logits[..., PAD] = -torch.inf
    assert written.equal(logits.argmax(-1))


@pytest.fixture(params=["latent", "energy", "token-level"])
def any_model(request: pytest.FixtureRequest, make_model: MakeModel, token_model: TokenLevelModel) -> Any:
    if request.param == "token-level":
        return token_model
    return make_model(head="energy" if request.param == "energy" else "deterministic")


def test_the_same_seed_writes_the_same_and_another_does_not(any_model: Any) -> None:
    first, again, other = (
        generate_batch(any_model, make_prompts(4, 5), 14, SamplingParams(seed=s)).token_ids for s in (1, 1, 2)
    )
    assert first.equal(again)
    assert not first.equal(other)
    assert len({tuple(text) for text in first.tolist()}) == 4


def test_behind_its_end_a_text_holds_nothing_else(any_model: Any) -> None:
    prompts, params = make_prompts(40, 5), SamplingParams(seed=3)
    bias = student_of(any_model).bias
    bias.data[EOS] = bias.max() + 1
    free = generate_batch(any_model, prompts, 14, params, stop_at_eos=False)
    got = generate_batch(any_model, prompts, 14, params)
    assert free.lengths.tolist() == [14] * 40
    wanted = [text.index(EOS) if EOS in text else 14 for text in free.token_ids.tolist()]
    assert got.lengths.tolist() == wanted
    assert len(set(wanted)) > 3
    for text, other, n in zip(got.token_ids.tolist(), free.token_ids.tolist(), wanted, strict=True):
        assert text == other[:n] + [EOS] * (14 - n)
    assert any(EOS in text[: i - 1] and text[i] != EOS for text in free.token_ids.tolist() for i in range(2, 14))


def test_texts_that_end_at_different_steps_are_all_waited_for(any_model: Any) -> None:
    bias = student_of(any_model).bias
    bias.data[EOS] = bias.max() + 12
    prompts, params = make_prompts(6, 5), SamplingParams(temperature=8, seed=4)
    free = generate_batch(any_model, prompts, 48, params, stop_at_eos=False).token_ids.tolist()
    ends = [text.index(EOS) // any_model.chunk_size for text in free]
    assert len(set(ends)) > 2
    assert generate_batch(any_model, prompts, 48, params).steps == max(ends) + 1 < 48 // any_model.chunk_size


def test_it_ends_when_all_texts_have_ended(any_model: Any) -> None:
    bias = student_of(any_model).bias
    bias.data[EOS] = 1e4
    seen: list[int] = []
    got = generate_batch(any_model, make_prompts(3, 5), 14, GREEDY, on_step=lambda: seen.append(1))
    assert got.steps == len(seen) == 1
    assert got.lengths.tolist() == [0, 0, 0]
    assert got.token_ids.tolist() == [[EOS] * 14] * 3
    on = generate_batch(any_model, make_prompts(3, 5), 14, GREEDY, stop_at_eos=False)
    assert on.steps == -(-14 // any_model.chunk_size)


def log_softmax_of(model: LatentModel | TokenLevelModel, texts: Tensor) -> Tensor:
    """Teacher-forced log probabilities [b, L, V] of texts [b, L] of whole chunks, without the pad."""
    with torch.no_grad():
        if isinstance(model, LatentModel):
            logits = model.logits(texts.unflatten(1, (-1, model.chunk_size))).logits.flatten(1, 2)
        else:
            logits = model.logits(texts)
    return logits.index_fill(-1, torch.tensor(PAD), -torch.inf).log_softmax(-1)


@pytest.mark.parametrize("name", [*STUDENTS, "token-level"])
def test_forced_tokens_are_read_and_every_log_probability_is_the_teacher_forced_one(
    name: str, make_student: Callable[[str], LatentModel], token_model: TokenLevelModel
) -> None:
    model = token_model if name == "token-level" else make_student(name)
    prompts, forced = make_prompts(3, 8), make_prompts(3, 6)
    got = generate_batch(model, prompts, 8, SamplingParams(seed=3), forced=forced, stop_at_eos=False)
    assert got.token_ids[:, :6].equal(forced)
    assert len({tuple(text) for text in got.token_ids[:, 6:].tolist()}) > 1
    wanted = log_softmax_of(model, torch.cat([prompts, got.token_ids], 1))[:, 8:].gather(2, got.token_ids[..., None])
    torch.testing.assert_close(got.logprobs, wanted[..., 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("any_model", ["latent", "token-level"], indirect=True)
def test_two_tokens_are_drawn_as_their_probabilities_say(any_model: Any, temperature: float) -> None:
    """Chi-square over the first token, and over the second one summed over all first ones."""
    num, prompt, k = 20_000, make_prompts(1, 5), any_model.chunk_size
    drawn = generate_batch(
        any_model, prompt.expand(num, -1), 2, SamplingParams(seed=11, temperature=temperature), stop_at_eos=False
    ).token_ids
    texts = torch.cat([prompt.expand(V, -1), torch.arange(V)[:, None], torch.full((V, 3), 5)], 1)
    with torch.no_grad():
        if isinstance(any_model, LatentModel):
            logits = any_model.logits(to_chunks(texts, k, PAD)).logits.flatten(1, 2)
        else:
            logits = any_model.logits(texts)
    first = 5 + -5 % k
    wanted_logits = logits[:, first : first + 2].double()
    wanted_logits[..., PAD] = -torch.inf
    p = (wanted_logits / temperature).softmax(-1)
    for got, wanted in ((drawn[:, 0], p[0, 0]), (drawn[:, 1], p[0, 0] @ p[:, 1])):
        counts, expected = got.bincount(minlength=V).double(), num * wanted
        kept = expected >= 5
        chi_square = ((counts - expected)[kept].square() / expected[kept]).sum()
        freedom = int(kept.sum()) - 1
        assert freedom >= 4
        assert chi_square < freedom + 4 * (2 * freedom) ** 0.5
        assert counts[PAD] == 0


def test_requests_that_cannot_be_served_are_refused(any_model: Any) -> None:
    k = any_model.chunk_size
    # 64 positions for tokens in either: 13 prompt tokens fill 16 of a latent student's.
    room = 48 if k > 1 else 51
    assert generate_batch(any_model, make_prompts(2, 13), room, GREEDY, stop_at_eos=False).token_ids.shape == (2, room)
    with pytest.raises(ValueError, match=f"13 tokens and num_tokens={room + 1} take 65.*context is 64"):
        generate_batch(any_model, make_prompts(2, 13), room + 1, GREEDY)
    for bad in (64, -1):
        with pytest.raises(ValueError, match=f"prompts id {bad} is not in the vocabulary of 64 ids"):
            generate_batch(any_model, torch.tensor([[5, 6], [7, bad]]), 4, GREEDY)
        with pytest.raises(ValueError, match=f"forced id {bad} is"):
            generate_batch(any_model, make_prompts(2, 3), 4, GREEDY, forced=torch.tensor([[5], [bad]]))
    with pytest.raises(ValueError, match="num_tokens=0"):
        generate_batch(any_model, make_prompts(2, 3), 0, GREEDY)
    with pytest.raises(ValueError, match=r"torch.int64 \[3\]; give int64 \[b, L\]"):
        generate_batch(any_model, torch.tensor([5, 6, 7]), 4, GREEDY)
    with pytest.raises(ValueError, match=r"torch.int64 \[0, 3\]"):
        generate_batch(any_model, make_prompts(0, 3), 4, GREEDY)
    with pytest.raises(ValueError, match=r"forced are torch.int64 \[3, 1\]; give int64 \[b, L\] with b of 2"):
        generate_batch(any_model, make_prompts(2, 3), 4, GREEDY, forced=make_prompts(3, 1))
    with pytest.raises(ValueError, match="num_tokens=4; ask for at least 5"):
        generate_batch(any_model, make_prompts(2, 3), 4, GREEDY, forced=make_prompts(2, 5))


def test_pads_are_never_written(any_model: Any) -> None:
    params = SamplingParams(temperature=100, seed=1)
    got = generate_batch(any_model, make_prompts(200, 0), 14, params, stop_at_eos=False).token_ids
    assert set(range(V)) - set(got.flatten().tolist()) == {PAD}
