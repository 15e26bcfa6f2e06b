"""Documents to packed data: the writer of :mod:`latentforge.text.packed`, in parallel processes, resumable."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latentforge.core.files import fsync, remove, write_atomically
from latentforge.text.documents import EXPECTED
from latentforge.text.encoding import EncodedBlock, EncodingRules
from latentforge.text.encoding_pool import encoded_in_order
from latentforge.text.errors import PackingStoppedError, TextError
from latentforge.text.packed import META, PackedMeta
from latentforge.text.packed_writer import PackedWriter
from latentforge.text.packing_folder import (
    PROGRESS,
    STAMPS,
    known_stamps,
    read_json,
    same_packings,
    take_finished,
    work_folder,
    work_of,
)
from latentforge.text.text_source import Block, Position, Stamp, TextSource
from latentforge.text.tokenizer import TextTokenizer

# Less is packed before other processes have started.
_BYTES_WORTH_PROCESSES = 2**25
_SAVE_SECONDS = 10.0


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
        if out.exists() and not (out / META).is_file() and (not out.is_dir() or any(out.iterdir())):
            raise TextError(f"{out} exists and is no packed data; give another --out")
    stamps = source.stamps(known_stamps([work_of(outs), *outs.values()]), stop)
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
    if (kept := same_packings(outs, wanted, skip_bad)) is not None:
        return kept
    with work_folder(outs) as work:
        take_finished(work, outs, wanted)
        if (kept := same_packings(outs, wanted, skip_bad)) is not None:
            return kept
        rules = EncodingRules(source.text_column, skip_bad, held_out_below)
        job = _Job(work, outs, wanted, stamps, tokenizer)
        with closing(job):
            saved = time.monotonic()
            blocks = source.blocks(job.position)
            try:
                with closing(encoded_in_order(blocks, tokenizer, rules, _processes(source, processes), stop)) as done:
                    for block, encoded in done:
                        job.add(block, encoded)
                        on_read(block.read)
                        if time.monotonic() - saved >= save_seconds:
                            job.save()
                            saved = time.monotonic()
                if source.stamps(stamps, stop) != stamps:
                    raise TextError(f"{source.name} has changed while it was packed; run the same command again")
            except PackingStoppedError:
                job.save()
                raise
            return job.finish(source)


def _processes(source: TextSource, processes: int | None) -> int:
    if processes is not None:
        return processes
    is_small = source.num_bytes is not None and source.num_bytes < _BYTES_WORTH_PROCESSES
    return 0 if is_small else len(os.sched_getaffinity(0))


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
        progress = read_json(work / PROGRESS)
        if progress.get("wanted") != wanted or set(progress.get("writers", ())) != set(outs):
            progress = {}
            for split in outs:
                remove(work / split)
            remove(work / PROGRESS)
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
        progress = {
            "wanted": self._wanted,
            "position": asdict(self.position),
            "num_bad": self._num_bad,
            "writers": writers,
        }
        write_atomically(self._work / PROGRESS, json.dumps(progress))

    def finish(self, source: TextSource) -> dict[str, PackedMeta]:
        metas = {}
        for split, writer in self._writers.items():
            if not writer.num_sequences:
                # Nothing that the same call could resume.
                remove(self._work / PROGRESS)
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
        write_atomically(self._work / PROGRESS, json.dumps({"finished": self._wanted}))
        take_finished(self._work, self._outs, self._wanted)
        return metas

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
