import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latentforge.model.ablation import Part, part_worth, parts_of
from latentforge.model.chunk_decoder.recurrent import RecurrentDecoder
from latentforge.model.chunk_decoder.split import SplitDecoder
from latentforge.model.config import ChunkDecoderConfig, InductionConfig, LogitFeaturesConfig, StudentConfig
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.output_loss import OutputLayer
from latentforge.model.token_level import TokenLevelModel, token_level_config
from tests.slow_split import split_logits

MakeModel = Callable[..., LatentModel]
MakeTokenLevel = Callable[..., TokenLevelModel]

K, V, PAD = 4, 64, 1
INDUCTION = {"induction": InductionConfig(context=2, size=12)}
SPLIT = {
    "positions": "tokens",
    "chunk_decoder": ChunkDecoderConfig(kind="split", width=16, rank=8),
    "logit_features": LogitFeaturesConfig(kind="none"),
}
RECURRENT = {
    "chunk_decoder": ChunkDecoderConfig(kind="recurrent", width=16, rank=8, num_blocks=1),
    "logit_features": LogitFeaturesConfig(kind="none"),
}


def noise(index: int) -> torch.Generator:
    return torch.Generator().manual_seed(11 + index)


@pytest.fixture
def make_token_level(student_config: Callable[..., StudentConfig]) -> MakeTokenLevel:
    def make(**changes: Any) -> TokenLevelModel:
        torch.manual_seed(5)
        model = TokenLevelModel(token_level_config(student_config(**changes))).eval()
        model.output_table.weight.data.normal_(std=0.1)
        return model

    return make


@pytest.fixture
def batches() -> list[StudentBatch]:
    """Texts that repeat themselves; a first chunk with pads, tokens that do not count, chunks of which none does."""
    random = torch.Generator().manual_seed(2)
    found = []
    for num in (2, 1):
        tokens = torch.randint(2, 12, (num, 6 * K), generator=random)
        valid = torch.ones(num, 6 * K, dtype=torch.bool)
        valid[:, 0] = False
        found.append(StudentBatch(tokens, valid))
    found[0].tokens[0, :2], found[0].valid[0, :2] = PAD, False
    found[0].valid[1, 9:18] = False
    found[1].valid[0, 5 * K :] = False
    return found


def reference(model: LatentModel, batches: list[StudentBatch], part: Part | None) -> Tensor:
    """Nats of each valid token by the definition: a chunk at a time, from whole distributions."""
    student = model.student
    if isinstance(student.chunk_decoder, SplitDecoder):
        return split_reference(model, batches, part)
    texts = [batch.tokens.view(len(batch.tokens), -1, K) for batch in batches]
    hidden = [model.hidden(chunks) for chunks in texts]
    latents = [student.head(states, 1, noise(i))[0] for i, states in enumerate(hidden)]
    counted = [
        (i, b, t)
        for i, batch in enumerate(batches)
        for b in range(len(batch.tokens))
        for t in range(texts[i].shape[1])
        if any(batch.valid[b, t * K + j] for j in range(K))
    ]
    mean_hidden, mean_latent = (
        torch.stack([states[i][b, t] for i, b, t in counted]).mean(0) for states in (hidden, latents)
    )
    num_window = K * student.config.chunk_decoder.window
    pads = student.embed(torch.full((1, num_window), PAD))
    nats = []
    for i, (batch, chunks) in enumerate(zip(batches, texts, strict=True)):
        embedded = student.embed(chunks)
        at_mean = student.head(mean_hidden.expand_as(hidden[i]), 1, noise(i))[0]
        inputs = []
        for b in range(len(chunks)):
            before = torch.cat([pads[0], embedded[b].flatten(0, 1)])
            for t in range(chunks.shape[1]):
                state = mean_hidden if part == "backbone" else hidden[i][b, t]
                latent = {"backbone": at_mean[b, t], "latent": mean_latent}.get(part or "", latents[i][b, t])
                if isinstance(student.chunk_decoder, RecurrentDecoder):
                    # A GRU that goes on over the text, or one that begins at the chunk.
                    text = embedded[b, t][None] if part == "window" else embedded[b, : t + 1].flatten(0, 1)[None]
                    read: tuple[Tensor, ...] = (student.chunk_decoder.text_states(text)[:, -K:],)
                else:
                    window = pads if part == "window" else before[None, t * K : t * K + num_window]
                    read = window, embedded[b, t][None]
                layer = model.output_of_chunks(state[None], latent[None], *read)
                inputs.append(layer.inputs)
        found = None if part == "copy" else model.induction(chunks, embedded)
        logits = layer._replace(inputs=torch.cat(inputs), induction=found).logits().double()
        of_tokens = logits.log_softmax(-1).gather(1, batch.tokens.view(-1, 1))[:, 0]
        nats.append(-of_tokens[batch.valid.flatten()])
    return torch.cat(nats)


