"""The models: the shipped student, one with random weights, and their token-level twins, ours and transformers'."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from benchmarks.inference.plan import ModelSize
from latentforge.core.checkpoints import list_checkpoints
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.backbone import backbone_config
from latentforge.model.config import (
    AutoencoderConfig,
    ChunkDecoderConfig,
    InductionConfig,
    LogitFeaturesConfig,
    StudentConfig,
    TokenLevelConfig,
)
from latentforge.model.latent_model import LatentModel
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel, token_level_config

SHIPPED = Path("models/stdlib-student")
_EOS, _PAD = 0, 1
# Of the autoencoder, as the shipped student's has them.
_LATENT_SIZE, _TOKEN_WIDTH, _CHUNK_WIDTH = 256, 64, 256
# Corrected by the fastest chunk decoder, as in the students of 32,768 ids in docs/results.
_FREQUENT_IDS = 2048
_CONTEXT_TOKENS = 2048


@dataclass(frozen=True)
class Decoder:
    """A chunk decoder: how its student is called, and how it is configured."""

    name: str
    config: ChunkDecoderConfig


DEFAULT_DECODER = Decoder("default chunk decoder: a GRU that corrects all ids", ChunkDecoderConfig())


def fast_decoder(vocab_size: int) -> Decoder:
    """The fastest one that there is: it corrects the most frequent ids alone."""
    frequent = min(_FREQUENT_IDS, vocab_size // 2)
    config = ChunkDecoderConfig(width=128, rank=64, frequent_ids=frequent)
    return Decoder(f"fast chunk decoder: a GRU of width 128 that corrects the {frequent} most frequent ids", config)


def shipped_checkpoint() -> Path:
    """Its folder."""
    return list_checkpoints(SHIPPED)[-1]


def student_config(
    size: ModelSize,
    decoder: Decoder,
    context_tokens: int = _CONTEXT_TOKENS,
    induction: InductionConfig | None = None,
) -> StudentConfig:
    """Of a student with room for so many tokens; by default without induction heads, as other libraries' models."""
    heads, splits = max(2, size.width // 64), decoder.config.kind == "split"
    return StudentConfig(
        vocab_size=size.vocab_size,
        pad_id=_PAD,
        eos_id=_EOS,
        hidden_size=size.width,
        num_layers=size.layers,
        num_heads=heads,
        num_kv_heads=heads // 2,
        head_dim=64,
        intermediate_size=3 * size.width,
        chunk_size=size.chunk_size,
        latent_size=_LATENT_SIZE,
        max_chunks=context_tokens // size.chunk_size,
        positions="tokens" if splits else "chunks",
        chunk_decoder=decoder.config,
        logit_features=LogitFeaturesConfig(kind="none") if splits else LogitFeaturesConfig(),
        induction=induction or InductionConfig(),
    )


def random_student(size: ModelSize, decoder: Decoder, device: torch.device, seed: int = 0) -> LatentModel:
    """A student of a size, with random weights and the default context."""
    return student_of(student_config(size, decoder), device, seed)


def student_of(config: StudentConfig, device: torch.device, seed: int = 0) -> LatentModel:
    """A student of a configuration, with random weights and an autoencoder as large as the shipped student's."""
    torch.manual_seed(seed)
    autoencoder = AutoencoderConfig(
        vocab_size=config.vocab_size,
        chunk_size=config.chunk_size,
        latent_size=_LATENT_SIZE,
        hidden_size=_TOKEN_WIDTH,
        chunk_hidden_size=_CHUNK_WIDTH,
        intermediate_size=_CHUNK_WIDTH,
        pad_id=_PAD,
    )
    return LatentModel(Autoencoder(autoencoder), Student(config)).to(device).eval()


@torch.no_grad()
def sharpened(model: LatentModel, nats: float) -> LatentModel:
    """Gives a random student's next token about the entropy of a trained one's, by a bias of independent normal logits.

    Args:
        model: its logits are small beside those; changed and given back.
        nats: the entropy; what is above ln V leaves the model as it is.
    """
    bias = model.student.bias
    normal = torch.randn(bias.shape, generator=torch.Generator().manual_seed(1))
    low, high = 0.0, 100.0
    if nats >= math.log(model.vocab_size):
        return model
    # The entropy falls as the logits spread.
    for _ in range(40):
        spread = (low + high) / 2
        logprobs = (spread * normal).log_softmax(0)
        low, high = (spread, high) if -float((logprobs.exp() * logprobs).sum()) > nats else (low, spread)
    bias.copy_(low * normal)
    return model


def twin_of(model: LatentModel, device: torch.device, seed: int = 0) -> TokenLevelModel:
    """A token-level student with the model's backbone, in width, depth and induction heads."""
    return random_twin(token_level_config(model.student.config), device, seed)


def random_twin(config: TokenLevelConfig, device: torch.device, seed: int = 0) -> TokenLevelModel:
    """A token-level student of a configuration, with random weights."""
    torch.manual_seed(seed)
    return TokenLevelModel(config).to(device).eval()


def transformers_config(config: TokenLevelConfig) -> Qwen3Config | LlamaConfig:
    """The same backbone with its tables, for transformers and vLLM; it ends no text."""
    twin = backbone_config(config, config.max_tokens, config.vocab_size)
    twin.tie_word_embeddings = False
    twin.architectures = [_causal_lm(twin).__name__]
    twin.eos_token_id = twin.bos_token_id = None
    twin.pad_token_id = config.pad_id
    return twin


def transformers_twin(config: TokenLevelConfig, device: torch.device, seed: int = 0) -> Any:
    """A causal LM of transformers with random weights, as large as the token-level student of a config."""
    torch.manual_seed(seed)
    sizes = transformers_config(config)
    model: Any = _causal_lm(sizes)(sizes)
    return model.to(device).eval()


def _causal_lm(config: Qwen3Config | LlamaConfig) -> Any:
    return LlamaForCausalLM if isinstance(config, LlamaConfig) else Qwen3ForCausalLM
