"""The token-level twin in vLLM, behind the same contexts."""

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.inference.vllm_baseline import VllmPaces, vllm_paces
from benchmarks.inference.workload import PLAIN
from latentforge.model.config import TokenLevelConfig

_BYTES = 2


def cache_bytes_per_token(config: TokenLevelConfig) -> int:
    """Of keys and values in bfloat16."""
    return _BYTES * 2 * config.num_layers * config.num_kv_heads * config.head_dim


def vllm_paces_behind(
    config: TokenLevelConfig, prompts: Sequence[Sequence[int]], new_tokens: int, repeats: int, folder: Path
) -> VllmPaces:
    """Tokens per second of every repeat, without the time in which the prompts are read.

    In bfloat16, in which vLLM's CPU build is faster than in float32, with half as large a cache.

    Args:
        config: the twin's.
        prompts: ids.
        new_tokens: of each text in a figure.
        repeats: figures.
        folder: for the job and vLLM's log.

    Raises:
        VllmError: it is not installed, or failed.
    """
    tokens = sum(len(ids) + new_tokens for ids in prompts)
    # Blocks are rounded up: a gibibyte more leaves room for that.
    cache_gib = 1 + math.ceil(tokens * cache_bytes_per_token(config) / 2**30)
    return vllm_paces(
        config, "bfloat16", prompts, new_tokens, PLAIN, repeats, folder, behind_prompts=True, cache_gib=cache_gib
    )
