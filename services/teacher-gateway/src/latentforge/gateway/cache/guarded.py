"""A store that may be slow, dead or flapping, made into one that costs little then."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from latentforge.core.logs import log_exception
from latentforge.gateway.breaker import Breaker
from latentforge.gateway.cache.base import CHECK_KEY, Cache, CacheError, StoreStats, WritesRefusedError
from latentforge.gateway.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FAILURES, _OF_LAST, _WINDOW_SECONDS, _PAUSE_SECONDS = 5, 15, 10.0, 10.0
# What a lookup may cost of the time that computing instead takes; half of that is left for everything else.
_PART_OF_COMPUTING = 0.1
_ENTRIES_PER_WRITE, _BYTES_PER_WRITE = 32, 1 << 20
_SECONDS_BETWEEN_WRITE_TRIES = 0.25
_SECONDS_BETWEEN_WARNINGS = 60.0
_STATS_SECONDS = 1.0
_CHECK_SECONDS = 3.0


class GuardedCache:
    """Lookups that end in time, answered or not, and writes that nobody waits for.

    A lookup that takes longer than its patience has failed; while one is overdue, or 5 of the last 15 failed within
    10 s, the store is not asked: then for 10 s nothing is, and after that one lookup at a time tries again. Patience is
    a tenth of what the teacher takes for a batch, within the bounds that the store gives.

    Writes wait in a queue of bounded size, where lookups find them. When it is full the newest are dropped and counted.
    A write that fails is tried again. A store that answers and takes none (a replica, one that is full) is read on;
    what it did not take is dropped and counted, and so is all that comes in the next 10 s.
    """

    def __init__(self, store: Cache, metrics: Metrics, *, max_queued_bytes: int) -> None:
        self._store = store
        self._max_queued_bytes = max_queued_bytes
        self._reads = _breaker("cache-reads", metrics)
        self._writes = _breaker("cache-writes", metrics)
        self._dropped_counter = metrics.cache_dropped_writes
        self._patience = store.patience.most
        self._overdue: set[asyncio.Future[Any]] = set()
        self._queue: dict[bytes, bytes] = {}
        self._queued_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._refused_at: float | None = None
        self._warned = -_SECONDS_BETWEEN_WARNINGS
        # Why the last write failed, until one succeeds; None while none was tried.
        self._write_failure: str | None = None
        self._read_failure = ""
        self._check: asyncio.Task[None] | None = None
        self._counting: asyncio.Task[StoreStats | None] | None = None
        self.errors = 0
        self.dropped_writes = 0

    @property
    def kind(self) -> str:
        return self._store.kind

    @property
    def patience(self) -> float:
        """Seconds that a lookup may take."""
        return self._patience

    @property
    def problem(self) -> str:
        """Why it gives or takes no entries just now; empty where it does both, as far as was seen."""
        if self._reads.is_open:
            return f"the {self.kind} cache is not asked, since it fails: {self._read_failure}"
        if self._write_failure:
            return f"the {self.kind} cache takes no rows: {self._write_failure}"
        return ""

    async def check(self) -> None:
        """Finds out whether what failed works again, and at first whether anything does; :attr:`problem` says it.

        While all is well nothing is asked: lookups and writes tell.
        """
        if self.kind == "none":
            return
        if self._reads.is_open and not self._overdue:
            await self._ask([CHECK_KEY])
        if self._write_failure == "":
            return
        if self._check is None:
            self._check = asyncio.create_task(self._checked())
        done, _ = await asyncio.wait({self._check}, timeout=_CHECK_SECONDS)
        if not done:
            self._write_failure = f"no answer within {_CHECK_SECONDS:g} s"

    async def _checked(self) -> None:
        try:
            await self._store.check()
        except Exception as error:
            self._write_failure = _said(error)
        else:
            self._write_failure, self._refused_at = "", None
        finally:
            self._check = None

    def computing_takes(self, seconds: float) -> None:
        """Told what the teacher takes for a batch: waiting for a store is worth a part of that."""
        bounds = self._store.patience
        self._patience = min(bounds.most, max(bounds.least, _PART_OF_COMPUTING * seconds))

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None] | None:
        """Entries in the order of the keys, None for those that are not there.

        None in place of the list: the store was not asked, or did not answer in time. Entries that wait to be written
        are found even then.
        """
        if self.kind == "none":
            return [None] * len(keys)
        found = [self._queue.get(key) for key in keys]
        missing = [i for i, value in enumerate(found) if value is None]
        if not missing:
            return found
        values = await self._ask([keys[i] for i in missing])
        if values is None:
            return None if len(missing) == len(keys) else found
        for i, value in zip(missing, values, strict=True):
            found[i] = value
        return found

    def used(self, key: bytes) -> None:
        """Told that an entry was answered from memory."""
        self._store.used(key)

    def put(self, key: bytes, value: bytes) -> None:
        """Has an entry written, soon."""
        if self.kind == "none":
            return
        if self._refused_at is not None and time.monotonic() < self._refused_at + _PAUSE_SECONDS:
            self._count_dropped(1)
            return
        before = self._queue.get(key)
        grown = len(key) + len(value) - (0 if before is None else len(key) + len(before))
        if self._queued_bytes + grown > self._max_queued_bytes:
            self._count_dropped(1)
            return
        self._queue[key] = value
        self._queued_bytes += grown
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def stats(self) -> StoreStats | None:
        """None when the store does not answer, or is not asked since it did not before."""
        if self._overdue or self._reads.is_open:
            return None
        if self._counting is None:
            self._counting = asyncio.create_task(self._counted())
        counting = self._counting
        # One that takes longer goes on, and says nothing of lookups: whoever asks next waits for it too.
        done, _ = await asyncio.wait({counting}, timeout=_STATS_SECONDS)
        return counting.result() if done else None

    async def _counted(self) -> StoreStats | None:
        try:
            return await self._store.stats()
        except Exception as error:
            self._failed(error)
            return None
        finally:
            self._counting = None

    async def flush(self, seconds: float) -> None:
        """Waits until what was put is written, but not longer than ``seconds`` or for a store that is left alone."""
        until = time.monotonic() + seconds
        while self._writer is not None and not self._writes.is_open and (left := until - time.monotonic()) > 0:
            await asyncio.wait({self._writer}, timeout=min(left, _SECONDS_BETWEEN_WRITE_TRIES))

    async def close(self) -> None:
        await self.flush(_STATS_SECONDS)
        if self._queue:
            logger.warning("%d entries that the cache did not take are lost", len(self._queue))
        begun = (self._writer, self._check, self._counting)
        tasks = [*self._overdue, *(task for task in begun if task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._store.close()

    async def _ask(self, keys: Sequence[bytes]) -> list[bytes | None] | None:
        # One overdue lookup is enough to know that the next would wait as long.
        if self._overdue or not self._reads.allows():
            return None
        lookup = asyncio.ensure_future(self._store.get_many(keys))
        try:
            in_time = await self._in_time(lookup)
        except asyncio.CancelledError:
            # The lookup itself is not cancelled: redis-py would close a connection in the middle of an answer, and the
            # breaker's one try would end without a word.
            self._reads.abandoned()
            self._watch(lookup)
            raise
        if not in_time:
            self._reads.failed()
            self._read_failure = f"no answer within {1000 * self._patience:.0f} ms"
            self._failed(CacheError(self._read_failure))
            self._watch(lookup)
            return None
        try:
            values = lookup.result()
        except Exception as error:
            self._reads.failed()
            self._read_failure = _said(error)
            self._failed(error)
            return None
        self._reads.succeeded()
        return values

    async def _in_time(self, lookup: asyncio.Future[Any]) -> bool:
        patience = self._patience
        started = time.monotonic()
        done, _ = await asyncio.wait({lookup}, timeout=patience)
        if not done and time.monotonic() - started > 1.5 * patience:
            # This process was late itself, and the answer may lie there unread.
            done, _ = await asyncio.wait({lookup}, timeout=patience)
        return bool(done)

    def _watch(self, late: asyncio.Future[Any]) -> None:
        """Until it ends, which its own timeouts see to, others would wait as long as it did."""

        def ended(late: asyncio.Future[Any]) -> None:
            self._overdue.discard(late)
            if not late.cancelled():
                # Its lateness was its failure; how it ended says no more.
                late.exception()

        self._overdue.add(late)
        late.add_done_callback(ended)

    async def _write(self) -> None:
        while self._queue:
            if not self._writes.allows():
                await asyncio.sleep(max(_SECONDS_BETWEEN_WRITE_TRIES, self._writes.seconds_left))
                continue
            batch: dict[bytes, bytes] = {}
            size = 0
            for key, value in self._queue.items():
                size += len(value)
                if batch and (size > _BYTES_PER_WRITE or len(batch) == _ENTRIES_PER_WRITE):
                    break
                batch[key] = value
            try:
                await self._store.put_many(batch)
            except WritesRefusedError as error:
                self._refused(error)
                continue
            except Exception as error:
                self._writes.failed()
                self._write_failure = _said(error)
                self._failed(error)
                await asyncio.sleep(_SECONDS_BETWEEN_WRITE_TRIES)
                continue
            self._writes.succeeded()
            self._refused_at, self._write_failure = None, ""
            # Only now: until they are written, lookups must find them in the queue.
            for key, value in batch.items():
                # Another may have taken its place meanwhile.
                if self._queue.get(key) is value:
                    del self._queue[key]
                    self._queued_bytes -= len(key) + len(value)
        self._writer = None

    def _refused(self, error: WritesRefusedError) -> None:
        """Trying again would be refused again, and a queue that nobody takes would only fill memory."""
        # The store answers, which is what the breaker asks.
        self._writes.succeeded()
        self.errors += 1
        self._write_failure = _said(error)
        if self._refused_at is None:
            logger.warning("the %s cache takes no entries, which are dropped; lookups go to it: %s", self.kind, error)
        self._refused_at = time.monotonic()
        self._count_dropped(len(self._queue))
        self._queue.clear()
        self._queued_bytes = 0

    def _count_dropped(self, entries: int) -> None:
        self.dropped_writes += entries
        self._dropped_counter.inc(entries)

    def _failed(self, error: Exception) -> None:
        self.errors += 1
        if not isinstance(error, CacheError):
            # A bug in a store's client must cost hits only, like the store's absence.
            log_exception(logger, f"the {self.kind} cache failed in an unknown way", error)
        elif time.monotonic() - self._warned >= _SECONDS_BETWEEN_WARNINGS:
            self._warned = time.monotonic()
            logger.warning(
                "the %s cache fails and is worked without (%d errors so far): %s", self.kind, self.errors, error
            )


def _said(error: Exception) -> str:
    """Other errors than its own may quote what was asked."""
    return str(error) if isinstance(error, CacheError) else type(error).__name__


def _breaker(name: str, metrics: Metrics) -> Breaker:
    return Breaker(_FAILURES, _WINDOW_SECONDS, _PAUSE_SECONDS, of_last=_OF_LAST, on_change=metrics.breaker(name))
