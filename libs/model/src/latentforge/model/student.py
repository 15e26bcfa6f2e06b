"""The student: a causal transformer over chunks, a head that predicts latents, and the decoder inside a chunk."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentforge.model.backbone import Backbone, build_backbone, run_backbone
from latentforge.model.chunk_decoder.build import build_chunk_decoder
from latentforge.model.chunk_decoder.recurrent import RecurrentDecoder
from latentforge.model.chunk_decoder.split import SplitDecoder
from latentforge.model.config import StudentConfig
from latentforge.model.heads import build_head
from latentforge.model.induction import build_induction
from latentforge.model.layers import TABLE_SCALE, log_frequencies
from latentforge.model.logit_features import build_logit_features


class Student(nn.Module):
    """Maps the chunks so far to the hidden state that predicts the next one.

    Step t reads chunk t-1, and a recurrent decoder's state behind it; step 0 reads a learned start embedding. Chunk t-1
    is one position of the backbone, or K, of which the last one's state predicts chunk t. Without layers there is no
    backbone, nor what feeds it, and every hidden state is ``constant``. The pieces are put together by
    :class:`~latentforge.model.latent_model.LatentModel` and the generators.
    """

    backbone: Backbone | None

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embed_size)
        nn.init.normal_(self.embedding.weight, std=1 / TABLE_SCALE)
        self.reads_tokens = config.positions == "tokens"
        if config.num_layers:
            if self.reads_tokens:
                self.input_map = nn.Linear(config.embed_size, config.hidden_size)
            else:
                self.chunk_up = nn.Linear(config.chunk_size * config.embed_size, 2 * config.hidden_size)
                self.chunk_down = nn.Linear(2 * config.hidden_size, config.hidden_size)
                self.chunk_norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
            self.start = nn.Parameter(torch.randn(config.hidden_size))
            self.backbone = build_backbone(config, config.max_positions)
        else:
            self.constant = nn.Parameter(torch.randn(config.hidden_size))
            self.backbone = None
        self.head = build_head(config)
        self.logit_features = build_logit_features(config)
        self.chunk_decoder = build_chunk_decoder(config)
        self.induction = build_induction(config.embed_size, config.chunk_decoder.rank, config.induction)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    @torch.no_grad()
    def set_token_counts(self, counts: Tensor) -> None:
        """Tells a fresh student how often each token stands in the training data, int64 [V].

        The bias of the logits starts at the log frequencies: it then begins at the unigram model instead of spending
        its first steps on learning it. And the correction takes the most frequent ids, where it does not take all.
        """
        self.bias.copy_(log_frequencies(counts))
        if self.chunk_decoder is not None:
            self.chunk_decoder.output.set_token_counts(counts)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeds ids, int64 [...], for the backbone and the chunk decoder alike, float [..., e]."""
        embedded: Tensor = self.embedding(tokens) * TABLE_SCALE
        return embedded

    def windows(self, embedded: Tensor) -> Tensor:
        """The embedded tokens of the chunks before each chunk that its decoder reads, [b, t, W·K, e] of [b, t, K, e].

        Before the first chunk stand pads.
        """
        window = self.config.chunk_decoder.window
        b, t, k, e = embedded.shape
        pads = self.embed(torch.full((1,), self.config.pad_id, device=embedded.device)).expand(b, window, k, e)
        # padded[:, t + i] is chunk t + i - window, so that i = 0 … window - 1 give the chunks before chunk t in order.
        padded = torch.cat([pads, embedded[:, :-1]], 1)
        if window == 0:
            return embedded.new_empty(b, t, 0, e)
        return torch.cat([padded[:, i : i + t] for i in range(window)], 2)

    def text_states(self, tokens: Tensor, lower: Tensor | None = None) -> Tensor | None:
        """What a decoder makes of whole texts: its states before each token of chunks [b, t, K], float [b, t, K, ...].

        A recurrent decoder's are its GRU's, a split one's those of the backbone's last layers; None of others. Both
        :meth:`hidden` and :meth:`decoder_reads` want them, and to make them is most of the work.

        Args:
            tokens: int64 [b, t, K].
            lower: what a split decoder's layers read instead of the first ones' states, float [b, t·K, h]; None reads
                these.
        """
        decoder = self.chunk_decoder
        if isinstance(decoder, SplitDecoder):
            assert self.backbone is not None
            embedded = self.embed(tokens.flatten(1))
            return decoder.text_states_over(self.backbone, self._token_inputs(embedded), embedded, lower)
        if not isinstance(decoder, RecurrentDecoder):
            return None
        states: Tensor = decoder.text_states(self.embed(tokens.flatten(1))).unflatten(1, tokens.shape[1:])
        return states

    def lower_states(self, tokens: Tensor) -> Tensor:
        """What the backbone's first layers make of chunks [b, t, K] for a split decoder, float [b, t·K, h]."""
        assert isinstance(self.chunk_decoder, SplitDecoder)
        assert self.backbone is not None
        return self.chunk_decoder.lower_states(self.backbone, self._token_inputs(self.embed(tokens.flatten(1))))

    def _token_inputs(self, embedded: Tensor) -> Tensor:
        """Inputs of positions of tokens, float [b, n, h], of embedded tokens [b, n, e]; the last one is not read."""
        return torch.cat([self.start_inputs(len(embedded)), self.input_map(embedded[:, :-1])], 1)

    def decoder_reads(self, embedded: Tensor, states: Tensor | None) -> tuple[Tensor, ...]:
        """What the chunk decoder reads of each chunk besides its hidden state, float [b, t, ...] each.

        Args:
            embedded: float [b, t, K, e].
            states: of :meth:`text_states`.
        """
        return (self.windows(embedded), embedded) if states is None else (states,)

    def hidden(self, tokens: Tensor, states: Tensor | None) -> Tensor:
        """Hidden states [b, t, h] that predict each chunk of tokens [b, t, K].

        Args:
            tokens: int64 [b, t, K].
            states: of :meth:`text_states`.
        """
        if self.backbone is None:
            return self.constant.repeat(*tokens.shape[:2], 1)
        if isinstance(self.chunk_decoder, SplitDecoder):
            assert states is not None
            return states[:, :, 0]
        # Shifted by one chunk: step t reads chunk t - 1, and the backbone's causal mask hides all later ones from it.
        # A state before a chunk's first token has read the chunks before alone.
        start = self.start_inputs(tokens.shape[0])
        borders = None if states is None else states[:, 1:, 0]
        inputs = self.chunk_inputs(self.embed(tokens[:, :-1]), borders)
        if not self.reads_tokens:
            return run_backbone(self.backbone, torch.cat([start, inputs], 1))
        # Position i reads token i - 1, so that position t·K has read chunks < t and no more.
        hidden = run_backbone(self.backbone, torch.cat([start, inputs.flatten(1, 2)], 1))
        return hidden[:, :: self.config.chunk_size]

    def chunk_inputs(self, embedded: Tensor, borders: Tensor | None = None) -> Tensor:
        """The backbone's inputs behind chunks, float [..., h]; of one that reads tokens, float [..., K, h].

        Args:
            embedded: float [..., K, e].
            borders: a recurrent decoder's states behind them, float [..., width]; None of others. Positions of tokens
                do not read them.
        """
        if self.reads_tokens:
            mapped: Tensor = self.input_map(embedded)
            return mapped
        # K embeddings side by side are one vector: order in a chunk is by place, and needs no position of its own.
        inputs: Tensor = self.chunk_down(F.silu(self.chunk_up(embedded.flatten(-2))))
        if isinstance(self.chunk_decoder, RecurrentDecoder):
            assert borders is not None
            assert self.chunk_decoder.border is not None
            inputs = inputs + self.chunk_decoder.border(borders)
        out: Tensor = self.chunk_norm(inputs)
        return out

    def start_inputs(self, batch_size: int) -> Tensor:
        """The input of step 0, float [b, 1, h]."""
        start: Tensor = self.start if self.reads_tokens else self.chunk_norm(self.start)
        return start.expand(batch_size, 1, -1)