def split_reference(model: LatentModel, batches: list[StudentBatch], part: Part | None) -> Tensor:
    """The same for a split decoder: the first layers' states at their mean, each place of a chunk at its own."""
    found = []
    for batch in batches:
        tokens = batch.tokens.view(len(batch.tokens), -1, K)
        lower, counted = model.student.lower_states(tokens), batch.valid.view(len(tokens), -1, K).any(-1)
        found += [lower[b, t * K : (t + 1) * K] for b, t in counted.nonzero().tolist()]
    mean = torch.stack(found).mean(0).repeat(6, 1)
    nats = []
    for batch in batches:
        tokens = batch.tokens.view(len(batch.tokens), -1, K)
        logits = torch.cat([split_logits(model, text, mean if part == "backbone" else None) for text in batch.tokens])
        heads = model.induction(tokens, model.student.embed(tokens))
        if heads is not None and part != "copy":
            assert model.student.chunk_decoder is not None
            table = model.student.chunk_decoder.output.whole()
            none = OutputLayer(logits.new_zeros(len(logits), table.shape[1]), table, logits.new_zeros(V))
            logits = logits + none._replace(induction=heads).logits()
        of_tokens = logits.double().log_softmax(-1).gather(1, batch.tokens.view(-1, 1))[:, 0]
        nats.append(-of_tokens[batch.valid.flatten()])
    return torch.cat(nats)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, ["backbone", "latent", "window"]),
        (INDUCTION, ["backbone", "latent", "copy", "window"]),
        ({"chunk_decoder": ChunkDecoderConfig(width=16, rank=8, window=0)}, ["backbone", "latent"]),
        ({"chunk_decoder": ChunkDecoderConfig(width=16, rank=8, window=2)}, ["backbone", "latent", "window"]),
        ({"chunk_decoder": ChunkDecoderConfig(kind="none")}, ["backbone", "latent"]),
        (
            {"chunk_decoder": ChunkDecoderConfig(kind="transformer", width=16, rank=8, num_heads=2)},
            ["backbone", "latent", "window"],
        ),
        ({"logit_features": LogitFeaturesConfig(kind="linear", width=12)}, ["backbone", "window"]),
        (RECURRENT, ["backbone", "window"]),
        ({**SPLIT, **INDUCTION}, ["backbone", "copy"]),
        ({**RECURRENT, "num_layers": 0, **INDUCTION}, ["copy", "window"]),
        ({"head": "energy", **INDUCTION}, ["backbone", "latent", "copy", "window"]),
    ],
)
@torch.no_grad()
def test_each_part_is_worth_what_a_slow_reference_says(
    make_model: MakeModel, batches: list[StudentBatch], changes: dict[str, Any], parts: list[Part]
) -> None:
    model = make_model(**changes)
    read = []
    found = part_worth(model, batches, noise, lambda: read.append(1))
    assert parts_of(model) == list(found) == parts
    assert len(read) == 2 * len(batches)
    whole = reference(model, batches, None)
    for part, lost in found.items():
        wanted = reference(model, batches, part) - whole
        torch.testing.assert_close(lost, wanted, rtol=0, atol=2e-5)
        assert wanted.abs().max() > 1e-3, part


