"""An autoencoder and a student that fit each other: teacher-forced logits of every token."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.induction_attention import InductionAttention
from latentforge.model.logit_features import LinearFeatures, NoFeatures
from latentforge.model.logit_passes import IN_PLACE, LogitPasses
from latentforge.model.output_loss import OutputLayer
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

    Attributes:
        logit_passes: how the losses of its tokens go over logits.
    """

    logit_passes: LogitPasses = IN_PLACE

    def __init__(self, autoencoder: Autoencoder, student: Student) -> None:
        """Puts the two together and freezes the autoencoder.

        Raises:
            ValueError: they differ in vocab_size, chunk_size (K), latent_size (D), pad_id or the width of logit
                features that meet the autoencoder's embeddings; both values are named.
        """
        super().__init__()
        for field in ("vocab_size", "chunk_size", "latent_size", "pad_id"):
            ours, theirs = getattr(autoencoder.config, field), getattr(student.config, field)
            if ours != theirs:
                raise ValueError(
                    f"{field} differs: the autoencoder has {ours}, the student {theirs}; they must be trained together"
                )
        features, width = student.config.logit_features, autoencoder.config.hidden_size
        if features.kind == "embeddings" and features.width != width:
            raise ValueError(
                f"logit_features.width is {features.width}, the autoencoder's hidden_size {width}; "
                "they must be the same"
            )
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.student = student
        self.chunk_size = student.config.chunk_size

    @property
    def vocab_size(self) -> int:
        return self.student.config.vocab_size

    @property
    def eos_id(self) -> int:
        return self.student.config.eos_id

    @property
    def device(self) -> torch.device:
        return self.student.bias.device

    @property
    def max_tokens(self) -> int:
        """The longest text that it reads and writes, pads of the first chunk included."""
        return self.student.config.max_chunks * self.chunk_size

    @property
    def writes_from_latents(self) -> bool:
        """Whether what it writes depends on the latents: logit features may be made of the hidden state, or none."""
        return self.student.config.logit_features.kind == "autoencoder"

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
        states = self.student.text_states(tokens)
        hidden_bth = self.hidden(tokens, states)
        latents_btd: Tensor = self.student.head(hidden_bth, 1, generator)[0]
        logits = self.output(tokens, hidden_bth, latents_btd, states).logits()
        return ChunkOutput(logits.view(*tokens.shape, -1), latents_btd, hidden_bth)

    def hidden(self, tokens: Tensor, states: Tensor | None = None) -> Tensor:
        """Hidden states [b, t, h] that predict each chunk of tokens [b, t, K].

        ``states`` are those of :meth:`Student.text_states`, made anew where they are not given; who wants the
        :meth:`output` too makes them once.
        """
        return self.student.hidden(tokens, self.student.text_states(tokens) if states is None else states)

    def output(
        self, tokens_btk: Tensor, hidden_bth: Tensor, latents_btd: Tensor, states: Tensor | None = None
    ) -> OutputLayer:
        """The output layer of all b·t·K tokens and what it reads: token_losses and logits() need nothing else.

        ``states`` as in :meth:`hidden`.
        """
        if states is None:
            states = self.student.text_states(tokens_btk)
        embedded_btke = self.student.embed(tokens_btk)
        # To a chunk decoder every chunk of every text is an item of one batch, n = b·t.
        parts = hidden_bth, latents_btd, *self.student.decoder_reads(embedded_btke, states)
        layer = self.output_of_chunks(*(part.flatten(0, 1) for part in parts))
        return layer._replace(induction=self.induction(tokens_btk, embedded_btke))

    def induction(self, tokens: Tensor, embedded: Tensor) -> InductionAttention | None:
        """The induction heads over all of tokens [b, t, K], embedded [b, t, K, e]; None without any."""
        induction = self.student.induction
        return None if induction is None else induction(tokens.flatten(1), embedded.flatten(1, 2))

    def output_of_chunks(self, hidden: Tensor, latents: Tensor, *read: Tensor) -> OutputLayer:
        """The output layer and what it reads for the n·K tokens of any n chunks, without induction heads.

        Args:
            hidden: backbone states that predict the chunks, float [n, h].
            latents: float [n, D].
            read: what the chunk decoder reads of them, float [n, ...] each, see :meth:`Student.decoder_reads`.
        """
        features, table = self.logit_features(hidden, latents).flatten(0, 1), self.output_weight
        # Features and corrections are one product with one table, [features, corrections] · [table, U]ᵀ; its first part
        # is frozen where it is the autoencoder's.
        num_fixed = 0 if table.requires_grad else table.shape[1]
        decoder = self.student.chunk_decoder
        if decoder is None:
            return OutputLayer(features, table, self.student.bias, num_fixed)
        corrections = decoder(hidden, *read)
        if not table.shape[1]:
            ours, inputs = decoder.output, corrections.flatten(0, 1)
            num_fixed = 0 if ours.weight.requires_grad else inputs.shape[1]
            return OutputLayer(inputs, ours.weight, self.student.bias, num_fixed, ids=ours.ids)
        weight = torch.cat([table, decoder.output.whole()], 1)
        num_fixed = num_fixed if weight.requires_grad else weight.shape[1]
        return OutputLayer(torch.cat([features, corrections.flatten(0, 1)], 1), weight, self.student.bias, num_fixed)

    def logit_features(self, hidden: Tensor, latents: Tensor) -> Tensor:
        """What ``output_weight`` [V, w] is applied to, [..., K, w], from hidden [..., h] and latents [..., D]."""
        own = self.student.logit_features
        features: Tensor = self.autoencoder.decoder(latents) if own is None else own(hidden)
        return features

    @property
    def output_weight(self) -> Tensor:
        """The table of the logit features, [V, w]; it has no gradient where it is the autoencoder's."""
        own = self.student.logit_features
        if isinstance(own, NoFeatures):
            return self.student.bias.new_empty(self.vocab_size, 0)
        return own.output.weight if isinstance(own, LinearFeatures) else self.autoencoder.embedding.weight
