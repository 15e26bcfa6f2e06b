"""Where a student's rows of logits come from when they are not the frozen autoencoder's."""

import torch
from torch import Tensor, nn

from latentforge.model.autoencoder import Autoencoder, LatentDecoder
from latentforge.model.config import StudentConfig
from latentforge.model.layers import output_scale, output_table


class TunedRows(nn.Module):
    """A copy of the autoencoder's decoder and token embeddings that is trained on with the student."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        assert config.rows.autoencoder is not None
        self.decoder = LatentDecoder(config.rows.autoencoder)
        self.output = nn.Embedding(config.vocab_size, config.rows.autoencoder.hidden_size)

    @torch.no_grad()
    def copy_from(self, autoencoder: Autoencoder) -> None:
        """Starts as the autoencoder's own decoder."""
        self.decoder.load_state_dict(autoencoder.decoder.state_dict())
        self.output.weight.copy_(autoencoder.embedding.weight)

    def forward(self, hidden: Tensor, latents: Tensor) -> Tensor:
        """Maps latents [..., D] to rows [..., K, w]; the hidden states are not read."""
        rows: Tensor = self.decoder(latents)
        return rows


class _MappedRows(nn.Module):
    """A linear map from the hidden state: no latent at all."""

    def __init__(self, config: StudentConfig, scale: float) -> None:
        super().__init__()
        self.slots = (config.chunk_size, config.rows.width)
        self.map = nn.Linear(config.hidden_size, config.chunk_size * config.rows.width)
        self._scale = scale

    def forward(self, hidden: Tensor, latents: Tensor) -> Tensor:
        """Maps hidden states [..., h] to rows [..., K, w]; the latents are not read."""
        rows: Tensor = self.map(hidden).unflatten(-1, self.slots) * self._scale
        return rows


class LinearRows(_MappedRows):
    """A linear map with an output table of its own."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config, output_scale(config.rows.width))
        self.output = output_table(config.vocab_size, config.rows.width)


class EmbeddingRows(_MappedRows):
    """A linear map whose output table is the frozen autoencoder's token embeddings, with entries of about 1."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config, config.rows.width**-0.5)


OwnRows = TunedRows | LinearRows | EmbeddingRows


def build_rows(config: StudentConfig) -> OwnRows | None:
    """The student's own rows; None where they are the frozen autoencoder's."""
    match config.rows.kind:
        case "autoencoder":
            return None
        case "tuned":
            return TunedRows(config)
        case "linear":
            return LinearRows(config)
        case "embeddings":
            return EmbeddingRows(config)
