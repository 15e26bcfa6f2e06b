import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.config import (
    AutoencoderConfig,
    ChunkDecoderConfig,
    InductionConfig,
    LogitFeaturesConfig,
    StudentConfig,
)
from latentforge.model.latent_model import LatentModel
from latentforge.model.logit_features import EmbeddingFeatures
from latentforge.model.student import Student

MakeModel = Callable[..., LatentModel]

T, K, V = 5, 4, 64
RECURRENT = ChunkDecoderConfig(kind="recurrent", width=16, rank=8, num_layers=2)
SPLIT = ChunkDecoderConfig(kind="split", width=16, rank=8, num_layers=1)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"chunk_decoder": ChunkDecoderConfig(width=16, rank=8, window=0)},
    {"chunk_decoder": ChunkDecoderConfig(width=16, rank=8, window=2, num_layers=2)},
    {"chunk_decoder": ChunkDecoderConfig(kind="transformer", width=16, rank=8, window=1, num_layers=2, num_heads=2)},
    {"chunk_decoder": ChunkDecoderConfig(kind="transformer", width=16, rank=8, window=0)},
    {"chunk_decoder": ChunkDecoderConfig(width=16, rank=8, frequent_ids=40)},
    {"logit_features": LogitFeaturesConfig(kind="linear", width=12)},
    {"logit_features": LogitFeaturesConfig(kind="embeddings", width=16)},
    {"head": "energy"},
    {"induction": InductionConfig(context=2, size=12)},
    {"chunk_decoder": RECURRENT},
    {"chunk_decoder": RECURRENT, "logit_features": LogitFeaturesConfig(kind="none")},
    {"chunk_decoder": RECURRENT, "num_layers": 0},
    {"num_layers": 0},
    {"positions": "tokens"},
    {"positions": "tokens", "chunk_decoder": SPLIT, "logit_features": LogitFeaturesConfig(kind="none")},
    {"positions": "tokens", "chunk_decoder": RECURRENT, "embed_size": 8},
]


