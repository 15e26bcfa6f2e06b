"""Log probabilities of what a step draws, for the texts that ask for them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentforge.model.decoding.batch import TokenLogprob


class StepLogprobs:
    """Of the tokens of one step, before temperature, penalties and truncation; stays on the device until its end."""

    def __init__(self, asked: Sequence[int | None], device: torch.device) -> None:
        """``asked`` says for each of n texts how many of the likeliest ids are wanted too; None asks for nothing."""
        self._asked = asked
        asking = [row for row, num in enumerate(asked) if num is not None]
        self._num = max([num for num in asked if num is not None], default=0)
        self._at = {row: index for index, row in enumerate(asking)}
        self._rows = torch.tensor(asking, device=device) if len(asking) < len(asked) else None
        self._now: Tensor | None = None
        self._drawn: list[Tensor] = []
        self._best: list[tuple[Tensor, Tensor]] = []

    def see(self, logits: Tensor) -> None:
        """Looks at the logits of the step's next token, [n, V]."""
        if not self._at:
            return
        asked = logits if self._rows is None else logits[self._rows]
        self._now = asked.float().log_softmax(-1)

    def drawn(self, token_ids: Tensor) -> None:
        """Takes the token that was drawn from them, int64 [n]."""
        if self._now is None:
            return
        ids = token_ids if self._rows is None else token_ids[self._rows]
        self._drawn.append(self._now.gather(1, ids[:, None])[:, 0])
        if self._num:
            values, best = self._now.topk(min(self._num, self._now.shape[1]))
            self._best.append((values, best))

    def lists(self) -> list[tuple[list[float], list[list[TokenLogprob]]] | None]:
        """For each of the n texts its tokens' log probabilities and the likeliest ids; None where none were asked."""
        if not self._at:
            return [None] * len(self._asked)
        drawn = torch.stack(self._drawn, 1).tolist()
        likeliest: list[list[list[TokenLogprob]]] = [[[] for _ in self._drawn] for _ in drawn]
        if self._num:
            values, ids = (torch.stack(parts, 1).tolist() for parts in zip(*self._best, strict=True))
            likeliest = [
                [list(zip(i, v, strict=True)) for i, v in zip(*text, strict=True)]
                for text in zip(ids, values, strict=True)
            ]
        return [
            None if num is None else (drawn[self._at[row]], [best[:num] for best in likeliest[self._at[row]]])
            for row, num in enumerate(self._asked)
        ]
