"""A cache in one file, for a machine that has nothing else."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from latentforge.gateway.cache.base import CHECK_KEY, CacheError, Patience, StoreStats

logger = logging.getLogger(__name__)

T = TypeVar("T")

# SQLite's oldest limit on the parameters of a statement is 999.
_KEYS_PER_QUERY = 500
_BUSY_SECONDS = 2.0
# When it is full, so much of what it may hold is kept, and at most so many entries leave with one write.
_KEPT_WHEN_FULL = 0.95
_LEAVING_AT_ONCE = 1024
# A use is noted once in so many seconds, and these many at most between two writes.
_USED_LATELY_SECONDS = 600
_USES_NOTED = 20_000
_LOG_BYTES = 64 << 20


class SqliteCache:
    """SQLite in WAL mode; other processes may use the file at the same time.

    One thread looks up, one counts and one does all else, each with its own connection, so that lookups wait neither
    for writes nor for the count of a large file, and the count waits for no writes.

    Args:
        path: the file, made with its folder where there is none.
        max_bytes: that the file may have in use; a write beyond that lets the entries go that were not asked for
            longest. 0 is no bound. The file itself does not shrink but when it is cleared; new entries take the place.
    """

    kind = "sqlite"
    # The machine's own disk: it may be busy, but it does not go away.
    patience = Patience(1.0, 1.0)

    def __init__(self, path: Path, *, max_bytes: int = 0) -> None:
        self._path = path
        self._max_bytes = max_bytes
        # Keys that were found, here or in memory, in order, not written down yet.
        self._found: dict[bytes, None] = {}
        self._told = False
        self._reader = _Connection(path, "cache-reads")
        self._counter = _Connection(path, "cache-counts")
        self._writer = _Connection(path, "cache-writes")

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        values = await self._reader.run(lambda connection: self._get_many(connection, keys))
        for key, value in zip(keys, values, strict=True):
            if value is not None:
                self.used(key)
        return values

    def used(self, key: bytes) -> None:
        if self._max_bytes and len(self._found) < _USES_NOTED:
            self._found[key] = None

    async def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        found, self._found = list(self._found), {}

        def put(connection: sqlite3.Connection) -> int:
            now = int(time.time())
            with connection:
                connection.executemany("INSERT OR REPLACE INTO entries (key, value) VALUES (?, ?)", entries.items())
                connection.executemany(
                    "UPDATE uses SET at = ? WHERE key = ? AND at < ?",
                    ((now, key, now - _USED_LATELY_SECONDS) for key in found),
                )
                connection.executemany(
                    "INSERT OR REPLACE INTO uses (key, at) VALUES (?, ?)", ((key, now) for key in entries)
                )
                return self._let_go(connection)

        gone = await self._writer.run(put)
        if gone and not self._told:
            self._told = True
            logger.info(
                "%s is full (CACHE_MAX_MB=%d); from now on entries not asked for longest go",
                self._path,
                self._max_bytes >> 20,
            )

    def _let_go(self, connection: sqlite3.Connection) -> int:
        """Removes entries where the file is full; returns how many."""
        if not self._max_bytes or _bytes_in_use(connection) <= self._max_bytes:
            return 0
        gone = 0
        while gone < _LEAVING_AT_ONCE and _bytes_in_use(connection) > _KEPT_WHEN_FULL * self._max_bytes:
            keys = connection.execute("SELECT key FROM uses ORDER BY at LIMIT 16").fetchall()
            if not keys:
                break
            connection.executemany("DELETE FROM entries WHERE key = ?", keys)
            connection.executemany("DELETE FROM uses WHERE key = ?", keys)
            gone += len(keys)
        return gone

    async def check(self) -> None:
        def write(connection: sqlite3.Connection) -> None:
            # In two transactions: one that takes back what it wrote writes nothing.
            with connection:
                connection.execute("INSERT OR REPLACE INTO entries (key, value) VALUES (?, ?)", (CHECK_KEY, b""))
            with connection:
                connection.execute("DELETE FROM entries WHERE key = ?", (CHECK_KEY,))

        await self._writer.run(write)

    async def stats(self) -> StoreStats:
        def count(connection: sqlite3.Connection) -> StoreStats:
            (entries,) = connection.execute("SELECT count(*) FROM entries").fetchone()
            (size,) = connection.execute(
                "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
            ).fetchone()
            return StoreStats(entries, size)

        return await self._counter.run(count)

    async def clear(self) -> int:
        def clear(connection: sqlite3.Connection) -> int:
            with connection:
                (entries,) = connection.execute("SELECT count(*) FROM entries").fetchone()
                connection.execute("DELETE FROM entries")
                connection.execute("DELETE FROM uses")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return int(entries)

        return await self._writer.run(clear)

    async def close(self) -> None:
        await self._reader.close()
        await self._counter.close()
        await self._writer.close()

    @staticmethod
    def _get_many(connection: sqlite3.Connection, keys: Sequence[bytes]) -> list[bytes | None]:
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _KEYS_PER_QUERY):
            part = keys[start : start + _KEYS_PER_QUERY]
            marks = ",".join("?" * len(part))
            # The key is read from the row itself: the index, where it is damaged, may lead to another one.
            found.update(
                connection.execute(
                    "SELECT key, value FROM entries NOT INDEXED "
                    f"WHERE rowid IN (SELECT rowid FROM entries WHERE key IN ({marks}))",
                    part,
                )
            )
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
            connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
            _make_tables(connection)
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'uses_by_time'").fetchone():
        return
    # When entries were put or found last, in Unix seconds. Apart from them, since a change of one column writes the
    # whole row anew. What an earlier version put has no time and goes first.
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE IF NOT EXISTS uses (key BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID")
        connection.execute("CREATE INDEX IF NOT EXISTS uses_by_time ON uses (at)")
        connection.execute("INSERT OR IGNORE INTO uses SELECT key, 0 FROM entries")


def _bytes_in_use(connection: sqlite3.Connection) -> int:
    (size,) = connection.execute(
        "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, "
        "pragma_page_size"
    ).fetchone()
    return int(size)


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
