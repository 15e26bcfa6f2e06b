"""Rows of a batch that are drawn in the same way."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentforge.model.sampling.inversion import BlockInversion, invert
from latentforge.model.sampling.likeliest import likeliest, likeliest_one
from latentforge.model.sampling.text import TextSampling, Uniforms, column, same_place
from latentforge.model.sampling.truncation import kept_of_sorted, left_beside


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
        return ids, values.abs() < torch.inf


class _RandomGroup(Group):
    def __init__(self, texts: Sequence[TextSampling]) -> None:
        super().__init__(texts)
        temperatures = [text.params.temperature for text in texts]
        self._temperature = None if all(t == 1 for t in temperatures) else column(temperatures, self.device)
        # Kept from draw to draw: memory that is new to the process costs more than what is computed into it.
        shape = len(texts), texts[0].vocab_size
        self._quotients, self._probabilities = torch.empty(2, *shape, device=self.device)

    def _scaled(self, logits: Tensor) -> Tensor:
        if self._temperature is None:
            return logits
        return torch.div(logits, self._temperature, out=self._quotients)

    def _mass(self, logits: Tensor) -> Tensor:
        return torch.softmax(self._scaled(logits), -1, out=self._probabilities)


class WholeGroup(_RandomGroup):
    """From the whole distribution, on any device."""

    def __init__(self, texts: Sequence[TextSampling]) -> None:
        super().__init__(texts)
        self._uniforms = Uniforms(texts)

    def draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        ids, total = invert(self._mass(logits), self._uniforms.next())
        return ids, total > 0


class RefusingGroup(_RandomGroup):
    """On a CPU, by top_p and min_p: from the whole distribution, and again where that token is not kept."""

    def __init__(self, texts: Sequence[TextSampling]) -> None:
        super().__init__(texts)
        self._inversion = BlockInversion(self._probabilities)
        self._rows = list(self._probabilities)
        self._truncated = [row for row, text in enumerate(texts) if text.params.is_truncated]
        self._has_min_p = any(text.params.min_p for text in texts)

    def draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        mass = self._mass(logits)
        ids = self._inversion.draw([text.uniforms.take() for text in self.texts])
        finite = self._inversion.total > 0
        if self._truncated:
            self._refuse(ids, mass)
        return torch.from_numpy(np.array(ids)), torch.from_numpy(finite)

    def _refuse(self, ids: list[int], mass: Tensor) -> None:
        """Draws again in place of what is not kept."""
        totals = self._inversion.total.tolist()
        peaks = mass.amax(-1).tolist() if self._has_min_p else totals
        left = {row: self._rows[row] for row in self._truncated if totals[row] > 0}
        for tries in itertools.count():
            refused = {}
            for row, rest in left.items():
                params = self.texts[row].params
                beside = left_beside(ids[row], params, self._rows[row], rest, totals[row], peaks[row], tries)
                if beside is not None:
                    refused[row] = beside
            if not refused:
                return
            uniforms = [self.texts[row].uniforms.take() for row in refused]
            drawn = BlockInversion(torch.stack([*refused.values()])).draw(uniforms)
            for row, token in zip(refused, drawn, strict=True):
                ids[row] = token
            left = refused


class SortedGroup(_RandomGroup):
    """By top_k, and on other devices than a CPU by top_p and min_p too: from the likeliest in their order."""

    def __init__(self, texts: Sequence[TextSampling]) -> None:
        super().__init__(texts)
        counts = [min(text.params.top_k or text.vocab_size, text.vocab_size) for text in texts]
        self._most = max(counts)
        # Not by `places`, which keeps what it gives for ever: callers choose this number.
        ranks, kept = torch.arange(self._most, device=self.device), torch.tensor(counts, device=self.device)
        self._refused = ranks >= kept[:, None]
        bounds = [[[text.params.top_p], [text.params.min_p]] for text in texts]
        self._top_p, self._min_p = torch.tensor(bounds, dtype=torch.float64, device=self.device).unbind(1)
        self._uniforms = Uniforms(texts)
        self._truncates = any(text.params.top_p < 1 or text.params.min_p for text in texts)

    def draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        values, ids = likeliest(self._scaled(logits), self._most)
        # How long the rows are depends on the greatest top_k among them, so nothing may that is rounded: each sum is
        # taken in order, which zeros behind it do not change.
        mass = (values - values[:, :1]).exp()
        mass = mass.masked_fill(self._refused, 0)
        if self._truncates:
            mass = mass * kept_of_sorted(mass, self._top_p, self._min_p)
        found, total = invert(mass, self._uniforms.next())
        return ids.gather(1, found[:, None])[:, 0], total > 0


def group_of(text: TextSampling) -> type[Group]:
    """How a text is drawn for."""
    params = text.params
    if params.is_greedy:
        return GreedyGroup
    if params.top_k or (params.is_truncated and text.device.type != "cpu"):
        return SortedGroup
    return RefusingGroup if text.device.type == "cpu" else WholeGroup
