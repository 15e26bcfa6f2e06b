"""The autoencoder: K tokens to one latent and back.

An MLP without attention after CALM (Continuous Autoregressive Language Models, arXiv 2510.27688), with a linear path
from tokens to latent and back that starts as its own mirror image, so that it reconstructs most tokens before it has
learnt anything.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentforge.model.config import AutoencoderConfig
from latentforge.model.layers import SwiGLU, init_slots
from latentforge.model.noise import Noise, RowNoise, normal, uniform
from latentforge.model.output_loss import OutputLayer, TokenLosses, TokenWeights, token_losses
from latentforge.model.sparse_kd import text_buckets


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents: ``mean`` and ``log_std``, float [..., D]."""

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Noise = None) -> Tensor:
        """One latent each, [..., D], differentiable in mean and log_std."""
        return self.mean + self.log_std.exp() * normal(
            self.mean.shape, noise, dtype=self.mean.dtype, device=self.mean.device
        )

    def kl(self) -> Tensor:
        """KL to the standard normal, ½·(mean² + std² - 1) - log std, nats per dimension, [..., D]."""
        return 0.5 * (self.mean.square() + (2 * self.log_std).exp() - 1) - self.log_std


class AutoencoderLoss(NamedTuple):
    """Scalars of one batch.

    Attributes:
        total: K·ce + kl_weight·Σ_dim max(kl_dim, kl_floor), CALM's; the floor is "free bits" (Kingma et al., arXiv
            1606.04934), without which most dimensions collapse to the prior.
        ce: nats per token.
        kl: nats per chunk, not floored.
        token_accuracy: share of tokens that argmax brings back, under the same noise and dropout.
    """

    total: Tensor
    ce: Tensor
    kl: Tensor
    token_accuracy: Tensor