@torch.no_grad()
def test_of_a_token_level_model_too(make_token_level: MakeTokenLevel, batches: list[StudentBatch]) -> None:
    assert parts_of(make_token_level()) == ["backbone"]
    model = make_token_level(**INDUCTION)
    found = part_worth(model, batches, noise)
    assert list(found) == ["backbone", "copy"]
    hidden = [
        model.run_backbone(torch.cat([model.start_inputs(len(b.tokens)), model.embed(b.tokens[:, :-1])], 1))
        for b in batches
    ]
    counted = [h[b, i] for h, batch in zip(hidden, batches, strict=True) for b, i in batch.valid.nonzero().tolist()]
    mean = torch.stack(counted).double().mean(0).float()
    whole: list[Tensor] = []
    without: dict[str, list[Tensor]] = {"backbone": [], "copy": []}
    for states, batch in zip(hidden, batches, strict=True):
        heads = model.induction(batch.tokens, model.embed(batch.tokens))  # type: ignore[misc]
        for layer, to in (
            (model.output_of(states)._replace(induction=heads), whole),
            (model.output_of(mean.expand_as(states))._replace(induction=heads), without["backbone"]),
            (model.output_of(states), without["copy"]),
        ):
            of_tokens = layer.logits().double().log_softmax(-1).gather(1, batch.tokens.view(-1, 1))[:, 0]
            to.append(-of_tokens[batch.valid.flatten()])
    for part, lost in found.items():
        wanted = torch.cat(without[part]) - torch.cat(whole)
        torch.testing.assert_close(lost, wanted, rtol=0, atol=2e-5)
        assert wanted.abs().max() > 1e-3


@torch.no_grad()
def test_a_part_that_says_nothing_is_worth_nothing(make_model: MakeModel, batches: list[StudentBatch]) -> None:
    def without_backbone(model: Any) -> None:
        model.student.chunk_decoder.start.weight.zero_()
        model.student.head.down.weight.zero_()

    def without_latent(model: Any) -> None:
        model.student.head.down.weight.zero_()

    def without_copy(model: Any) -> None:
        model.student.induction.gain.zero_()
        model.student.induction.out.weight.zero_()

    def without_window(model: Any) -> None:
        # Its state goes on with every token, whichever that is.
        model.student.chunk_decoder.gru.weight_ih_l0.zero_()

    silenced: dict[Part, Callable[[Any], None]] = {
        "backbone": without_backbone,
        "latent": without_latent,
        "copy": without_copy,
        "window": without_window,
    }
    for part, silence in silenced.items():
        model = make_model(**INDUCTION)
        silence(model)
        worth = part_worth(model, batches, noise)
        assert worth[part].abs().max() < 2e-6, part
        others = set(worth) - {part, *(["latent"] if part == "backbone" else [])}
        assert all(worth[other].abs().max() > 1e-3 for other in others), part


class TwoStates(LatentModel):
    """Its backbone knows of every chunk whether it is of 2s, and its state is then 1, or of 3s: -1."""

    def hidden(self, tokens: Tensor, states: Tensor | None = None) -> Tensor:
        state = torch.zeros(*tokens.shape[:2], self.student.config.hidden_size)
        state[..., 0] = torch.where(tokens[..., 0] == 2, 1.0, -1.0)
        return state


@torch.no_grad()
def test_a_state_whose_mean_is_known(make_model: MakeModel) -> None:
    decoder, features = ChunkDecoderConfig(kind="none"), LogitFeaturesConfig(kind="linear", width=12)
    made: Any = make_model(chunk_decoder=decoder, logit_features=features)
    model: Any = TwoStates(made.autoencoder, made.student)
    own = model.student.logit_features
    for weight in (own.map.weight, own.map.bias, own.output.weight):
        weight.zero_()
    own.map.weight.view(K, 12, -1)[:, 0, 0] = 1 / own._scale
    own.output.weight[2, 0], own.output.weight[3, 0] = 1.5, -1.5
    model.student.bias.fill_(-40.0)[2:4] = 0
    # Three of four chunks are of 2s, so the mean is 1/2; what does not count is not in it.
    chunks = torch.tensor([2, 2, 3, 2, 3, 3])
    tokens = chunks.repeat_interleave(K)[None]
    valid = torch.ones_like(tokens, dtype=torch.bool)
    valid[:, 4 * K :] = False
    worth = part_worth(model, [StudentBatch(tokens, valid)], noise)["backbone"]
    known, twos, threes = (math.log1p(math.exp(-x)) for x in (3.0, 1.5, -1.5))
    wanted = [twos - known if chunk == 2 else threes - known for chunk in chunks[:4].tolist() for _ in range(K)]
    assert worth.tolist() == pytest.approx(wanted, abs=1e-5)
