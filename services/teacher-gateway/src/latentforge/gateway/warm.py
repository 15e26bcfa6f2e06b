"""Scores a data set against a running gateway, so that later the gateway has its rows in the cache."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.sparse_rows import LogprobDtype

EXPECTED = (
    'a file with {"text": "..."} or {"messages": [{"role": ..., "content": ...}, ...]} per line, or a packed folder'
)
_SEQUENCES_PER_CALL = 32
_CALLS = 2
_DOCUMENTS_AT_ONCE = 16

# uint32 [length]
Ids = NDArray[np.uint32]


class WarmError(RuntimeError):
    """The data or the teacher cannot be used, and why."""


@dataclass
class Warmed:
    """What happened so far; ``refusal`` says why the first of the refused sequences was."""

    hits: int = 0
    computed: int = 0
    refused: int = 0
    refusal: str | None = None


@dataclass(frozen=True)
class Part:
    """Sequences to score together, and how much of the data they are."""

    sequences: Sequence[Ids]
    size: int


async def warm(
    client: TeacherClient,
    data: Path,
    *,
    top_k: int,
    max_length: int | None,
    dtype: LogprobDtype,
    on_progress: Callable[[int, int, Warmed], None],
) -> Warmed:
    """Scores every sequence of ``data``; those that the cache has already are hits, so that a rerun goes on.

    Args:
        data: JSONL, whose documents are cut into sequences of at most ``max_length`` tokens, or a packed folder, whose
            sequences are taken as they are (they are the ones that training asks for).
        top_k: entries per row that the cache will have; those serve fewer, too.
        max_length: None is the teacher's longest sequence.
        on_progress: told how much of the data is done, how much there is, and what happened so far.

    Raises:
        WarmError: the data cannot be read, or is not for this teacher.
        TeacherError: the gateway is not there or refuses everything.
    """
    teacher = await client.teacher()
    if not teacher.can_score:
        raise WarmError(
            f"the {teacher.backend} teacher at {client.target} cannot score given text, so nothing is cached"
        )
    longest = min(max_length or teacher.max_sequence_length, teacher.max_sequence_length)
    total, parts = _parts(data, teacher, client, longest)
    warmed = Warmed()
    done = 0

    async def score(part: Part) -> None:
        nonlocal done
        async for scored in client.score_batch([s.tolist() for s in part.sequences], top_k, dtype, "packed"):
            if scored.error is not None:
                if scored.error.code is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise scored.error
                warmed.refused += 1
                warmed.refusal = warmed.refusal or scored.error.message
            elif scored.provenance.cache_hit:
                warmed.hits += 1
            else:
                warmed.computed += 1
        done += part.size
        on_progress(done, total, warmed)

    running: set[asyncio.Task[None]] = set()
    try:
        async for part in parts:
            running.add(asyncio.create_task(score(part)))
            while len(running) >= _CALLS:
                finished, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    task.result()
        for task in list(running):
            await task
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return warmed


def _parts(
    data: Path, teacher: pb.GetTeacherResponse, client: TeacherClient, longest: int
) -> tuple[int, AsyncIterator[Part]]:
    return _packed_parts(data, teacher) if data.is_dir() else _document_parts(data, client, longest)


def _packed_parts(folder: Path, teacher: pb.GetTeacherResponse) -> tuple[int, AsyncIterator[Part]]:
    """The sequences of a packed folder: its number of them, and all of them."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        number, length, dtype = int(meta["num_sequences"]), int(meta["sequence_length"]), np.dtype(meta["dtype"])
        tokens = np.memmap(folder / "tokens.bin", dtype.newbyteorder("<"), "r", shape=(number, length))
        fingerprint = meta["tokenizer_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WarmError(f"{folder} is no packed folder ({type(error).__name__}: {error}); give {EXPECTED}") from None
    if fingerprint != teacher.tokenizer_fingerprint:
        raise WarmError(
            f"{folder} was packed with the tokenizer {fingerprint}, the teacher's is {teacher.tokenizer_fingerprint}; "
            "pack the data with the teacher's tokenizer"
        )

    async def parts() -> AsyncIterator[Part]:
        for start in range(0, number, _SEQUENCES_PER_CALL):
            sequences = list(tokens[start : start + _SEQUENCES_PER_CALL].astype(np.uint32))
            yield Part(sequences, len(sequences))

    return number, parts()


def _document_parts(file: Path, client: TeacherClient, longest: int) -> tuple[int, AsyncIterator[Part]]:
    """The documents of a JSONL file, tokenised by the gateway: bytes of the file, and sequences."""
    try:
        total = file.stat().st_size
    except OSError as error:
        raise WarmError(f"{file} cannot be read ({error.strerror}); give {EXPECTED}") from None

    async def parts() -> AsyncIterator[Part]:
        documents = _documents(file)
        while some := list(islice(documents, _DOCUMENTS_AT_ONCE)):
            ids = await asyncio.gather(*(_tokenized(client, document) for _, document in some))
            sequences = [i[at : at + longest] for i in ids for at in range(0, len(i), longest)]
            # A single token has no row.
            yield Part([s for s in sequences if len(s) > 1], sum(size for size, _ in some))

    return total, parts()


def _documents(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except ValueError as error:
                raise WarmError(f"{file}, line {number}: not JSON ({error}); expected {EXPECTED}") from None
            if not _is_document(document):
                raise WarmError(f"{file}, line {number}: neither a text nor messages; expected {EXPECTED}")
            yield len(line), document


def _is_document(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    messages = value.get("messages")
    if messages is None:
        return isinstance(value.get("text"), str)
    return isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )


async def _tokenized(client: TeacherClient, document: dict[str, Any]) -> Ids:
    if "messages" not in document:
        return np.array(await client.tokenize(document["text"]), np.uint32)
    return np.array(await client.tokenize_chat([(m["role"], m["content"]) for m in document["messages"]]), np.uint32)