@pytest.mark.parametrize("pads", [0, 3])
@pytest.mark.parametrize("changes", VARIANTS)
def test_a_token_changes_no_logits_up_to_itself_and_no_state_up_to_its_chunk(
    make_model: MakeModel, changes: dict[str, Any], pads: int, rng: torch.Generator
) -> None:
    model = make_model(**changes)
    decoder, has_backbone = model.student.config.chunk_decoder, model.student.config.num_layers > 0
    tokens = torch.randint(2, V, (1, T * K), generator=rng)
    tokens[0, :pads] = model.student.config.pad_id

    def run(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            out = model.logits(ids.view(1, T, K), torch.Generator().manual_seed(1))
        return out.logits.flatten(1, 2)[0], out.hidden[0]

    logits, hidden = run(tokens)
    for i in range(pads, T * K):
        changed = tokens.clone()
        changed[0, i] = 2 + (changed[0, i] - 1) % (V - 2)
        logits2, hidden2 = run(changed)
        chunk = i // K
        torch.testing.assert_close(logits2[: i + 1], logits[: i + 1], rtol=0, atol=1e-5)
        torch.testing.assert_close(hidden2[: chunk + 1], hidden[: chunk + 1], rtol=0, atol=1e-5)
        if i + 1 < T * K and ((i + 1) % K or decoder.kind == "recurrent"):
            assert (logits2[i + 1] - logits[i + 1]).abs().max() > 1e-4, (
                "the next logits of the chunk, and a recurrent decoder's of any, must see the token"
            )
        if chunk + 1 < T and has_backbone:
            assert (hidden2[chunk + 1] - hidden[chunk + 1]).abs().max() > 1e-4, "the next step must see the token"


def test_without_a_chunk_decoder_the_tokens_of_a_chunk_do_not_know_each_other(
    make_model: MakeModel, rng: torch.Generator
) -> None:
    model = make_model(chunk_decoder=ChunkDecoderConfig(kind="none"))
    tokens = torch.randint(2, V, (1, T, K), generator=rng)
    changed = tokens.clone()
    changed[0, 2, 0] = 2 + (changed[0, 2, 0] - 1) % (V - 2)
    with torch.no_grad():
        logits, logits2 = model.logits(tokens).logits[0], model.logits(changed).logits[0]
    torch.testing.assert_close(logits2[:3], logits[:3], rtol=0, atol=1e-5)
    assert (logits2[3] - logits[3]).abs().max() > 1e-4


def test_a_window_ends_where_it_says(make_model: MakeModel, rng: torch.Generator) -> None:
    for kind, window in itertools.product(("gru", "transformer"), (0, 1, 2)):
        model = make_model(chunk_decoder=ChunkDecoderConfig(kind=kind, width=16, rank=8, window=window))
        tokens = torch.randint(2, V, (1, T, K), generator=rng)
        embedded = model.student.embed(tokens)
        windows = model.student.windows(embedded)[0].detach()
        pads = model.student.embed(torch.ones(1, window * K, dtype=torch.int64)).detach()
        before = torch.cat([pads, embedded.detach().flatten(1, 2)], 1)[0]
        for t in range(T):
            torch.testing.assert_close(windows[t], before[t * K : (t + window) * K])


def test_features_can_be_a_linear_map_onto_the_autoencoders_embeddings(
    make_model: MakeModel, rng: torch.Generator
) -> None:
    model = make_model(
        logit_features=LogitFeaturesConfig(kind="embeddings", width=16), chunk_decoder=ChunkDecoderConfig(kind="none")
    )
    tokens = torch.randint(2, V, (2, T, K), generator=rng)
    found = model.logits(tokens)
    own = model.student.logit_features
    assert isinstance(own, EmbeddingFeatures)
    linear = own.map
    for k in range(K):
        slot = slice(16 * k, 16 * (k + 1))
        features = (found.hidden @ linear.weight[slot].T + linear.bias[slot]) / 4
        wanted = features @ model.autoencoder.embedding.weight.T + model.student.bias
        torch.testing.assert_close(found.logits[:, :, k], wanted)
    with pytest.raises(ValueError, match=r"logit_features\.width is 12, .* hidden_size 16; they must be the same"):
        make_model(logit_features=LogitFeaturesConfig(kind="embeddings", width=12))


def test_every_trainable_parameter_gets_a_finite_gradient(make_model: MakeModel, rng: torch.Generator) -> None:
    for changes in VARIANTS:
        model = make_model(**changes).train()
        tokens = torch.randint(2, V, (2, T, K), generator=rng)
        model.logits(tokens, rng).logits.logsumexp(-1).square().sum().backward()
        for name, parameter in model.named_parameters():
            if name.startswith("autoencoder."):
                assert not parameter.requires_grad
                assert parameter.grad is None
                continue
            if name.startswith("student.head.") and not model.writes_from_latents:
                assert parameter.grad is None, "other features need no latent"
                continue
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.count_nonzero() > 0, name


def test_the_autoencoder_stays_in_evaluation_mode(make_model: MakeModel) -> None:
    model = make_model().train()
    assert model.student.training
    assert not model.autoencoder.training


@pytest.mark.parametrize(
    ("field", "ours", "theirs"),
    [("chunk_size", 8, 4), ("latent_size", 32, 16), ("vocab_size", 80, 64), ("pad_id", 2, 1)],
)
def test_a_mismatch_is_refused_with_both_values(
    autoencoder_config: Callable[..., AutoencoderConfig],
    student_config: Callable[..., StudentConfig],
    field: str,
    ours: int,
    theirs: int,
) -> None:
    with pytest.raises(ValueError, match=f"{field} differs: the autoencoder has {ours}, the student {theirs}"):
        LatentModel(Autoencoder(autoencoder_config(**{field: ours})), Student(student_config()))


def test_k8_d1024_works(make_model: MakeModel, rng: torch.Generator) -> None:
    model = make_model(chunk_size=8, latent_size=1024)
    out = model.logits(torch.randint(2, V, (2, 3, 8), generator=rng))
    assert out.logits.shape == (2, 3, 8, V)
    assert out.latents.shape == (2, 3, 1024)
    out.logits.sum().backward()


def test_a_chunk_of_one_token_works(make_model: MakeModel) -> None:
    for kind, window in itertools.product(("gru", "transformer"), (0, 1, 3)):
        decoder = ChunkDecoderConfig(kind=kind, width=16, rank=8, window=window)
        model = make_model(chunk_size=1, chunk_decoder=decoder)
        assert model.logits(torch.full((1, 5, 1), 3)).logits.shape == (1, 5, 1, V)


def test_token_counts_start_a_student_at_the_unigram_model(
    student_config: Callable[..., StudentConfig], autoencoder_config: Callable[..., AutoencoderConfig]
) -> None:
    torch.manual_seed(0)
    model = LatentModel(Autoencoder(autoencoder_config()), Student(student_config()))
    counts = torch.arange(V) ** 2
    model.student.set_token_counts(counts)
    with torch.no_grad():
        probabilities = model.logits(torch.randint(2, V, (4, T, K))).logits.softmax(-1).mean((0, 1, 2))
    torch.testing.assert_close(probabilities, (counts + 1) / (counts + 1).sum(), rtol=0.2, atol=1e-3)
