"""Looks at the checkpoints folder again and again, beside the requests."""

import asyncio
import logging

from latentforge.snapshots.registry import Registry

logger = logging.getLogger(__name__)


async def watch(registry: Registry, poll_seconds: float) -> None:
    """Refreshes the registry in a worker thread, for ever; ``poll_seconds`` pass between two looks."""
    while True:
        try:
            await asyncio.to_thread(registry.refresh)
        # A watcher that died unseen would serve old weights for ever.
        except Exception:
            logger.exception("the checkpoints folder could not be looked at; trying again")
        await asyncio.sleep(poll_seconds)
