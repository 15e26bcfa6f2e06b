"""The transformer of a student: transformers' Qwen3, or Llama, which is the same without norms of queries and keys."""

from torch import Tensor
from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

from latentforge.model.config import BackboneConfig

Backbone = Qwen3Model | LlamaModel


def build_backbone(config: BackboneConfig, max_positions: int) -> Backbone:
    """A transformer with random weights that reads embeddings: it has no table of tokens."""
    sizes = backbone_config(config, max_positions)
    backbone: Backbone = LlamaModel(sizes) if isinstance(sizes, LlamaConfig) else Qwen3Model(sizes)
    # Only inputs_embeds go in; a table of token embeddings would be a parameter without a gradient.
    backbone.embed_tokens = None  # type: ignore[assignment]
    return backbone


def run_backbone(backbone: Backbone, inputs: Tensor) -> Tensor:
    """Last hidden states [b, t, h] of inputs [b, t, h]."""
    output = backbone(inputs_embeds=inputs, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden


def backbone_config(config: BackboneConfig, max_positions: int, vocab_size: int = 1) -> Qwen3Config | LlamaConfig:
    """The configuration in transformers of a student's width and depth."""
    kind = Qwen3Config if config.qk_norm else LlamaConfig
    sizes = kind(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=max_positions,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": config.rope_theta},
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    sizes._attn_implementation = "sdpa"
    return sizes
