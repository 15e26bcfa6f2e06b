"""Draws a token for each text of a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentforge.model.sampling.boosts import SteadyBoosts
from latentforge.model.sampling.groups import Group, group_of
from latentforge.model.sampling.penalties import Adjustments
from latentforge.model.sampling.text import TextSampling, same_place


class NonFiniteLogitsError(ArithmeticError):
    """A model gave logits that nothing can be drawn from."""


class BatchSampler:
    """Draws for a fixed batch of texts; made when texts join or leave.

    What a text gets depends on its own logits, settings, random numbers and earlier tokens, and on no other text.
    On a device other than a CPU it waits for nothing.

    Attributes:
        texts: of the batch, in its order.
    """

    def __init__(self, texts: Sequence[TextSampling]) -> None:
        """At least one text, all of one vocabulary and device."""
        self.texts = tuple(texts)
        self._vocab_size, device = same_place(self.texts)
        rows_of: dict[type[Group], list[int]] = {}
        for row, text in enumerate(self.texts):
            rows_of.setdefault(group_of(text), []).append(row)
        self._groups = [
            (kind([self.texts[row] for row in rows]), torch.tensor(rows, device=device))
            for kind, rows in rows_of.items()
        ]
        self._boosts = SteadyBoosts(self.texts)
        adjusts = any(text.params.logit_bias or text.params.is_penalised for text in self.texts)
        self._adjustments = Adjustments(self.texts) if adjusts else None
        self._finite = torch.ones(len(self.texts), dtype=torch.bool, device=device)

    @property
    def asks_for_boosts(self) -> bool:
        """Whether :meth:`draw` needs ``boosted`` of a model with induction heads."""
        return self._boosts.any

    def draw(
        self, logits: Tensor, forced: Tensor | None = None, boosted: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Draws each text's next token.

        Args:
            logits: float [b, V], which stay as they are; -inf marks tokens that must not be drawn.
            forced: int64 [b], taken instead of what is drawn where it is not -1.
            boosted: ids, int64 [b, n], and the copy boosts, float [b, n], that the logits have of them already; ids may
                stand there several times.

        Returns:
            int64 [b].
        """
        assert logits.shape == (len(self.texts), self._vocab_size), logits.shape
        if boosted is not None and self._boosts.any:
            logits = self._boosts.apply(logits, *boosted)
        logits = logits.float() if self._adjustments is None else self._adjustments.apply(logits)
        if len(self._groups) == 1:
            ids, finite = self._groups[0][0].draw(logits)
        else:
            ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
            finite = torch.empty_like(self._finite)
            for group, rows in self._groups:
                ids[rows], finite[rows] = group.draw(logits[rows])
        self._finite &= finite
        if forced is not None:
            ids = torch.where(forced < 0, ids, forced)
        if self._adjustments is not None:
            self._adjustments.note(ids)
        return ids

    def take_finite(self) -> Tensor:
        """Of which texts all draws since this was last asked mean something: bool [b], on the device.

        Those of logits that are NaN, inf or all -inf do not; ids that were drawn from them are in the vocabulary.
        """
        finite, self._finite = self._finite, torch.ones_like(self._finite)
        return finite
