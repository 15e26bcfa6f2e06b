from collections.abc import Callable
from itertools import count
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from latentforge.model.chunks import to_chunks
from latentforge.model.config import InductionConfig, LogitFeaturesConfig, StudentConfig
from latentforge.model.generation import ChunkGenerator, GeneratedChunk, TokenGenerator
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams
from latentforge.model.token_level import TokenLevelModel, token_level_config

MakeModel = Callable[..., LatentModel]
K, V, PAD = 4, 64, 1
GREEDY = SamplingParams(temperature=0)
NEVER_EOS = V + 1


def ids_of(chunks: list[GeneratedChunk]) -> list[int]:
    return [i for chunk in chunks for i in chunk.token_ids]


def run(
    generator: ChunkGenerator | TokenGenerator,
    prompt: list[int],
    max_tokens: int,
    params: SamplingParams,
    eos_id: int | None = NEVER_EOS,
) -> list[GeneratedChunk]:
    return list(generator.generate(prompt, max_tokens, params, eos_id))


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("prompt_length", [0, 1, 4, 7, 8])
def test_incremental_greedy_equals_recomputing_from_scratch(
    make_model: MakeModel, prompt_length: int, context: int
) -> None:
    model = make_model(induction=InductionConfig(context=context))
    prompt = list(range(5, 5 + prompt_length))
    got = run(ChunkGenerator(model), prompt, 12, GREEDY)
    written = ids_of(got)
    tokens = to_chunks(torch.tensor(prompt + written), K, PAD)
    prefix = tokens.numel() - len(written)
    with torch.no_grad():
        logits = model.logits(tokens[None]).logits.flatten(1, 2)[0, prefix:]
    logits[:, PAD] = -torch.inf
    assert written == logits.argmax(-1).tolist()
    logprobs = torch.tensor([value for chunk in got for value in chunk.logprobs])
    wanted = logits.log_softmax(-1).gather(1, torch.tensor(written)[:, None])[:, 0]
    torch.testing.assert_close(logprobs, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("features", "wanted"), [("autoencoder", True), ("linear", False), ("embeddings", False)])
def test_latents_that_nothing_is_written_from_are_not_made(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, features: Any, wanted: bool
) -> None:
    model = make_model(logit_features=LogitFeaturesConfig(kind=features, width=16))
    head = Mock(wraps=model.student.head.forward)
    monkeypatch.setattr(model.student.head, "forward", head)
    written = ids_of(run(ChunkGenerator(model), [5, 6, 7, 8], 8, GREEDY))
    assert head.called == model.writes_from_latents == wanted
    with torch.no_grad():
        logits = model.logits(torch.tensor([5, 6, 7, 8, *written]).view(1, -1, K)).logits[0, 1:].flatten(0, 1)
    logits[:, PAD] = -torch.inf
    assert written == logits.argmax(-1).tolist()


@pytest.mark.parametrize("head", ["deterministic", "energy"])
def test_the_same_seed_writes_the_same_and_another_does_not(make_model: MakeModel, head: str) -> None:
    generator = ChunkGenerator(make_model(head=head))
    first, again, other = (ids_of(run(generator, [5, 6], 24, SamplingParams(seed=s))) for s in (1, 1, 2))
    torch.manual_seed(99)
    assert first == again == ids_of(run(generator, [5, 6], 24, SamplingParams(seed=1)))
    assert first != other


def test_pads_are_never_written(make_model: MakeModel) -> None:
    generator = ChunkGenerator(make_model(max_chunks=120))
    written = ids_of(run(generator, [], 470, SamplingParams(temperature=100, seed=1)))
    assert len(written) == 470
    assert set(range(V)) - set(written) == {PAD}


@pytest.mark.parametrize("max_tokens", [1, 3, 4, 6, 8])
def test_max_tokens_cuts_inside_a_chunk(make_model: MakeModel, max_tokens: int) -> None:
    generator = ChunkGenerator(make_model())
    whole = ids_of(run(generator, [5], 12, GREEDY))
    got = run(generator, [5], max_tokens, GREEDY)
    assert ids_of(got) == whole[:max_tokens]
    assert [chunk.finish_reason for chunk in got] == [None] * (len(got) - 1) + ["length"]


