"""Operations of matrix products by number format, counted without computing anything."""

from collections import Counter
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Of one operation, in bfloat16 ones. In float32 a GB10 makes 31 of its 125 TFLOP/s (its specification, not measured).
COSTS = {torch.bfloat16: 1.0, torch.float16: 1.0, torch.float32: 4.0}


class OperationCounter(TorchDispatchMode):
    """Counts multiplications and additions of matrix products, attention included, by the format of their inputs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[torch.dtype] = Counter()

    @property
    def cost(self) -> float:
        """All of them in bfloat16 operations."""
        return sum(COSTS[dtype] * count for dtype, count in self.counts.items())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            count = formula(*args, **(kwargs or {}), out_val=out)
            (dtype,) = {arg.dtype for arg in args if isinstance(arg, torch.Tensor) and arg.is_floating_point()}
            self.counts[dtype] += count
        return out


def without_computing() -> FakeTensorMode:
    """Within it tensors have shapes and no contents: models of any size fit."""
    return FakeTensorMode()
