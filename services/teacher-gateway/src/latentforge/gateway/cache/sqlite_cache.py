"""A cache in one file, for a machine that has nothing else."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from latentforge.gateway.cache.base import CacheError, Patience, StoreStats

T = TypeVar("T")

# SQLite's oldest limit on the parameters of a statement is 999.
_KEYS_PER_QUERY = 500
_BUSY_SECONDS = 2.0


class SqliteCache:
    """SQLite in WAL mode; other processes may use the file at the same time.

    One thread reads and one does all else, each with its own connection, so that lookups do not wait for writes.
    """

    kind = "sqlite"
    # The machine's own disk: it may be busy, but it does not go away.
    patience = Patience(1.0, 1.0)

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = _Connection(path, "cache-reads")
        self._writer = _Connection(path, "cache-writes")

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self._reader.run(lambda connection: self._get_many(connection, keys))

    async def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        def put(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("INSERT OR REPLACE INTO entries (key, value) VALUES (?, ?)", entries.items())

        await self._writer.run(put)

    async def stats(self) -> StoreStats:
        def count(connection: sqlite3.Connection) -> StoreStats:
            (entries,) = connection.execute("SELECT count(*) FROM entries").fetchone()
            (size,) = connection.execute(
                "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
            ).fetchone()
            return StoreStats(entries, size)

        return await self._writer.run(count)

    async def clear(self) -> int:
        def clear(connection: sqlite3.Connection) -> int:
            with connection:
                (entries,) = connection.execute("SELECT count(*) FROM entries").fetchone()
                connection.execute("DELETE FROM entries")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return int(entries)

        return await self._writer.run(clear)

    async def close(self) -> None:
        await self._reader.close()
        await self._writer.close()

    @staticmethod
    def _get_many(connection: sqlite3.Connection, keys: Sequence[bytes]) -> list[bytes | None]:
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _KEYS_PER_QUERY):
            part = keys[start : start + _KEYS_PER_QUERY]
            marks = ",".join("?" * len(part))
            found.update(connection.execute(f"SELECT key, value FROM entries WHERE key IN ({marks})", part))
        return [found.get(key) for key in keys]


class _Connection:
    """A connection that is opened when first used, and the one thread that may use it."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def guarded() -> T:
            try:
                if self._connection is None:
                    self._connection = self._connect()
                return work(self._connection)
            except (sqlite3.Error, OSError) as error:
                raise CacheError(f"{self._path}: {error}") from None

        return await asyncio.get_running_loop().run_in_executor(self._executor, guarded)

    async def close(self) -> None:
        def close() -> None:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

        await asyncio.get_running_loop().run_in_executor(self._executor, close)
        self._executor.shutdown()

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS)
        try:
            _use_wal(connection)
            # A lost entry is computed again, so an fsync at each write would buy nothing.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    # Where two connections change a new file's mode at once, one is told "locked" at once: SQLite does not wait here.
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)