def test_end_of_text_stops_inside_a_chunk_and_is_not_written(make_model: MakeModel) -> None:
    generator = ChunkGenerator(make_model())
    params = SamplingParams(seed=3)
    whole = ids_of(run(generator, [5], 40, params))
    for position in (0, 5, 6):
        if whole.index(whole[position]) == position:
            got = run(generator, [5], 40, params, eos_id=whole[position])
            assert ids_of(got) == whole[:position]
            assert got[-1].finish_reason == "stop"
            assert len(got) == position // K + 1


def test_a_full_context_ends_with_length(make_model: MakeModel) -> None:
    generator = ChunkGenerator(make_model(max_chunks=4))
    got = run(generator, [5] * 8, 100, GREEDY)
    assert len(ids_of(got)) == 8
    assert got[-1].finish_reason == "length"


def test_requests_that_cannot_be_served_are_refused_at_once(make_model: MakeModel) -> None:
    generator = ChunkGenerator(make_model(max_chunks=4))
    assert ids_of(run(generator, [5] * 12, 9, GREEDY))
    with pytest.raises(ValueError, match="the prompt has 13 tokens, but at most 12 leave room"):
        generator.generate([5] * 13, 9)
    with pytest.raises(ValueError, match="prompt id 64 is not in the vocabulary of 64 ids"):
        generator.generate([64], 9)
    with pytest.raises(ValueError, match="max_tokens=0"):
        generator.generate([5], 0)


def test_cancelling_ends_before_the_next_step(make_model: MakeModel) -> None:
    calls = count()
    got = list(ChunkGenerator(make_model()).generate([5], 40, GREEDY, NEVER_EOS, lambda: next(calls) == 2))
    assert [len(chunk.token_ids) for chunk in got] == [K, K, 0]
    assert got[-1].finish_reason == "cancelled"


def test_interleaved_calls_do_not_disturb_each_other(make_model: MakeModel) -> None:
    generator = ChunkGenerator(make_model())
    alone = [ids_of(run(generator, [5 + i], 12, SamplingParams(seed=i))) for i in range(3)]
    calls = [generator.generate([5 + i], 12, SamplingParams(seed=i), NEVER_EOS) for i in range(3)]
    together: list[list[int]] = [[], [], []]
    for step in zip(*calls, strict=True):
        for ids, chunk in zip(together, step, strict=True):
            ids += chunk.token_ids
    assert together == alone
    assert not torch.is_inference_mode_enabled()


def test_the_baseline_has_the_same_backbone_and_contract(student_config: Callable[..., StudentConfig]) -> None:
    torch.manual_seed(0)
    config = student_config(max_chunks=8)
    baseline = TokenLevelModel(token_level_config(config))
    baseline.output_table.weight.data.normal_(std=0.1)
    baseline.bias.data.normal_()
    assert (baseline.config.hidden_size, baseline.config.num_layers) == (config.hidden_size, config.num_layers)
    generator = TokenGenerator(baseline)
    got = run(generator, [5, 6, 7], 10, GREEDY)
    written = ids_of(got)
    assert [len(chunk.token_ids) for chunk in got] == [1] * 10
    assert got[-1].finish_reason == "length"
    with torch.no_grad():
        logits = baseline.logits(torch.tensor([[5, 6, 7, *written]]))[0, 3:]
    logits[:, config.pad_id] = -torch.inf
    assert written == logits.argmax(-1).tolist()
    first, again, other = (ids_of(run(generator, [], 10, SamplingParams(seed=s))) for s in (1, 1, 2))
    assert first == again != other
    with pytest.raises(ValueError, match="the prompt has 32 tokens, but at most 31 leave room"):
        generator.generate([5] * 32, 1)
