"""Logit features: vectors, K for each chunk, that an output table [V, w] turns into logits.

By default the frozen autoencoder's decoder makes them of the predicted latent. These here are made of the backbone's
hidden state instead, by a linear map that needs no latent, or are none at all.
"""

from torch import Tensor, nn

from latentforge.model.config import StudentConfig
from latentforge.model.layers import output_scale, output_table


class _MappedFeatures(nn.Module):
    """A linear map from the hidden state, times a constant."""

    def __init__(self, config: StudentConfig, scale: float) -> None:
        super().__init__()
        self.slots = (config.chunk_size, config.logit_features.width)
        self.map = nn.Linear(config.hidden_size, config.chunk_size * config.logit_features.width)
        self._scale = scale

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [..., h] to features [..., K, w]."""
        features: Tensor = self.map(hidden).unflatten(-1, self.slots) * self._scale
        return features


class LinearFeatures(_MappedFeatures):
    """A linear map with an output table of its own."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config, output_scale(config.logit_features.width))
        self.output = output_table(config.vocab_size, config.logit_features.width)


class EmbeddingFeatures(_MappedFeatures):
    """A linear map whose output table is the frozen autoencoder's token embeddings."""

    def __init__(self, config: StudentConfig) -> None:
        # Their entries are about 1, so that a logit, the sum of w products, starts about as large at any width.
        super().__init__(config, config.logit_features.width**-0.5)


class NoFeatures(nn.Module):
    """Features of no width: all that makes logits is what the chunk decoder and the induction heads add to the bias."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self._chunk_size = config.chunk_size

    def forward(self, hidden: Tensor) -> Tensor:
        """Gives [..., K, 0] for hidden states [..., h]."""
        return hidden.new_empty(*hidden.shape[:-1], self._chunk_size, 0)


LogitFeatures = LinearFeatures | EmbeddingFeatures | NoFeatures


def build_logit_features(config: StudentConfig) -> LogitFeatures | None:
    """The student's own logit features; None where they are the frozen autoencoder's."""
    match config.logit_features.kind:
        case "autoencoder":
            return None
        case "linear":
            return LinearFeatures(config)
        case "embeddings":
            return EmbeddingFeatures(config)
        case "none":
            return NoFeatures(config)
