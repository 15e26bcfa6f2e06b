"""Scores a data set against a running gateway, so that later the gateway has its rows in the cache."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import grpc

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.sparse_rows import LogprobDtype
from latentforge.text.encoding import encode_documents
from latentforge.text.packed import META, PackedData
from latentforge.text.text_source import TextSource, block_documents
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.errors import TrainerError

_SEQUENCES_PER_CALL = 32
_CALLS = 2
_DOCUMENTS_AT_ONCE = 16


@dataclass
class Warmed:
    """What happened so far; ``refusal`` says why the first of the refused sequences was."""

    hits: int = 0
    computed: int = 0
    refused: int = 0
    refusal: str | None = None


@dataclass(frozen=True)
class Part:
    """Sequences of ids to score together, and how much of the data they are."""

    sequences: Sequence[list[int]]
    size: int


async def warm(
    client: TeacherClient,
    tokenizer: TextTokenizer,
    data: Path,
    *,
    top_k: int,
    max_length: int | None,
    dtype: LogprobDtype,
    on_progress: Callable[[int, int, Warmed], None],
) -> Warmed:
    """Scores every sequence of ``data``; those that the cache has already are hits, so that a rerun resumes.

    Args:
        tokenizer: the teacher's; it makes ids of documents.
        data: JSONL, whose documents are cut into sequences of at most ``max_length`` tokens, or a packed folder, whose
            sequences are taken as they are (they are the ones that training asks for).
        top_k: entries per row that the cache will have; those serve fewer, too.
        max_length: None is the teacher's longest sequence.
        on_progress: told how much of the data is done, how much there is, and what happened so far.

    Raises:
        TextError: the data cannot be read.
        TrainerError: the data is not for this teacher, or it cannot score.
        TeacherError: the gateway is not there or refuses everything.
    """
    teacher = await client.teacher()
    if not teacher.can_score:
        raise TrainerError(
            f"the {teacher.backend} teacher at {client.target} cannot score given text, so nothing is cached"
        )
    longest = min(max_length or teacher.max_sequence_length, teacher.max_sequence_length)
    total, parts = _parts(data, teacher, tokenizer, longest)
    warmed = Warmed()
    done = 0

    async def score(part: Part) -> None:
        nonlocal done
        async for answer in client.score_batch(
            part.sequences, top_k, dtype, "packed", expected_revision=teacher.revision
        ):
            if answer.error is not None:
                if answer.error.code is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise answer.error
                warmed.refused += 1
                warmed.refusal = warmed.refusal or answer.error.message
            elif answer.provenance.cache_hit:
                warmed.hits += 1
            else:
                warmed.computed += 1
        done += part.size
        on_progress(done, total, warmed)

    running: set[asyncio.Task[None]] = set()
    try:
        for part in parts:
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
    data: Path, teacher: pb.GetTeacherResponse, tokenizer: TextTokenizer, longest: int
) -> tuple[int, Iterator[Part]]:
    if (data / META).is_file():
        return _packed_parts(data, teacher)
    return _document_parts(TextSource.of(data), teacher, tokenizer, longest)


def _packed_parts(folder: Path, teacher: pb.GetTeacherResponse) -> tuple[int, Iterator[Part]]:
    """The sequences of a packed folder: its number of them, and all of them."""
    packed = PackedData(folder)
    _check_fingerprint(f"{folder} was packed with the tokenizer", packed.meta.tokenizer_fingerprint, teacher)

    def parts() -> Iterator[Part]:
        for start in range(0, len(packed), _SEQUENCES_PER_CALL):
            stop = min(start + _SEQUENCES_PER_CALL, len(packed))
            yield Part([packed.sequence(i).tolist() for i in range(start, stop)], stop - start)

    return len(packed), parts()


def _document_parts(
    source: TextSource, teacher: pb.GetTeacherResponse, tokenizer: TextTokenizer, longest: int
) -> tuple[int, Iterator[Part]]:
    """The documents of files in pieces: bytes of the files, and sequences."""
    _check_fingerprint(f"TOKENIZER_PATH={tokenizer.folder} is the tokenizer", tokenizer.fingerprint, teacher)

    def parts() -> Iterator[Part]:
        read = 0
        for block in source.blocks():
            documents = block_documents(block.name, block.raw, None, None)
            while some := list(islice(documents, _DOCUMENTS_AT_ONCE)):
                # Cut here, not by the gateway, which takes no text longer than a sequence.
                encoded = encode_documents(tokenizer, some)
                most = longest - (tokenizer.bos_id is not None)
                pieces = [tokenizer.begin(ids[at : at + most]) for ids in encoded for at in range(0, len(ids), most)]
                # A single token has no row.
                yield Part([piece for piece in pieces if len(piece) > 1], 0)
            yield Part([], block.read - read)
            read = block.read

    return source.num_bytes or 0, parts()


def _check_fingerprint(what: str, fingerprint: str, teacher: pb.GetTeacherResponse) -> None:
    if fingerprint != teacher.tokenizer_fingerprint:
        raise TrainerError(
            f"{what} {fingerprint}, the teacher's is {teacher.tokenizer_fingerprint}; use the teacher's tokenizer"
        )
