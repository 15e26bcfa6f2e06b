"""What a temperature below 1 leaves of the copy boosts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentforge.model.sampling.text import TextSampling, column, same_place


class SteadyBoosts:
    """Keeps a temperature below 1 from making the copy boosts of a batch stronger than they were trained to be.

    Logits are base + boost, and tokens are drawn by softmax(base / T + boost) where T < 1. Divided too, boosts would be
    1 / T times as strong, and what was copied once would be copied again: such texts loop. Above 1 a temperature
    divides all there is, since boosts that stayed would stand out of what is flatter. Greedy text takes the likeliest
    token of the model, whose log probabilities callers see: the limit T → 0 would be a model without copy heads.

    Attributes:
        any: whether a text has such a temperature; else there is nothing to do.
    """

    def __init__(self, texts: Sequence[TextSampling]) -> None:
        vocab_size, device = same_place(texts)
        # Logits are divided later on, behind biases and penalties: from base + T·boost comes base / T + boost.
        taken = [min(p.temperature, 1.0) - 1 if not p.is_greedy else 0.0 for p in (text.params for text in texts)]
        self.any = any(taken)
        if self.any:
            self._taken = column(taken, device)
            self._drawn_from = torch.empty(len(texts), vocab_size, device=device)

    def apply(self, logits: Tensor, ids: Tensor, boosts: Tensor) -> Tensor:
        """Logits [b, V] of which boosts [b, n] of ids, int64 [b, n], are a part: float32 [b, V], until called again."""
        # Adding 0 changes nothing, so texts of other temperatures keep their bits.
        return self._drawn_from.copy_(logits).scatter_add_(1, ids, (boosts * self._taken).float())
