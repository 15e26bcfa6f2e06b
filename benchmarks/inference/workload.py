"""What is asked for: held-out text of the standard library, and random ids for models with random weights."""

import random
from collections.abc import Sequence
from typing import Any

from benchmarks.gateway.workload import held_out_sequences
from benchmarks.inference.models import shipped_checkpoint
from latentforge.model.sampling import SamplingParams
from latentforge.text.tokenizer import TextTokenizer

# As the model draws, and as the seed's own request does.
PLAIN = SamplingParams(temperature=1.0, top_p=1.0, seed=0)
NUCLEUS = SamplingParams(temperature=0.8, top_p=0.95, seed=0)


def text_prompts(count: int, num_tokens: int) -> list[str]:
    """``count`` different pieces of held-out text, of about ``num_tokens`` tokens each."""
    tokenizer = TextTokenizer(shipped_checkpoint() / "tokenizer")
    sequences = held_out_sequences(count, num_tokens, shipped_checkpoint() / "tokenizer")
    return [tokenizer.decode(ids) for ids in sequences]


def text_prompt_ids(count: int, num_tokens: int) -> list[list[int]]:
    """The same as ids."""
    return held_out_sequences(count, num_tokens, shipped_checkpoint() / "tokenizer")


def random_prompt_ids(count: int, num_tokens: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Ids that are neither an end of text nor a pad."""
    rng = random.Random(seed)
    return [[rng.randrange(2, vocab_size) for _ in range(num_tokens)] for _ in range(count)]


def bodies(prompts: Sequence[str], new_tokens: int, params: SamplingParams) -> list[dict[str, Any]]:
    """Bodies of POST /generate."""
    sampling = {"temperature": params.temperature, "top_p": params.top_p}
    return [{"prompt": prompt, "max_tokens": new_tokens, **sampling} for prompt in prompts]
