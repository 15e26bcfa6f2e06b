"""transformers' generate(), the way that most people write with a model."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from latentforge.model.sampling import SamplingParams


def generated(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, params: SamplingParams) -> float:
    """Tokens per second of one static batch: prompts of one length, a cache of keys and values, no end of text.

    Args:
        model: a Qwen3ForCausalLM.
        prompts: ids, all of one length.
        new_tokens: that each is continued by.
        params: temperature and top_p.
    """
    ids = torch.tensor(prompts, device=model.device)
    torch.manual_seed(params.seed or 0)
    _wait(ids.device)
    started = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=0,
            eos_token_id=None,
            pad_token_id=model.config.pad_token_id,
        )
    _wait(ids.device)
    seconds = time.perf_counter() - started
    num_new = int(out.numel()) - ids.numel()
    assert num_new == len(prompts) * new_tokens
    return num_new / seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
