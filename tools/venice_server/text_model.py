"""A causal language model of transformers that answers chats, with the true log-probabilities of what it drew."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Drawn:
    """One token: its id and log-probability, and the most probable ids with theirs, before temperature and top_p."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class TextModel:
    """A folder's model on the CPU in float32, one answer at a time."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
        eos = self._model.generation_config.eos_token_id
        self.eos_ids = frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])
        self.context_tokens = int(self._model.config.max_position_embeddings)
        self._lock = threading.Lock()

    def render(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Prompt ids of a chat, the assistant's turn opened."""
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def draw(
        self, prompt_ids: Sequence[int], *, temperature: float, top_p: float, seed: int | None, top_k: int
    ) -> Iterator[Drawn]:
        """Tokens one after another until the caller stops; ``top_k`` is how many of the most probable to tell."""
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        tokens_bl, cache = torch.tensor([list(prompt_ids)]), None
        while True:
            with self._lock, torch.inference_mode():
                output = self._model(tokens_bl, past_key_values=cache, use_cache=True)
                logprobs_v: Tensor = output.logits[0, -1].log_softmax(-1)
                cache = output.past_key_values
                token_id = _drawn(logprobs_v, temperature, top_p, generator)
                top = logprobs_v.topk(top_k)
                tokens_bl = torch.tensor([[token_id]])
            pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            yield Drawn(token_id, float(logprobs_v[token_id]), pairs)


def _drawn(logprobs_v: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logprobs_v.argmax())
    probabilities_v, ids_v = (logprobs_v / temperature).softmax(-1).sort(descending=True)
    kept_v = probabilities_v.cumsum(-1) - probabilities_v < top_p
    kept_v[0] = True
    return int(ids_v[torch.multinomial(probabilities_v * kept_v, 1, generator=generator)])
