"""The processes that train one run together, as torchrun starts them; one alone is a group of one."""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from latentforge.trainer.errors import TrainerError

# Others wait while the first one packs data, validates and publishes. Whoever dies is noticed at once by its closed
# connections and by torchrun, not by this.
_PATIENCE = timedelta(hours=24)
_LOST = re.compile(r"gloo|nccl|connection|socket|peer", re.IGNORECASE)


class PeerLostError(TrainerError):
    """Another process of the group is gone."""


@dataclass(frozen=True)
class Ranks:
    """A process and its group.

    Attributes:
        rank: this process, 0 … size − 1; the first one validates, saves, publishes and prints.
        size: how many there are.
        scratch: where all but the first write what nobody reads; None for the first.
    """

    rank: int = 0
    size: int = 1
    scratch: Path | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This process's part of a batch's ``rows``; sizes differ by one at most.

        Raises:
            TrainerError: there are fewer rows than processes.
        """
        if rows < self.size:
            raise TrainerError(
                f"a step of {rows} sequences cannot be shared by {self.size} processes; raise batch_size, or start "
                "fewer"
            )
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, of a tensor of theirs that are of one shape."""
        if self.size == 1:
            return values
        # Few numbers, and on the CPU in every case: those go over gloo, beside what NCCL does.
        summed = values.detach().cpu().clone()
        with peers_needed():
            dist.all_reduce(summed)
        return summed.to(values.device)

    def sum_counts(self, counts: Mapping[str, int]) -> dict[str, int]:
        """The sum over all processes of each of these, which all have."""
        return dict(zip(counts, self.sum(torch.tensor(list(counts.values()))).tolist(), strict=True))

    def any(self, said: bool) -> bool:
        """Whether any process says so; all get the same answer."""
        return bool(self.sum(torch.tensor(int(said))))

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The body on the first process, then on all others, which find what it has made."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)


ALONE = Ranks()


@contextmanager
def peers_needed() -> Iterator[None]:
    """Says in plain words that another process is gone, where a collective operation fails.

    Raises:
        PeerLostError: it did.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise PeerLostError(
            "another process of this run is gone; the last saved state counts: run the same command to resume "
            f"({str(error).splitlines()[0]})"
        ) from error


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The group that torchrun's environment names; without one, this process alone.

    Raises:
        TrainerError: torchrun shall start dead processes again, in a way in which they do not find each other.
        PeerLostError: the others did not come.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    _check_restarts()
    rank = int(os.environ["RANK"])
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    with peers_needed():
        dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        with tempfile.TemporaryDirectory(prefix="latentforge-rank-") as scratch:
            yield Ranks(rank, size, None if rank == 0 else Path(scratch))
    finally:
        dist.destroy_process_group()


def _check_restarts() -> None:
    """Whether processes that torchrun starts again would find each other.

    By default torchrun lends them the store of its own meeting, which keeps the addresses of those that died: the new
    ones wait for those, or fail (torch 2.13; pytorch/pytorch#135712).
    """
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts > 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise TrainerError(
            f"torchrun's --max-restarts is {restarts}, but processes that it starts again would wait for the dead "
            "ones: export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, with --standalone or --rdzv-backend c10d, "
            "or leave out --max-restarts"
        )
