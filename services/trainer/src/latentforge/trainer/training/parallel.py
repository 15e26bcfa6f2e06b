"""One model on several processes: replicated (DDP) or in pieces (FSDP2), by torch's own wrappers."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from latentforge.trainer.run.ranks import Ranks, peers_needed
from latentforge.trainer.training.averages import WeightAverage

Distributed = Literal["ddp", "fsdp"]

_BESIDE = "autoencoder."


class _Losses(nn.Module):
    """A function of a model as a module's forward pass: what the wrappers hook into."""

    def __init__(self, model: nn.Module, loss: Any) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, *args: Any) -> Any:
        return self._loss(self.model, *args)


class ParallelModel:
    """What a process computes of a model that several train.

    All parts of a step's batch divide by the whole step's counts, so the step's gradient is the plain sum over
    processes; torch's wrappers, which mean it, are told so.

    Args:
        model: as every process has made it, to the same bits; the first process looks at it, see :meth:`shown`.
        loss: called with the model and what :meth:`losses` is given.
        ranks: the group.
        distributed: ddp or fsdp.

    Attributes:
        model: whose parameters are optimised.
        ranks: the group.
    """

    def __init__(self, model: nn.Module, loss: Any, ranks: Ranks, distributed: Distributed, device: torch.device):
        self.ranks, self._scale = ranks, 1
        self.model, self._whole = model, model
        self._losses: nn.Module = _Losses(model, loss)
        if ranks.size == 1:
            return
        with peers_needed():
            if distributed == "fsdp":
                self._shard(loss, device)
            else:
                # Terms of weight 0 leave parameters without a gradient.
                self._losses = DistributedDataParallel(self._losses, find_unused_parameters=True)
                self._scale = ranks.size

    def _shard(self, loss: Any, device: torch.device) -> None:
        mesh = init_device_mesh(device.type, (self.ranks.size,))
        # The first process looks at the whole model: validates and publishes it.
        self.model = copy.deepcopy(self._whole) if self.ranks.is_main else self._whole
        self._losses = _Losses(self.model, loss)
        # Frozen weights outside of the layers stay whole everywhere: they have no gradient to share.
        frozen = {p for p in self.model.parameters() if not p.requires_grad}
        for name, module in self.model.named_modules():
            if name.endswith("backbone"):
                for layer in module.layers:
                    fully_shard(layer, mesh=mesh)
        # All else (tables, heads, the decoder) is gathered for a whole step: the fused loss reads tables as they are.
        fully_shard(self._losses, mesh=mesh, ignored_params=frozen)
        for module in self._losses.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    @property
    def chunk_size(self) -> int:
        size: int = self._whole.chunk_size  # type: ignore[assignment]
        return size

    def losses(self, *args: Any) -> Any:
        """The loss of a part, of what it is called with besides the model."""
        with peers_needed():
            return self._losses(*args)

    def scaled(self, total: Tensor) -> Tensor:
        """What is backpropagated for a loss: DDP takes the mean over processes of what is to be their sum."""
        return total * self._scale if self._scale > 1 else total

    @contextmanager
    def part(self, *, is_last: bool) -> Iterator[None]:
        """Around one part's forward and backward pass: replicas exchange gradients in the last one alone."""
        if is_last or not isinstance(self._losses, DistributedDataParallel):
            yield
        else:
            with self._losses.no_sync():
                yield

    @contextmanager
    def shown(self, average: WeightAverage | None) -> Iterator[None]:
        """Meanwhile the first process's whole model is what all have learnt, or its average; all have to call it."""
        if isinstance(self._losses, FSDPModule):
            weights = whole_weights(self.model)
            if average is not None:
                with peers_needed():
                    weights |= average.whole()
            if self.ranks.is_main:
                self._whole.load_state_dict(weights, strict=False)
            yield
        elif average is not None:
            with average.shown():
                yield
        else:
            yield


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """What :func:`own_weights` gives, whole; of a model in pieces to the first process, but all have to ask."""
    own = own_weights(model)
    if not any(isinstance(value, DTensor) for value in own.values()):
        return own
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    with peers_needed():
        state: dict[str, Any] = get_model_state_dict(model, options=options)
    return {name: value for name, value in state.items() if name in own}


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """All but those of the autoencoder beside a student: its own folder has them, and the identity its sha256."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith(_BESIDE)}
