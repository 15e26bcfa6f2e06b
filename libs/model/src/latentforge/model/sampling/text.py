"""What sampling knows of one text."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from latentforge.model.sampling.params import SamplingParams

_NUMBERS_AHEAD = 64
# The greatest random number that is used: what is in proportion to something must stay below it when it is rounded.
BELOW_ONE = 1 - 2**-50


class UniformStream:
    """Uniform numbers from 0 to BELOW_ONE, float64, drawn ahead by the block.

    NumPy's generator, because torch's on a CPU reads the lower half of a seed only.
    """

    def __init__(self, seeds: np.random.SeedSequence) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seeds))
        self._ahead: list[float] = []
        self._next = 0

    def take(self) -> float:
        """The next number."""
        if self._next == len(self._ahead):
            self._ahead, self._next = self._drawn(), 0
        self._next += 1
        return self._ahead[self._next - 1]

    def peek(self, count: int) -> list[float]:
        """The next numbers, which stay the next ones."""
        ahead = self._ahead[self._next :]
        while len(ahead) < count:
            ahead += self._drawn()
        self._ahead, self._next = ahead, 0
        return ahead[:count]

    def _drawn(self) -> list[float]:
        return (self._generator.random(_NUMBERS_AHEAD) * BELOW_ONE).tolist()  # type: ignore[no-any-return]


class Uniforms:
    """Each text's next random number, in the texts' order; on another device than a CPU in one copy for many draws."""

    def __init__(self, texts: Sequence["TextSampling"]) -> None:
        self._texts = texts
        self._is_cpu = texts[0].device.type == "cpu"
        self._ahead = torch.empty(0)
        self._used = 0

    def next(self) -> Tensor:
        """float64 [b]."""
        drawn = [text.uniforms.take() for text in self._texts]
        if self._is_cpu:
            return torch.tensor(drawn, dtype=torch.float64)
        if self._used == len(self._ahead):
            coming = [[u, *t.uniforms.peek(_NUMBERS_AHEAD - 1)] for u, t in zip(drawn, self._texts, strict=True)]
            ahead = torch.tensor(coming, dtype=torch.float64).T.contiguous()
            # From pinned memory the copy is not waited for.
            self._ahead, self._used = ahead.pin_memory().to(self._texts[0].device, non_blocking=True), 0
        self._used += 1
        return self._ahead[self._used - 1]


class TextSampling:
    """One text's settings and its own state, from its first token to its last, whatever batches it is in.

    Attributes:
        params: how its tokens are drawn.
        vocab_size: ids of the vocabulary.
        device: of the logits.
        uniforms: its random numbers, one a draw and one for each draw that truncation refuses.
        prompt_ids: distinct ids of the prompt that the repetition penalty counts, int64 on the device.
        num_written: tokens that were drawn for it, where a penalty counts them.
    """

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], vocab_size: int, device: torch.device | str = "cpu"
    ) -> None:
        """Starts from ``params.seed``, or from a fresh one.

        Raises:
            ValueError: logit_bias names an id that the vocabulary has not.
        """
        if params.logit_bias and (most := max(params.logit_bias)) >= vocab_size:
            raise ValueError(
                f"logit_bias names id {most}, which is not in the vocabulary of {vocab_size} ids; "
                "use this model's tokenizer"
            )
        self.params = params
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self._seeds = np.random.SeedSequence(params.seed)
        self.uniforms = UniformStream(self._seeds)
        counted = sorted(set(prompt_ids)) if params.repetition_penalty != 1 else []
        self.prompt_ids = torch.tensor(counted, dtype=torch.int64, device=self.device)
        self.num_written = 0
        # Memory of the batch that the text is in, where its ids begin at some number.
        self._batch_ids, self._end, self._base = torch.empty(0, dtype=torch.int64, device=self.device), 0, 0

    @cached_property
    def noise(self) -> torch.Generator:
        """A generator on the device for what else is drawn for this text (an energy head's noise)."""
        (seed,) = self._seeds.spawn(1)[0].generate_state(1, np.uint64)
        return torch.Generator(self.device).manual_seed(int(seed))

    @property
    def written(self) -> Tensor:
        """The ``num_written`` tokens, int64 on the device."""
        return self._batch_ids[self._end - self.num_written : self._end] - self._base

    def wrote_one(self, batch_ids: Tensor, end: int, base: int) -> None:
        """Says that one more was drawn, and where they are: in a batch's memory, up to ``end``, ``base`` above them."""
        self._batch_ids, self._end, self._base = batch_ids, end, base
        self.num_written += 1

    def __repr__(self) -> str:
        return f"TextSampling({self.params!r}, num_written={self.num_written})"


def texts_of_rows(params: SamplingParams, prompts: Tensor, vocab_size: int) -> list[TextSampling]:
    """A text for each row of prompts, int64 [b, L], by seeds that follow from the one of ``params``."""
    seeds = np.random.SeedSequence(params.seed).generate_state(len(prompts), np.uint64) >> np.uint64(1)
    return [
        TextSampling(params.model_copy(update={"seed": seed}), prompt, vocab_size, prompts.device)
        for seed, prompt in zip(seeds.tolist(), prompts.tolist(), strict=True)
    ]


def same_place(texts: Sequence[TextSampling]) -> tuple[int, torch.device]:
    """The texts' vocabulary and device."""
    first = texts[0]
    assert all(text.vocab_size == first.vocab_size and text.device == first.device for text in texts)
    return first.vocab_size, first.device


def column(values: Sequence[float], device: torch.device) -> Tensor:
    """One number a row, float32 [b, 1]."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]
