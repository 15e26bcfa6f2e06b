"""What is asked for: real text, as token ids, dealt out to clients."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from latentforge.trainer.data.corpus import source_files, stdlib_root

Ids = list[int]


def tokenizer_of(model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model / "tokenizer.json"))


def held_out_sequences(count: int, length: int, model: Path) -> list[Ids]:
    """``count`` different sequences of ``length`` ids each, spread evenly over the library's held-out sources.

    Raises:
        ValueError: there is less text than that.
    """
    tokenizer = tokenizer_of(model)
    ids: Ids = []
    for file in source_files(stdlib_root(), "held-out"):
        ids += tokenizer.encode(file.text, add_special_tokens=False).ids
    windows = len(ids) // length
    if windows < count:
        raise ValueError(
            f"the held-out text has {windows} sequences of {length} tokens, fewer than --sequences {count}"
        )
    starts = [window * windows // count * length for window in range(count)]
    return [ids[start : start + length] for start in starts]


def dealt(sequences: Sequence[Ids], clients: int) -> list[list[Ids]]:
    """Every client's share: each sequence belongs to one client."""
    return [list(sequences[client::clients]) for client in range(clients)]


def grouped(sequences: Sequence[Ids], size: int) -> list[list[Ids]]:
    """Requests of up to ``size`` sequences each."""
    return [list(sequences[start : start + size]) for start in range(0, len(sequences), size)]


def completions_request(model: str, sequences: Sequence[Ids], top_k: int) -> dict[str, Any]:
    """The leanest request that makes vLLM score whole prompts: one answer holds the rows of all ``sequences``."""
    return {
        "model": model,
        "prompt": [list(ids) for ids in sequences],
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": top_k,
    }
