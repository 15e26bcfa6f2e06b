"""What a student's logits are a linear map of, where that is not what the frozen autoencoder makes of the latent."""

import torch
from torch import Tensor, nn

from latentforge.model.autoencoder import Autoencoder, LatentDecoder
from latentforge.model.config import StudentConfig
from latentforge.model.layers import output_scale, output_table


class TunedFeatures(nn.Module):
    """A copy of the autoencoder's decoder and token embeddings that is trained on with the student."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        assert config.logit_features.autoencoder is not None
        self.decoder = LatentDecoder(config.logit_features.autoencoder)
        self.output = nn.Embedding(config.vocab_size, config.logit_features.autoencoder.hidden_size)

    @torch.no_grad()
    def copy_from(self, autoencoder: Autoencoder) -> None:
        """Starts as the autoencoder's own decoder."""
        self.decoder.load_state_dict(autoencoder.decoder.state_dict())
        self.output.weight.copy_(autoencoder.embedding.weight)

    def forward(self, hidden: Tensor, latents: Tensor) -> Tensor:
        """Maps latents [..., D] to features [..., K, w]; the hidden states are not read."""
        features: Tensor = self.decoder(latents)
        return features


class _MappedFeatures(nn.Module):
    """A linear map from the hidden state: no latent at all."""

    def __init__(self, config: StudentConfig, scale: float) -> None:
        super().__init__()
        self.slots = (config.chunk_size, config.logit_features.width)
        self.map = nn.Linear(config.hidden_size, config.chunk_size * config.logit_features.width)
        self._scale = scale

    def forward(self, hidden: Tensor, latents: Tensor) -> Tensor:
        """Maps hidden states [..., h] to features [..., K, w]; the latents are not read."""
        features: Tensor = self.map(hidden).unflatten(-1, self.slots) * self._scale
        return features


class LinearFeatures(_MappedFeatures):
    """A linear map with an output table of its own."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config, output_scale(config.logit_features.width))
        self.output = output_table(config.vocab_size, config.logit_features.width)


class EmbeddingFeatures(_MappedFeatures):
    """A linear map whose output table is the frozen autoencoder's token embeddings, with entries of about 1."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config, config.logit_features.width**-0.5)


OwnFeatures = TunedFeatures | LinearFeatures | EmbeddingFeatures


def build_logit_features(config: StudentConfig) -> OwnFeatures | None:
    """The student's own logit features; None where they are the frozen autoencoder's."""
    match config.logit_features.kind:
        case "autoencoder":
            return None
        case "tuned":
            return TunedFeatures(config)
        case "linear":
            return LinearFeatures(config)
        case "embeddings":
            return EmbeddingFeatures(config)
