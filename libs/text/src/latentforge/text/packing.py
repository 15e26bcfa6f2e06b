"""Documents to packed data: the writer of :mod:`latentforge.text.packed`, in parallel processes, resumable."""

import fcntl
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from latentforge.core.files import fsync, remove, write_atomically
from latentforge.text.documents import EXPECTED
from latentforge.text.encoding import EncodedBlock, EncodingRules, encode_block
from latentforge.text.encoding_process import EncodingProcess
from latentforge.text.errors import PackingStoppedError, TextError
from latentforge.text.packed import META, PackedData, PackedMeta
from latentforge.text.packed_writer import PackedWriter
from latentforge.text.text_source import Block, Position, Stamp, TextSource
from latentforge.text.tokenizer import TextTokenizer

STAMPS = "sources.json"
_PROGRESS = "progress.json"
# Less is packed before other processes have started.
_BYTES_WORTH_PROCESSES = 2**25
_BYTES_IN_FLIGHT = 2**26
_SAVE_SECONDS = 10.0
_LOOK_SECONDS = 0.2


def check_lengths(sequence_length: int, chunk_size: int) -> None:
    """Raises TextError unless sequences are at least two whole chunks."""
    if chunk_size < 1:
        raise TextError(f"k={chunk_size}: a chunk has at least 1 token")
    if sequence_length % chunk_size or sequence_length < 2 * chunk_size:
        below = max(2, sequence_length // chunk_size) * chunk_size
        raise TextError(
            f"sequence_length={sequence_length} is not a multiple (2 or more) of K={chunk_size}; "
            f"set it to {below} or {below + chunk_size}"
        )


def pack(
    source: TextSource,
    outs: Mapping[str, Path],
    tokenizer: TextTokenizer,
    *,
    sequence_length: int,
    chunk_size: int,
    held_out_below: int | None = None,
    skip_bad: bool = False,
    processes: int | None = None,
    on_read: Callable[[int], None] = lambda num_bytes: None,
    stop: Callable[[], bool] = lambda: False,
    save_seconds: float = _SAVE_SECONDS,
) -> dict[str, PackedMeta]:
    """Packs documents into folders, which appear whole or not at all; what was packed is never kept in memory.

    A folder that already holds the same packing is kept; another packing there is replaced. What a killed or stopped
    call has done is kept beside the folders, and the same call resumes: the folders are the same to the byte.

    Args:
        source: the documents.
        outs: the packed folder of each split: one of any name, or, with ``held_out_below``, "train" and "held-out".
        tokenizer: the teacher's.
        sequence_length: tokens per sequence, a multiple of ``chunk_size``.
        chunk_size: K.
        held_out_below: see :func:`latentforge.text.held_out.held_out_below`.
        skip_bad: lines that are not as expected are left out and counted.
        processes: that encode beside this one; None takes one a core, and none for small data.
        on_read: told how many bytes of the source, as it is on the disk, are packed.
        stop: asked between blocks.
        save_seconds: how often what was done is saved.

    Raises:
        TextError: bad lengths, a bad line, too few tokens for one sequence, or a folder holds something else.
        PackingStoppedError: ``stop`` said so; what was done is saved.
    """
    check_lengths(sequence_length, chunk_size)
    tokenizer.check_ids()
    for out in outs.values():
        if out.exists() and not (out / META).is_file() and any(out.iterdir()):
            raise TextError(f"{out} exists and is no packed data; give another --out")
    stamps = source.stamps(_known_stamps([_work_of(outs), *outs.values()]), stop)
    wanted: dict[str, Any] = {
        "chunk_size": chunk_size,
        "sequence_length": sequence_length,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "bos_id": tokenizer.bos_id,
        "dtype": "uint16"
        if max(tokenizer.vocab_size, tokenizer.pad_id + 1, tokenizer.eos_id + 1) <= 2**16
        else "uint32",
        "source": Path(source.name).name,
        "source_sha256": source.sha256(stamps),
        "text_column": source.text_column,
        "held_out_below": held_out_below,
    }
    if (kept := _same_packings(outs, wanted, skip_bad)) is not None:
        return kept
    with _work_folder(outs) as work:
        _take_finished(work, outs, wanted)
        if (kept := _same_packings(outs, wanted, skip_bad)) is not None:
            return kept
        rules = EncodingRules(source.text_column, skip_bad, held_out_below)
        job = _Job(work, outs, wanted, stamps, tokenizer)
        with closing(job), _encoder(source, tokenizer, rules, processes) as encode:
            blocks = source.blocks(job.position)
            saved = time.monotonic()
            for block, encoded in _in_order(blocks, encode, stop, job.save):
                job.add(block, encoded)
                on_read(block.read)
                if time.monotonic() - saved >= save_seconds:
                    job.save()
                    saved = time.monotonic()
            return job.finish(source)


def pack_jsonl(
    source: Path, out: Path, tokenizer: TextTokenizer, *, sequence_length: int, chunk_size: int, split: str
) -> PackedMeta:
    """:func:`pack` of one file or folder into one packed folder."""
    outs = {split: out}
    return pack(TextSource.of(source), outs, tokenizer, sequence_length=sequence_length, chunk_size=chunk_size)[split]


class _Job:
    """What is being packed into a work folder: a writer for each split, and how far the source was read."""

    def __init__(
        self,
        work: Path,
        outs: Mapping[str, Path],
        wanted: dict[str, Any],
        stamps: dict[str, Stamp],
        tokenizer: TextTokenizer,
    ) -> None:
        self._work, self._outs, self._wanted = work, outs, wanted
        progress = _read_json(work / _PROGRESS)
        if progress.get("wanted") != wanted or set(progress.get("writers", ())) != set(outs):
            progress = {}
            for split in outs:
                remove(work / split)
            remove(work / _PROGRESS)
        write_atomically(work / STAMPS, json.dumps(stamps))
        self.position = Position(**progress["position"]) if progress else Position()
        self._num_bad = progress.get("num_bad", 0)
        self._writers = {
            split: PackedWriter(
                work / split,
                wanted["dtype"],
                wanted["sequence_length"],
                tokenizer.bos_id,
                progress.get("writers", {}).get(split),
            )
            for split in outs
        }

    def add(self, block: Block, encoded: EncodedBlock) -> None:
        if self._wanted["held_out_below"] is None:
            next(iter(self._writers.values())).add(encoded, None)
        else:
            self._writers["train"].add(encoded, ~encoded.held_out)
            self._writers["held-out"].add(encoded, encoded.held_out)
        self._num_bad += len(encoded.bad)
        self.position = block.end

    def save(self) -> None:
        writers = {split: writer.save() for split, writer in self._writers.items()}
        position = {"file": self.position.file, "records": self.position.records, "offset": self.position.offset}
        progress = {"wanted": self._wanted, "position": position, "num_bad": self._num_bad, "writers": writers}
        write_atomically(self._work / _PROGRESS, json.dumps(progress))

    def finish(self, source: TextSource) -> dict[str, PackedMeta]:
        metas = {}
        for split, writer in self._writers.items():
            if not writer.num_sequences:
                # Nothing that the same call could resume.
                remove(self._work / _PROGRESS)
            if not writer.num_documents:
                which = f" for the {split} part" if len(self._writers) > 1 else ""
                raise TextError(f"{source.name} has no documents{which}; expected {EXPECTED}")
            if not writer.num_sequences:
                raise TextError(
                    f"{source.name} has {writer.num_tokens} tokens, fewer than one sequence of "
                    f"{self._wanted['sequence_length']}; give more documents or a smaller --sequence-length"
                )
            counts = writer.finish()
            meta = PackedMeta.model_validate({**self._wanted, **counts, "split": split, "num_bad_lines": self._num_bad})
            (self._work / split / META).write_text(meta.model_dump_json(indent=1) + "\n", encoding="utf-8")
            shutil.copy(self._work / STAMPS, self._work / split / STAMPS)
            metas[split] = meta
        for split in self._writers:
            for path in [*(self._work / split).iterdir(), self._work / split]:
                fsync(path)
        write_atomically(self._work / _PROGRESS, json.dumps({"finished": self._wanted}))
        _take_finished(self._work, self._outs, self._wanted)
        return metas

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _take_finished(work: Path, outs: Mapping[str, Path], wanted: dict[str, Any]) -> None:
    """Moves finished folders to their places; a kill in between leaves the others to the next call."""
    if _read_json(work / _PROGRESS).get("finished") != wanted:
        return
    # The held-out part first: who finds the training data finds the other, too.
    for split, out in sorted(outs.items()):
        if (work / split).is_dir():
            remove(out)
            (work / split).replace(out)
            fsync(out.parent)
    remove(work / _PROGRESS)


def _work_of(outs: Mapping[str, Path]) -> Path:
    """Where folders are made: beside them, so that they can be renamed to their places."""
    return next(iter(outs.values())).parent / f".{'+'.join(out.name for out in outs.values())}.packing"


@contextmanager
def _work_folder(outs: Mapping[str, Path]) -> Iterator[Path]:
    """A folder beside the outs, for this process alone, which is gone afterwards unless there is something to resume.

    Raises:
        TextError: another process packs there.
    """
    work = _work_of(outs)
    existed = next(p for p in work.parents if p.exists())
    work.mkdir(parents=True, exist_ok=True)
    # A lock goes with its process, however that ends.
    lock = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TextError(
                f"{work.parent} is being packed into by another process; wait for it, or give another --out"
            ) from None
        try:
            yield work
        finally:
            if not (work / _PROGRESS).is_file():
                remove(work)
                for parent in work.parents:
                    if parent == existed or any(parent.iterdir()):
                        break
                    parent.rmdir()
    finally:
        os.close(lock)


def _known_stamps(folders: list[Path]) -> dict[str, Stamp]:
    found: dict[str, Stamp] = {}
    for folder in folders:
        found |= _read_json(folder / STAMPS)
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _same_packings(outs: Mapping[str, Path], wanted: dict[str, Any], skip_bad: bool) -> dict[str, PackedMeta] | None:
    found = {}
    for split, out in outs.items():
        try:
            meta = PackedData(out).meta
        except TextError:
            return None
        if not {**wanted, "split": split}.items() <= meta.model_dump().items() or (meta.num_bad_lines and not skip_bad):
            return None
        found[split] = meta
    return found


_Encode = Callable[[Block], Future[EncodedBlock] | EncodedBlock]


@contextmanager
def _encoder(
    source: TextSource, tokenizer: TextTokenizer, rules: EncodingRules, processes: int | None
) -> Iterator[tuple[_Encode, int]]:
    """What encodes a block, and how many at once; 0 where it does so itself, at once."""
    if processes is None:
        is_small = source.num_bytes is not None and source.num_bytes < _BYTES_WORTH_PROCESSES
        processes = 0 if is_small else len(os.sched_getaffinity(0))
    if not processes:
        yield (lambda block: encode_block(block, tokenizer, rules)), 0
        return
    with ExitStack() as stack:
        idle: SimpleQueue[EncodingProcess] = SimpleQueue()
        pool = stack.enter_context(ThreadPoolExecutor(processes))
        for _ in range(processes):
            process = EncodingProcess(tokenizer, rules)
            # Closed before the pool, whose threads wait for them.
            stack.callback(process.close)
            idle.put(process)

        def encode(block: Block) -> EncodedBlock:
            process = idle.get()
            try:
                return process.encode(block)
            finally:
                idle.put(process)

        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        yield (lambda block: pool.submit(encode, block)), processes


def _in_order(
    blocks: Iterator[Block], encoder: tuple[_Encode, int], stop: Callable[[], bool], save: Callable[[], None]
) -> Iterator[tuple[Block, EncodedBlock]]:
    """Blocks with what they encode to, in their order; some are encoded ahead, of a bounded number of bytes.

    Raises:
        PackingStoppedError: after ``save``.
    """
    encode, processes = encoder
    waiting: deque[tuple[Block, Future[EncodedBlock] | EncodedBlock]] = deque()
    in_flight = 0

    def check() -> None:
        if stop():
            save()
            raise PackingStoppedError

    def oldest() -> tuple[Block, EncodedBlock]:
        nonlocal in_flight
        block, result = waiting.popleft()
        while isinstance(result, Future):
            try:
                result = result.result(_LOOK_SECONDS)
            except NotYetError:
                check()
        in_flight -= len(block.raw.data)
        return block, result

    for block in blocks:
        check()
        while waiting and (len(waiting) >= 2 * processes or in_flight + len(block.raw.data) > _BYTES_IN_FLIGHT):
            yield oldest()
        waiting.append((block, encode(block)))
        in_flight += len(block.raw.data)
    while waiting:
        yield oldest()
