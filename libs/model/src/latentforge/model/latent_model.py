"""An autoencoder and a student that fit each other: teacher-forced logits of every token."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.student import Student


class ChunkOutput(NamedTuple):
    """``logits`` [b, t, K, V] for every token; predicted ``latents`` [b, t, D]; backbone states ``hidden`` [b, t, h]
    that predict the chunk at the same index."""

    logits: Tensor
    latents: Tensor
    hidden: Tensor


class LatentModel(nn.Module):
    """The pair that is trained, published and served together.

    The autoencoder is frozen and in evaluation mode, whatever mode the pair is in; gradients pass through its decoder
    to the latent.
    """

    def __init__(self, autoencoder: Autoencoder, student: Student) -> None:
        """Puts the two together and freezes the autoencoder.

        Raises:
            ValueError: they differ in vocab_size, chunk_size (K), latent_size (D) or pad_id; both values are named.
        """
        super().__init__()
        for field in ("vocab_size", "chunk_size", "latent_size", "pad_id"):
            ours, theirs = getattr(autoencoder.config, field), getattr(student.config, field)
            if ours != theirs:
                raise ValueError(
                    f"{field} differs: the autoencoder has {ours}, the student {theirs}; they must be trained together"
                )
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.student = student
        self.chunk_size = student.config.chunk_size

    def train(self, mode: bool = True) -> "LatentModel":
        super().train(mode)
        self.autoencoder.eval()
        return self

    def logits(self, tokens: Tensor, generator: torch.Generator | None = None) -> ChunkOutput:
        """Teacher-forced logits; position (t, k) is predicted from chunks < t and tokens < k of chunk t.

        Args:
            tokens: int64 [b, t, K]; pads only on the left of the first chunk.
            generator: draws the energy head's noise; the deterministic head does not use it.
        """
        hidden = self.hidden(tokens)
        latents = self.student.head(hidden, 1, generator)[0]
        return ChunkOutput(self.logits_of(tokens, hidden, latents), latents, hidden)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Backbone states [b, t, h] that predict each chunk of tokens [b, t, K]."""
        start = self.student.start_inputs(tokens.shape[0])
        return self.student.run_backbone(torch.cat([start, self.student.embed_chunks(tokens[:, :-1])], 1))

    def logits_of(self, tokens: Tensor, hidden: Tensor, latents: Tensor) -> Tensor:
        """Logits [b, t, K, V] of tokens [b, t, K] from hidden [b, t, h] and latents [b, t, D]."""
        rows, corrections = self.output_inputs(tokens, hidden, latents)
        decoder = self.student.chunk_decoder
        logits = F.linear(rows, self.autoencoder.embedding.weight, decoder.bias)
        return logits.addmm_(corrections, decoder.output.weight.T).view(*tokens.shape, -1)

    def output_inputs(self, tokens: Tensor, hidden: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What the output layer reads: the autoencoder's rows [b·t·K, hidden] and the chunk decoder's corrections
        [b·t·K, rank]; arguments as in :meth:`logits_of`."""
        embedded = self.student.embed(tokens)
        pads = torch.full_like(tokens[:, :1], self.student.config.pad_id)
        previous = torch.cat([self.student.embed(pads), embedded[:, :-1]], 1)
        corrections = self.student.chunk_decoder(hidden.flatten(0, 1), previous.flatten(0, 1), embedded.flatten(0, 1))
        return self.autoencoder.decode_rows(latents).flatten(0, -2), corrections.flatten(0, 1)
