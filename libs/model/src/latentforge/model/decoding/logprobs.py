"""Log probabilities of what a step draws, for the texts that ask for them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentforge.model.decoding.batch import TokenLogprob
from latentforge.model.sampling import logprobs_of


class StepLogprobs:
    """Of the tokens of one step; they stay on the device until :meth:`lists`."""

    def __init__(self, asked: Sequence[int | None], device: torch.device) -> None:
        """``asked`` says for each of n texts how many of the likeliest ids are wanted too; None asks for nothing."""
        self._asked = asked
        asking = [row for row, num in enumerate(asked) if num is not None]
        self._num = max([num for num in asked if num is not None], default=0)
        self._at = {row: index for index, row in enumerate(asking)}
        self._rows = torch.tensor(asking, device=device) if len(asking) < len(asked) else None
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, logits: Tensor, token_ids: Tensor) -> None:
        """Takes the step's next token, int64 [n], and the logits [n, V] that it was drawn from."""
        if not self._at:
            return
        if self._rows is not None:
            logits, token_ids = logits[self._rows], token_ids[self._rows]
        self._parts.append(logprobs_of(logits, token_ids, self._num))

    def lists(self) -> list[tuple[list[float], list[list[TokenLogprob]]] | None]:
        """For each of the n texts its tokens' log probabilities and the likeliest ids; None where none were asked."""
        if not self._at:
            return [None] * len(self._asked)
        own, ids, values = (torch.stack(parts, 1).tolist() for parts in zip(*self._parts, strict=True))
        return [
            None if num is None else (own[at := self._at[row]], _pairs(ids[at], values[at], num))
            for row, num in enumerate(self._asked)
        ]


def _pairs(ids: list[list[int]], values: list[list[float]], num: int) -> list[list[TokenLogprob]]:
    return [list(zip(i[:num], v[:num], strict=True)) for i, v in zip(ids, values, strict=True)]
