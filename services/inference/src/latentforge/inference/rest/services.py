"""What the endpoints answer with."""

import asyncio
from dataclasses import dataclass

from latentforge.inference.engine import AsyncEngine
from latentforge.inference.rest.errors import RestError
from latentforge.inference.settings import InferenceSettings
from latentforge.snapshots.registry import SERVED_NAME, Registry
from latentforge.snapshots.snapshot import Snapshot


@dataclass(frozen=True)
class Services:
    """Parts that all endpoints share."""

    settings: InferenceSettings
    registry: Registry
    engine: AsyncEngine

    async def snapshot(self, name: str | None = None) -> Snapshot:
        """The checkpoint that a request asks for, which answers it to its end.

        Raises:
            NothingServedError: nothing is loaded yet.
            UnknownCheckpointError: there is none of this name.
            CheckpointError: it must not be served.
            RestError: it cannot be read now.
        """
        current = self.registry.current
        if current is not None and name in (None, SERVED_NAME, current.id):
            return current
        try:
            # One that is not served is loaded, which takes its time.
            return await asyncio.to_thread(self.registry.snapshot_for, name)
        except OSError as error:
            raise RestError(
                503, "checkpoint_unreadable", f"{name} cannot be read now: {error}", param="model"
            ) from None