class LatentDecoder(nn.Module):
    """From a latent to logit features, which the output layer (the autoencoder's token embeddings) is applied to."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        k, hidden, chunk_hidden = config.chunk_size, config.hidden_size, config.chunk_hidden_size
        self.slots = (k, hidden)
        self.from_latent = nn.Linear(config.latent_size, chunk_hidden)
        self.decode_chunk = SwiGLU(chunk_hidden, config.intermediate_size)
        self.expand = nn.Linear(chunk_hidden, k * hidden, bias=False)
        self.decode_tokens = SwiGLU(hidden, config.intermediate_size)
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def forward(self, latents: Tensor) -> Tensor:
        """Maps latents [..., D] to logit features [..., K, hidden]."""
        x = self.expand(self.decode_chunk(self.from_latent(latents)))
        features: Tensor = self.decode_tokens(x.unflatten(-1, self.slots)) * self.log_scale.exp()
        return features


class Autoencoder(nn.Module):
    """Encodes chunks to Gaussians over latents and decodes latents to logits; the token embeddings serve both ends."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        k, hidden, chunk_hidden = config.chunk_size, config.hidden_size, config.chunk_hidden_size
        self.embedding = nn.Embedding(config.vocab_size, hidden)
        self.mask_embedding = nn.Parameter(torch.randn(hidden))
        self.encode_tokens = SwiGLU(hidden, config.intermediate_size)
        self.compress = nn.Linear(k * hidden, chunk_hidden, bias=False)
        self.encode_chunk = SwiGLU(chunk_hidden, config.intermediate_size)
        self.to_mean = nn.Linear(chunk_hidden, config.latent_size)
        self.to_log_std = nn.Linear(chunk_hidden, config.latent_size)
        self.decoder = LatentDecoder(config)
        self._init()

    @torch.no_grad()
    def _init(self) -> None:
        k = self.config.chunk_size
        init_slots(self.compress, k, alike=self.config.equal_codes)
        init_slots(self.to_mean, k, alike=self.config.equal_codes)
        self.decoder.from_latent.weight.copy_(self.to_mean.weight.T)
        self.decoder.from_latent.bias.zero_()
        self.decoder.expand.weight.copy_(self.compress.weight.T)
        nn.init.zeros_(self.to_log_std.weight)
        nn.init.constant_(self.to_log_std.bias, self.config.log_std_init)
        # Untrained, a token's embedding e comes back as its projection Pe to the dimensions of its slot. Entries of e
        # are about N(0, 1): its own logit e·Pe is about the number of those dimensions, other ids' are 0 on average. So
        # scaled it starts about 16 above them, whatever the sizes.
        self.decoder.log_scale.fill_(torch.tensor(16.0 / self._slot_dims()).log())
        if self.config.equal_codes:
            self.equalise_codes()

    @torch.no_grad()
    def equalise_codes(self) -> None:
        """Changes the embeddings of an untrained autoencoder with ``equal_codes`` so that their codes are equally long.

        A token's code is c = Pe, and untrained its logits are its products with all codes: its own is |c|², that of
        another id c·c'. Where all are as long as each other no other is larger (Cauchy and Schwarz); otherwise long
        codes win over short ones. P is the same in all slots.
        """
        k, hidden = self.config.chunk_size, self.config.hidden_size
        latent, chunk_hidden = self.config.latent_size // k, self.config.chunk_hidden_size // k
        projection = self.to_mean.weight[:latent, :chunk_hidden] @ self.compress.weight[:chunk_hidden, :hidden]
        codes = self.embedding.weight @ projection.T
        longer = codes * (self._slot_dims() ** 0.5 / codes.norm(dim=1, keepdim=True) - 1)
        # The least change that does it: what P does not see of an embedding stays.
        self.embedding.weight.add_(longer @ torch.linalg.pinv(projection).T)

    def _slot_dims(self) -> float:
        """Of the latent, for a token."""
        k = self.config.chunk_size
        return min(self.config.latent_size, self.config.chunk_hidden_size, k * self.config.hidden_size) / k

    def encode(self, tokens: Tensor) -> Posterior:
        """Maps token ids, int64 [..., K], to the posterior of their latent, [..., D].

        Raises:
            ValueError: the last dimension is not K.
        """
        if tokens.shape[-1] != self.config.chunk_size:
            raise ValueError(
                f"encode wants chunks of K={self.config.chunk_size} tokens, got shape {tuple(tokens.shape)}"
            )
        return self._encode(self.embedding(tokens))

    def decode(self, latents: Tensor) -> Tensor:
        """Maps latents [..., D] to logits [..., K, V]."""
        return F.linear(self.decoder(latents), self.embedding.weight)

    def loss(self, tokens: Tensor, noise: Noise = None) -> AutoencoderLoss:
        """Reconstruction loss of chunks, int64 [n, K], under posterior noise, and under dropout in training mode.

        Of a part of a batch, as ``noise`` says, all terms are its share of the batch's: they sum to it.
        """
        x = self.embedding(tokens)
        share = noise.rows / noise.of if isinstance(noise, RowNoise) else 1.0
        # A mask of its own stands for dropped tokens: an id of the vocabulary would be a token like any other.
        if self.training and self.config.token_dropout:
            dropped = uniform(tokens.shape, noise, device=tokens.device) < self.config.token_dropout
            x = torch.where(dropped[..., None], self.mask_embedding, x)
        posterior = self._encode(x)
        latents = posterior.sample(noise)
        if self.training and self.config.latent_dropout:
            keep = uniform(latents.shape, noise, device=latents.device) >= self.config.latent_dropout
            latents = latents * keep / (1 - self.config.latent_dropout)
        losses = self._token_losses(latents, tokens, share)
        kl_nd = posterior.kl().flatten(0, -2)
        floored = kl_nd.clamp(min=self.config.kl_floor).sum(-1).mean() * share
        with torch.no_grad():
            token_accuracy = losses.best.float().mean() * share
        total = self.config.chunk_size * losses.total + self.config.kl_weight * floored
        return AutoencoderLoss(total, losses.total, kl_nd.sum(-1).mean() * share, token_accuracy)

    def _token_losses(self, latents: Tensor, tokens: Tensor, share: float) -> TokenLosses:
        """Of the decoded latents [..., D], ``share`` of their mean over tokens [..., K] in ``total``."""
        features = self.decoder(latents).flatten(0, -2)
        layer = OutputLayer(features, self.embedding.weight, features.new_zeros(self.config.vocab_size))
        weights = torch.full((len(features),), share / len(features), device=features.device)
        return token_losses(layer, text_buckets(tokens.flatten()), TokenWeights(weights, torch.zeros_like(weights)))

    def _encode(self, x: Tensor) -> Posterior:
        x = self.encode_chunk(self.compress(self.encode_tokens(x).flatten(-2)))
        return Posterior(self.to_mean(x), self.to_log_std(x).clamp(-10, 2))
