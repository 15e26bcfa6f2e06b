"""The teacher's continuations on disk: written as they arrive, found again after a kill.

A folder holds ``identity.json``, what its content depends on (:func:`latentforge.trainer.run.identity.claim`), and
``continuations.sqlite``, a row per continuation. All continuations of a prompt are one transaction: after a kill they
are there or they are not, and what :meth:`GeneratedStore.append` has returned from survives a power cut too.
"""

import hashlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentforge.teacher_client.sparse_rows import CorruptRowsError, LogprobDtype, SparseRows, pack, unpack
from latentforge.trainer.errors import TrainerError

_FILE = "continuations.sqlite"
# ``dropped`` is null of a usable continuation, and everything behind it of a dropped one. ``ids`` are those of prompt
# and continuation, little-endian uint32; ``rows`` are as ``sparse_rows.pack`` makes them, with a checksum of their own.
_TABLE = """
create table if not exists continuations (
  prompt integer, place integer, dropped text,
  num_prompt_ids integer, num_token_ids integer, stopped integer, ids blob, rows blob,
  primary key (prompt, place)
)
"""


@dataclass(frozen=True)
class Continuation:
    """One continuation as the teacher gave it.

    Attributes:
        prompt_ids: uint32 [p], the prompt as the teacher saw it.
        token_ids: uint32 [t], t of 1 or more.
        rows: the teacher's for ``token_ids``; first_position is p.
        stopped: the teacher ended it itself.
    """

    prompt_ids: NDArray[np.uint32]
    token_ids: NDArray[np.uint32]
    rows: SparseRows
    stopped: bool


@dataclass(frozen=True)
class Dropped:
    """A continuation that cannot be used, and why."""

    reason: str


@dataclass(frozen=True)
class Record:
    """A usable continuation that is stored: the ``place``-th of ``prompt``, and how long it is."""

    prompt: int
    place: int
    num_prompt_ids: int
    num_token_ids: int


class GeneratedStore:
    """The continuations in a folder; of one thread; :meth:`close` it.

    Attributes:
        num_usable: continuations that can be used.
        num_dropped: those that cannot.

    Raises:
        TrainerError: the file is torn or not this database, or cannot be written; from every method.
    """

    def __init__(self, folder: Path, dtype: LogprobDtype = "float16") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path, self._dtype = folder, folder / _FILE, dtype
        self._database = sqlite3.connect(self.path)
        try:
            # A commit waits for the disk, and for the folder's list of names.
            self._query("pragma synchronous = extra")
            self._query(_TABLE)
            self._check()
            # Looked at after every prompt: counted once, since to count is to read the table.
            query = "select count(*) - count(dropped), count(dropped) from continuations"
            self.num_usable, self.num_dropped = map(int, self._query(query)[0])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._database.close()

    def __contains__(self, prompt: int) -> bool:
        """Whether a prompt's continuations are all here, dropped ones included."""
        return bool(self._query("select 1 from continuations where prompt = ? limit 1", prompt))

    def append(self, prompt: int, continuations: Sequence[Continuation | Dropped]) -> None:
        """Keeps all continuations of one prompt, one or more; a kill before this returns may leave none of them."""
        rows = [(prompt, place, *self._columns(c)) for place, c in enumerate(continuations)]
        try:
            with self._database:
                self._database.executemany("insert into continuations values (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from None
        num_dropped = sum(isinstance(c, Dropped) for c in continuations)
        self.num_dropped += num_dropped
        self.num_usable += len(continuations) - num_dropped

    def records(self, prompts: Sequence[int]) -> list[Record]:
        """The usable continuations of prompts, in the prompts' order."""
        found: dict[int, list[Record]] = {}
        for row in self._query(
            "select prompt, place, num_prompt_ids, num_token_ids from continuations where dropped is null order by 1, 2"
        ):
            record = Record(*row)
            found.setdefault(record.prompt, []).append(record)
        return [record for prompt in prompts for record in found.get(prompt, ())]

    def dropped(self) -> list[str]:
        """Why continuations were dropped, one reason each, as they came."""
        query = "select dropped from continuations where dropped is not null order by rowid"
        return [why for (why,) in self._query(query)]

    def num_tokens(self) -> int:
        """Tokens of the usable continuations."""
        return int(self._query("select coalesce(sum(num_token_ids), 0) from continuations")[0][0])

    def read(self, record: Record) -> Continuation:
        """A continuation, its arrays not copied."""
        ids, rows, stopped = self._content(record)
        whole = np.frombuffer(ids, "<u4")
        try:
            unpacked = unpack(rows)
        except CorruptRowsError as error:
            raise self._unusable(error) from None
        return Continuation(whole[: record.num_prompt_ids], whole[record.num_prompt_ids :], unpacked, bool(stopped))

    def digest(self, prompts: Sequence[int]) -> str:
        """Tells the continuations of prompts from others, in whatever order they arrived."""
        digest = hashlib.sha256()
        for record in self.records(prompts):
            ids, rows, _ = self._content(record)
            digest.update(ids + rows)
        return digest.hexdigest()

    def _check(self) -> None:
        """Finds a torn file now, not after hours of training from its beginning."""
        # Nobody else writes until the commit.
        self._query("begin")
        [(found,)] = self._query("pragma quick_check(1)")
        [(written,)] = self._query("select page_count * page_size from pragma_page_count, pragma_page_size")
        size = self.path.stat().st_size
        self._query("commit")
        if found != "ok":
            raise self._unusable(" ".join(found.split()))
        if size != written:
            # To sqlite the rest of a page that was cut off is zeros.
            raise self._unusable(f"it has {size} bytes of {written}")

    def _columns(self, continuation: Continuation | Dropped) -> tuple[Any, ...]:
        if isinstance(continuation, Dropped):
            return continuation.reason, None, None, None, None, None
        ids = np.concatenate([continuation.prompt_ids, continuation.token_ids]).astype("<u4").tobytes()
        lengths = len(continuation.prompt_ids), len(continuation.token_ids)
        return None, *lengths, int(continuation.stopped), ids, pack(continuation.rows, self._dtype)

    def _content(self, record: Record) -> tuple[bytes, bytes, int]:
        query = "select ids, rows, stopped from continuations where prompt = ? and place = ?"
        content: tuple[bytes, bytes, int] = self._query(query, record.prompt, record.place)[0]
        return content

    def _query(self, query: str, *values: Any) -> list[Any]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from None

    def _unusable(self, why: object) -> TrainerError:
        return TrainerError(
            f"{self.path} cannot be used ({why}): restore it, or collect the text anew with --fresh (FRESH=1)"
        )
