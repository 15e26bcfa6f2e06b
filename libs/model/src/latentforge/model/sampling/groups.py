"""Rows of a batch that are drawn in the same way."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from latentforge.model.sampling.inversion import Inversion
from latentforge.model.sampling.likeliest import likeliest, likeliest_one
from latentforge.model.sampling.text import TextSampling, column, same_place
from latentforge.model.sampling.truncation import draw_kept, kept_of_sorted

# Draws whose random numbers are moved to another device in one copy.
_DRAWS_AHEAD = 64


class Group(ABC):
    """Draws for some texts of a batch."""

    def __init__(self, texts: Sequence[TextSampling]) -> None:
        self.texts = texts
        self.device = same_place(texts)[1]

    @abstractmethod
    def draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Draws from logits, float32 [g, V], which stay as they are.

        Returns:
            ids, int64 [g], and whether they mean anything, bool [g]: not where logits are NaN, inf, or all -inf.
        """


class GreedyGroup(Group):
    """The likeliest token; of equally likely ones the lowest id."""

    def draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        values, ids = likeliest_one(logits)
        return ids, values.isfinite()


class _RandomGroup(Group):
    def __init__(self, texts: Sequence[TextSampling]) -> None:
        super().__init__(texts)
        temperatures = [text.params.temperature for text in texts]
        self._temperature = None if all(t == 1 for t in temperatures) else column(temperatures, self.device)
        self._ahead = torch.empty(0)
        self._used = 0

    def _scaled(self, logits: Tensor) -> Tensor:
        return logits if self._temperature is None else logits / self._temperature

    def _uniforms(self) -> Tensor:
        """Each text's next random number, float64 [g, 1]."""
        drawn = [text.uniforms.take() for text in self.texts]
        if self.device.type == "cpu":
            return torch.tensor(drawn, dtype=torch.float64)[:, None]
        if self._used == len(self._ahead):
            coming = [[u, *t.uniforms.peek(_DRAWS_AHEAD - 1)] for u, t in zip(drawn, self.texts, strict=True)]
            self._ahead, self._used = torch.tensor(coming, dtype=torch.float64).T[:, :, None].to(self.device), 0
        self._used += 1
        return self._ahead[self._used - 1]


class WholeGroup(_RandomGroup):
    """From the whole distribution."""

    def draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        inversion = Inversion(self._scaled(logits).softmax(-1))
        return inversion.find(self._uniforms())[:, 0], inversion.total.isfinite()


class RefusingGroup(_RandomGroup):
    """By top_p and min_p on a CPU: from the whole distribution, and again where that token is not kept."""

    def __init__(self, texts: Sequence[TextSampling]) -> None:
        super().__init__(texts)
        self._has_min_p = any(text.params.min_p for text in texts)

    def draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        mass = self._scaled(logits).softmax(-1)
        inversion = Inversion(mass)
        ids = inversion.find(self._uniforms())[:, 0]
        peaks = mass.amax(-1) if self._has_min_p else inversion.total
        finite = inversion.total.isfinite()
        kept = [
            draw_kept(text, row, token, total, peak) if fine else token
            for text, row, token, total, peak, fine in zip(
                self.texts, mass, ids.tolist(), inversion.total.tolist(), peaks.tolist(), finite.tolist(), strict=True
            )
        ]
        return torch.tensor(kept), finite


class SortedGroup(_RandomGroup):
    """By top_k, and on other devices than a CPU by top_p and min_p too: from the likeliest in their order."""

    def __init__(self, texts: Sequence[TextSampling]) -> None:
        super().__init__(texts)
        counts = [min(text.params.top_k or text.vocab_size, text.vocab_size) for text in texts]
        self._most = max(counts)
        self._counts = torch.tensor(counts, device=self.device)[:, None]
        bounds = [[[text.params.top_p], [text.params.min_p]] for text in texts]
        self._top_p, self._min_p = torch.tensor(bounds, dtype=torch.float64, device=self.device).unbind(1)
        self._truncates = any(text.params.top_p < 1 or text.params.min_p for text in texts)

    def draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        values, ids = likeliest(self._scaled(logits), self._most)
        # How long the rows are depends on the greatest top_k among them, so nothing may that is rounded: each sum is
        # taken in order, which zeros behind it do not change.
        mass = (values - values[:, :1]).exp()
        mass = mass.masked_fill(torch.arange(self._most, device=self.device) >= self._counts, 0)
        if self._truncates:
            mass = mass * kept_of_sorted(mass, self._top_p, self._min_p)
        inversion = Inversion(mass, in_blocks=False)
        return ids.gather(1, inversion.find(self._uniforms()))[:, 0], values[:, 0].isfinite()


def group_of(text: TextSampling) -> type[Group]:
    """How a text is drawn for."""
    params = text.params
    if params.is_greedy:
        return GreedyGroup
    if not params.is_truncated:
        return WholeGroup
    return RefusingGroup if text.device.type == "cpu" and not params.top_k else SortedGroup
