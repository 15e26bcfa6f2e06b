from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from latentforge.model.autoencoder import Autoencoder, Posterior
from latentforge.model.config import AutoencoderConfig
from latentforge.model.optim import build_optimizers

MakeConfig = Callable[..., AutoencoderConfig]


def test_a_new_autoencoder_already_reconstructs_most_tokens(rng: torch.Generator) -> None:
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(vocab_size=512, pad_id=1, hidden_size=64, chunk_hidden_size=256)).eval()
    tokens = torch.randint(512, (64, 8), generator=rng)
    assert (model.decode(model.encode(tokens).mean).argmax(-1) == tokens).float().mean() > 0.97


@pytest.mark.parametrize(
    ("latent", "chunk_hidden", "length"),
    [(64, 128, 8**0.5), (256, 256, 4.0), (64, 512, 8**0.5)],
    ids=["narrower", "wider", "wider-then-narrower"],
)
@torch.no_grad()
def test_equal_codes_bring_every_token_back_before_training(
    rng: torch.Generator, latent: int, chunk_hidden: int, length: float
) -> None:
    sizes = {"hidden_size": 16, "latent_size": latent, "chunk_hidden_size": chunk_hidden}
    torch.manual_seed(0)
    plain, equal = (
        Autoencoder(AutoencoderConfig(vocab_size=1000, pad_id=1, **sizes, equal_codes=equal)).eval()
        for equal in (False, True)
    )
    # Every id at every place.
    chunks = torch.stack([torch.randperm(1000, generator=rng) for _ in range(8)], dim=1)
    means = equal.encode(chunks).mean
    codes = means.unflatten(-1, (8, -1)).norm(dim=-1)
    torch.testing.assert_close(codes, torch.full((1000, 8), length), rtol=1e-4, atol=0)
    assert equal.decode(means).argmax(-1).equal(chunks)
    assert (plain.decode(plain.encode(chunks).mean).argmax(-1) == chunks).float().mean() < 0.99


def test_training_lowers_the_loss(autoencoder_config: MakeConfig, rng: torch.Generator) -> None:
    torch.manual_seed(0)
    model = Autoencoder(autoencoder_config(token_dropout=0.0, latent_dropout=0.0, latent_size=32)).train()
    optimizers = build_optimizers(model, lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model.loss(torch.randint(64, (64, 4), generator=rng), rng)
        loss.total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.ce.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_every_parameter_gets_a_finite_gradient(autoencoder_config: MakeConfig, rng: torch.Generator) -> None:
    model = Autoencoder(autoencoder_config()).train()
    torch.nn.init.normal_(model.to_log_std.weight, std=0.1)
    for block in (model.encode_tokens, model.encode_chunk, model.decoder.decode_chunk, model.decoder.decode_tokens):
        torch.nn.init.normal_(block.down.weight, std=0.1)
    model.loss(torch.randint(64, (32, 4), generator=rng), rng).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


def test_the_loss_is_that_of_its_logits(autoencoder_config: MakeConfig) -> None:
    model = Autoencoder(autoencoder_config()).eval()
    tokens = torch.randint(64, (40, 4))
    loss = model.loss(tokens, torch.Generator().manual_seed(1))
    logits = model.decode(model.encode(tokens).sample(torch.Generator().manual_seed(1))).flatten(0, 1)
    wanted = F.cross_entropy(logits, tokens.flatten())
    torch.testing.assert_close(loss.ce, wanted)
    assert loss.token_accuracy == (logits.argmax(-1) == tokens.flatten()).float().mean()
    assert 0 < loss.token_accuracy < 1
    parameters = [*model.decoder.parameters(), model.embedding.weight, model.compress.weight]
    gradients = (torch.autograd.grad(x, parameters, retain_graph=True) for x in (loss.ce, wanted))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_mask_is_no_vocabulary_id(autoencoder_config: MakeConfig, rng: torch.Generator) -> None:
    model = Autoencoder(autoencoder_config(token_dropout=0.9, latent_dropout=0.0)).train()
    assert model.embedding.num_embeddings == model.config.vocab_size
    seen: list[torch.Tensor] = []
    model.encode_tokens.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tokens = torch.full((50, 4), 5)
    model.loss(tokens, rng)
    inputs = seen[0].flatten(0, 1)
    masked = (inputs == model.mask_embedding).all(1)
    assert 0.8 < masked.float().mean() < 0.98
    assert inputs[~masked].equal(model.embedding.weight[5].expand_as(inputs[~masked]))
    assert not (model.embedding.weight == model.mask_embedding).all(1).any()


def test_dropout_is_of_training_only_and_follows_the_generator(autoencoder_config: MakeConfig) -> None:
    model = Autoencoder(autoencoder_config(token_dropout=0.5, latent_dropout=0.5))
    tokens = torch.randint(64, (40, 4))

    def ce(seed: int) -> float:
        return model.loss(tokens, torch.Generator().manual_seed(seed)).ce.item()

    model.train()
    trained = ce(1)
    assert trained == ce(1) != ce(2)
    assert ce(1) > model.eval().loss(tokens, torch.Generator().manual_seed(1)).ce.item()


def test_kl_is_that_of_gaussians_and_floored_per_dimension(
    autoencoder_config: MakeConfig, rng: torch.Generator
) -> None:
    posterior = Posterior(torch.randn(5, 3, generator=rng), 0.3 * torch.randn(5, 3, generator=rng))
    normal = torch.distributions.Normal(posterior.mean, posterior.log_std.exp())
    wanted = torch.distributions.kl_divergence(normal, torch.distributions.Normal(torch.zeros(5, 3), torch.ones(5, 3)))
    torch.testing.assert_close(posterior.kl(), wanted)

    model = Autoencoder(autoencoder_config(kl_weight=1.0, kl_floor=1000.0)).eval()
    loss = model.loss(torch.randint(64, (8, 4), generator=rng), rng)
    torch.testing.assert_close(loss.total, 4 * loss.ce + 16 * 1000.0)


def test_posterior_samples_follow_mean_deviation_and_generator() -> None:
    posterior = Posterior(torch.full((20_000, 1), 3.0), torch.full((20_000, 1), -1.0))
    drawn = posterior.sample(torch.Generator().manual_seed(1))
    assert drawn.mean().item() == pytest.approx(3, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.3679, abs=0.01)
    assert drawn.equal(posterior.sample(torch.Generator().manual_seed(1)))


def test_k8_d1024_trains(rng: torch.Generator) -> None:
    config = AutoencoderConfig(vocab_size=100, pad_id=1, latent_size=1024, hidden_size=64, chunk_hidden_size=512)
    model = Autoencoder(config).train()
    loss = model.loss(torch.randint(100, (4, 8), generator=rng), rng)
    loss.total.backward()
    assert loss.total.isfinite()
    assert model.encode(torch.zeros(2, 3, 8, dtype=torch.int64)).mean.shape == (2, 3, 1024)
    assert model.decode(torch.zeros(2, 3, 1024)).shape == (2, 3, 8, 100)


def test_sizes_that_k_does_not_divide_work(autoencoder_config: MakeConfig) -> None:
    model = Autoencoder(autoencoder_config(chunk_size=3, latent_size=10, chunk_hidden_size=20))
    assert model.decode(model.encode(torch.zeros(2, 3, dtype=torch.int64)).mean).shape == (2, 3, 64)


def test_chunks_of_another_length_are_refused(autoencoder_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match=r"K=4 tokens, got shape \(2, 5\)"):
        Autoencoder(autoencoder_config()).encode(torch.zeros(2, 5, dtype=torch.int64))
