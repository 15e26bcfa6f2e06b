"""Work that serves many calls."""

import asyncio
import contextvars
from collections.abc import Coroutine


class BackgroundTasks:
    """Tasks that belong to no call and are waited for at the end."""

    def __init__(self) -> None:
        # The event loop itself keeps no strong reference to a task.
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> None:
        # In an empty context, which has no call's log fields and no span.
        task = asyncio.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Waits until all are done, those too that others start meanwhile."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
