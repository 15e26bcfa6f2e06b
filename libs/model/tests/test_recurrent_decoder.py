"""The recurrent writer against loops over tokens, and a student without layers against a plain GRU language model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentforge.model.backbone import run_backbone
from latentforge.model.chunk_decoder.recurrent import RecurrentDecoder
from latentforge.model.chunks import to_chunks
from latentforge.model.config import ChunkDecoderConfig, InductionConfig, LogitFeaturesConfig
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import ObjectiveWeights, StudentBatch, loss_of

MakeModel = Callable[..., LatentModel]
V, K, T, PAD, RANK = 64, 4, 5, 1, 8
BARE = LogitFeaturesConfig(kind="none")


def decoder_config(**changes: Any) -> ChunkDecoderConfig:
    return ChunkDecoderConfig(**{"kind": "recurrent", "width": 16, "rank": RANK, "num_layers": 2, **changes})


def cells_of(decoder: RecurrentDecoder) -> list[nn.GRUCell]:
    """The layers of its GRU, one step at a time."""
    cells = []
    for layer, weights in enumerate(decoder.gru.all_weights):
        cell = nn.GRUCell(decoder.gru.input_size if layer == 0 else decoder.gru.hidden_size, decoder.gru.hidden_size)
        for ours, theirs in zip((cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh), weights, strict=True):
            ours.data.copy_(theirs)
        cells.append(cell)
    return cells


def rms(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def written_from(decoder: RecurrentDecoder, state: Tensor) -> Tensor:
    """What a state [b, width] adds to the logits."""
    for block in decoder.blocks:
        y = rms(state, block.norm)  # type: ignore[arg-type]
        inner = F.silu(y @ block.gate.weight.T) * (y @ block.up.weight.T)  # type: ignore[operator,union-attr]
        state = state + inner @ block.down.weight.T  # type: ignore[operator,union-attr]
    return rms(state, decoder.norm) @ decoder.map.weight.T * (160 / RANK) @ decoder.output.weight.T


@torch.no_grad()
def looped_logits(model: LatentModel, tokens: Tensor) -> Tensor:
    """Logits [b, t·K, V] of tokens [b, t, K], token by token; the backbone reads the whole prefix anew each chunk."""
    student, decoder = model.student, model.student.chunk_decoder
    assert isinstance(decoder, RecurrentDecoder)
    cells, b = cells_of(decoder), len(tokens)
    states = [layer.expand(b, -1) for layer in decoder.start[:, 0]]
    inputs = [student.start_inputs(b)[:, 0]]
    logits = []
    for t in range(tokens.shape[1]):
        assert student.backbone is not None
        assert decoder.steer is not None
        assert decoder.border is not None
        hidden = run_backbone(student.backbone, torch.stack(inputs, 1))[:, -1]
        embedded = student.embed(tokens[:, t])
        for k in range(K):
            rows = slice(k * 16, (k + 1) * 16)
            steering = hidden @ decoder.steer.weight[rows].T + decoder.steer.bias[rows]
            of_latent = 0
            if model.writes_from_latents:
                features = model.autoencoder.decoder(student.head(hidden)[0])[:, k]
                of_latent = features @ model.autoencoder.embedding.weight.T
            logits.append(student.bias + of_latent + written_from(decoder, states[-1] + steering))
            read = embedded[:, k]
            for layer, cell in enumerate(cells):
                read = states[layer] = cell(read, states[layer])
        chunk = student.chunk_down(F.silu(student.chunk_up(embedded.flatten(1)))) + states[-1] @ decoder.border.weight.T
        inputs.append(rms(chunk, student.chunk_norm))
    return torch.stack(logits, 1)


@pytest.mark.parametrize("pads", [0, 2])
@pytest.mark.parametrize("features", [LogitFeaturesConfig(), BARE], ids=["latent", "bare"])
def test_it_is_what_a_loop_over_tokens_writes(
    make_model: MakeModel, rng: torch.Generator, features: LogitFeaturesConfig, pads: int
) -> None:
    model = make_model(chunk_decoder=decoder_config(num_blocks=2), logit_features=features)
    tokens = to_chunks(torch.randint(2, V, (3, T * K - pads), generator=rng), K, PAD)
    with torch.no_grad():
        found = model.logits(tokens).logits.flatten(1, 2)
    torch.testing.assert_close(found, looped_logits(model, tokens), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_without_layers_it_is_a_gru_language_model(make_model: MakeModel, rng: torch.Generator) -> None:
    model = make_model(chunk_decoder=decoder_config(), logit_features=BARE, num_layers=0)
    decoder = model.student.chunk_decoder
    assert isinstance(decoder, RecurrentDecoder)
    tokens = torch.randint(2, V, (3, T, K), generator=rng)
    states = [layer.expand(3, -1) for layer in decoder.start[:, 0]]
    wanted = []
    for ids in tokens.flatten(1).T:
        wanted.append(model.student.bias + written_from(decoder, states[-1]))
        read = model.student.embedding.weight[ids] * 10
        for layer, cell in enumerate(cells_of(decoder)):
            read = states[layer] = cell(read, states[layer])
    torch.testing.assert_close(model.logits(tokens).logits.flatten(1, 2), torch.stack(wanted, 1), rtol=1e-4, atol=1e-4)


def test_without_layers_nothing_of_a_backbone_is_left(make_model: MakeModel) -> None:
    model = make_model(chunk_decoder=decoder_config(num_layers=1), logit_features=BARE, num_layers=0)
    parts = {name.partition(".")[0] for name, _ in model.student.named_parameters()}
    assert parts == {"embedding", "constant", "head", "chunk_decoder", "bias"}
    of_decoder = {name.partition(".")[0] for name, _ in model.student.chunk_decoder.named_parameters()}  # type: ignore[union-attr]
    assert of_decoder == {"start", "gru", "blocks", "norm", "reduce", "output"}


def test_the_gru_goes_over_a_text_once_in_a_step_of_training(
    make_model: MakeModel, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(chunk_decoder=decoder_config(), induction=InductionConfig(context=2)).train()
    runs: list[Tensor] = []
    text_states = RecurrentDecoder.text_states

    def counted(self: RecurrentDecoder, embedded: Tensor) -> Tensor:
        runs.append(embedded)
        return text_states(self, embedded)

    monkeypatch.setattr(RecurrentDecoder, "text_states", counted)
    tokens = torch.randint(2, V, (2, T * K), generator=rng)
    batch = StudentBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    loss_of(model, batch, ObjectiveWeights(ce=1.0, kd=0, mse=0.1), rng).total.backward()
    assert len(runs) == 1
    for name, parameter in model.student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() > 0, name


def test_pads_on_the_right_of_a_shorter_text_change_nothing(make_model: MakeModel, rng: torch.Generator) -> None:
    """As rows of documents that are masked from one another have them."""
    model = make_model(chunk_decoder=decoder_config())
    tokens = torch.randint(2, V, (2, T, K), generator=rng)
    tokens[1, 3:] = PAD
    with torch.no_grad():
        together, alone = model.logits(tokens).logits[1, :3], model.logits(tokens[1:, :3]).logits[0]
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
