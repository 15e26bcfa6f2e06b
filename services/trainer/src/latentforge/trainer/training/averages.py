"""An exponential moving average of weights over a stage's steps: what is validated and published, not what learns."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from latentforge.model.sharded import piece_like, whole

_COUNT = "count"


def decay_of(step: int, most: float) -> float:
    """The decay of the average after ``step`` steps that are in it: it rises to ``most``.

    A constant one would leave the weights of the first step a share of d^t. As TensorFlow's ExponentialMovingAverage
    with ``num_updates``: min(d, (1 + t) / (10 + t)).
    """
    return min(most, (1 + step) / (10 + step))


class WeightAverage:
    """e_1 = w_1, e_(t+1) = d_t · e_t + (1 − d_t) · w_(t+1) with d_t of :func:`decay_of`, of all that a model trains.

    Args:
        model: whole, or in pieces (FSDP2), of which each process averages its own.
        decay: d, that d_t rises to; 0 < d < 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names = list(own)
        # Without the frozen weights, which are no average of anything, and not copied.
        self._weights = nn.ParameterList(own.values())

        def update(averages: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
            get_ema_multi_avg_fn(decay_of(int(count), decay))(list(averages), list(weights), count)

        self._average = AveragedModel(self._weights, multi_avg_fn=update)

    def update(self) -> None:
        """Takes in the weights as an optimizer's step has left them."""
        self._average.update_parameters(self._weights)

    def whole(self) -> dict[str, Tensor]:
        """The averages by name of the parameter; all processes that hold pieces have to ask."""
        return {name: whole(p.detach()) for name, p in zip(self._names, self._average.parameters(), strict=True)}

    def state(self) -> dict[str, Tensor]:
        """Those, and how many steps are in them."""
        return self.whole() | {_COUNT: self._average.n_averaged}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`state` gave.

        Raises:
            ValueError: a name or a shape is another.
        """
        if set(tensors) != {*self._names, _COUNT}:
            raise ValueError(f"averages differ: {min(set(tensors) ^ {*self._names, _COUNT})}")
        for name, average in zip(self._names, self._average.parameters(), strict=True):
            average.copy_(piece_like(tensors[name], average))
        self._average.n_averaged.copy_(tensors[_COUNT])

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The model has the averages as its weights meanwhile, and after that its own again, to the bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for weight, average in zip(self._weights, self._average.parameters(), strict=True):
            weight.data, average.data = average.data, weight.data
