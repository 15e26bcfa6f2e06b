"""The student: a causal transformer over chunks, a head that predicts latents, and the decoder inside a chunk."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

from latentforge.model.chunk_decoder import ChunkDecoder
from latentforge.model.config import StudentConfig
from latentforge.model.heads import build_head
from latentforge.model.layers import TABLE_SCALE


class Student(nn.Module):
    """Maps the chunks so far to the hidden state that predicts the next one.

    Step t reads chunk t-1; step 0 reads a learned start embedding. The pieces (``embed_chunks``, ``run_backbone``,
    ``head``, ``chunk_decoder``) are put together by :class:`~latentforge.model.latent_model.LatentModel` and the
    generators.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embed_size)
        nn.init.normal_(self.embedding.weight, std=1 / TABLE_SCALE)
        self.chunk_up = nn.Linear(config.chunk_size * config.embed_size, 2 * config.hidden_size)
        self.chunk_down = nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.chunk_norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.start = nn.Parameter(torch.randn(config.hidden_size))
        self.backbone = Qwen3Model(backbone_config(config, vocab_size=1))
        # Only inputs_embeds go in; a table of token embeddings would be a parameter without a gradient.
        self.backbone.embed_tokens = None  # type: ignore[assignment]
        self.head = build_head(config)
        self.chunk_decoder = ChunkDecoder(config)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeds ids, int64 [...], for the backbone and the chunk decoder alike, float [..., e]."""
        embedded: Tensor = self.embedding(tokens) * TABLE_SCALE
        return embedded

    def embed_chunks(self, tokens: Tensor) -> Tensor:
        """Maps chunks of ids, int64 [b, t, K], to backbone inputs, float [b, t, h]."""
        flat = self.embed(tokens).flatten(-2)
        out: Tensor = self.chunk_norm(self.chunk_down(F.silu(self.chunk_up(flat))))
        return out

    def start_inputs(self, batch_size: int) -> Tensor:
        """The input of step 0, float [b, 1, h]."""
        start: Tensor = self.chunk_norm(self.start)
        return start.expand(batch_size, 1, -1)

    def run_backbone(self, inputs: Tensor, cache: Any = None) -> Tensor:
        """Runs the transformer over inputs [b, t, h] after what ``cache`` (of transformers) holds; gives [b, t, h]."""
        output = self.backbone(inputs_embeds=inputs, past_key_values=cache, use_cache=cache is not None)
        hidden: Tensor = output.last_hidden_state
        return hidden


def backbone_config(config: StudentConfig, vocab_size: int) -> Qwen3Config:
    """The Qwen3 configuration of a student's width and depth."""
    qwen = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_chunks,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    qwen._attn_implementation = "sdpa"
    return qwen
