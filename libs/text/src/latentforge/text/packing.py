"""JSONL to packed data: the writer of :mod:`latentforge.text.packed`."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from latentforge.core.files import replacing, sha256_of
from latentforge.text.documents import EXPECTED, Document, read_documents
from latentforge.text.errors import TextError
from latentforge.text.packed import DOCUMENTS, META, TOKENS, PackedData, PackedMeta
from latentforge.text.tokenizer import TextTokenizer

_BATCH_DOCUMENTS = 64


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


def pack_jsonl(
    source: Path,
    out: Path,
    tokenizer: TextTokenizer,
    *,
    sequence_length: int,
    chunk_size: int,
    split: str,
    on_bytes: Callable[[int], None] = lambda num_bytes: None,
) -> PackedMeta:
    """Packs a JSONL file into the folder ``out``, which appears whole or not at all.

    A folder that already holds the same packing is kept; another packing there is replaced.

    Args:
        source: documents, {"text"} or {"messages"} per line.
        out: the packed folder.
        tokenizer: the teacher's.
        sequence_length: tokens per sequence, a multiple of ``chunk_size``.
        chunk_size: K.
        split: recorded in the folder, "train" or "held-out".
        on_bytes: told how many bytes of the file were packed since the last call.

    Raises:
        TextError: bad lengths, a bad line, too few tokens for one sequence, or ``out`` holds something else.
    """
    check_lengths(sequence_length, chunk_size)
    tokenizer.check_ids()
    if not source.is_file():
        raise TextError(f"{source} is no file; give a file with {EXPECTED}")
    wanted = {
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
        "source": source.name,
        "source_sha256": sha256_of(source),
        "split": split,
    }
    if out.exists():
        if not (out / META).is_file() and any(out.iterdir()):
            raise TextError(f"{out} exists and is no packed data; give another --out")
        if (out / META).is_file() and (kept := _same_packing(out, wanted)):
            return kept
    with replacing(out) as temporary:
        temporary.mkdir()
        return _write(source, temporary, tokenizer, wanted, on_bytes)


def _same_packing(out: Path, wanted: dict[str, object]) -> PackedMeta | None:
    try:
        meta = PackedData(out).meta
    except TextError:
        return None
    return meta if wanted.items() <= meta.model_dump().items() else None


def _write(
    source: Path, folder: Path, tokenizer: TextTokenizer, wanted: dict[str, object], on_bytes: Callable[[int], None]
) -> PackedMeta:
    dtype = np.dtype(str(wanted["dtype"])).newbyteorder("<")
    length = int(str(wanted["sequence_length"]))
    starts = array("q")
    position = num_empty = 0
    with (folder / TOKENS).open("wb") as file:
        for batch in _batches(read_documents(source)):
            for document, ids in zip(batch, encode_documents(source, tokenizer, batch), strict=True):
                if not ids:
                    num_empty += 1
                    continue
                if tokenizer.pad_id in ids:
                    raise TextError(
                        f"{source}, line {document.line}: the document has the pad id {tokenizer.pad_id}; give "
                        "--pad-id an id that no text has, or take out what has it"
                    )
                laid_out, first = _lay_out([*ids, tokenizer.eos_id], position, length, tokenizer.bos_id)
                starts.append(position + first)
                file.write(np.array(laid_out, dtype=dtype).tobytes())
                position += len(laid_out)
            on_bytes(sum(d.num_bytes for d in batch))
        num_sequences = position // length
        if not starts:
            raise TextError(f"{source} has no documents; expected {EXPECTED}")
        if not num_sequences:
            raise TextError(
                f"{source} has {position} tokens, fewer than one sequence of {length}; "
                "give more documents or a smaller --sequence-length"
            )
        file.truncate(num_sequences * length * dtype.itemsize)
    kept = num_sequences * length
    offsets = np.array(starts, dtype="<i8")
    (folder / DOCUMENTS).write_bytes(offsets[offsets < kept].tobytes())
    meta = PackedMeta.model_validate(
        {
            **wanted,
            "num_sequences": num_sequences,
            "num_documents": int((offsets < kept).sum()),
            "num_empty_documents": num_empty,
            "num_dropped_tokens": position - kept,
        }
    )
    (folder / META).write_text(meta.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return meta


def _lay_out(ids: list[int], position: int, length: int, bos_id: int | None) -> tuple[list[int], int]:
    """A document's ids behind ``position`` others, with bos where a sequence begins; and how many are before its own.

    A sequence that begins with the document's own bos, which chat templates write, gets no second one.
    """
    if bos_id is None:
        return ids, 0
    laid_out: list[int] = []
    taken = 0
    while taken < len(ids):
        at = (position + len(laid_out)) % length
        if at == 0 and ids[taken] != bos_id:
            laid_out.append(bos_id)
            at = 1
        part = ids[taken : taken + length - at]
        laid_out += part
        taken += len(part)
    return laid_out, int(laid_out[0] != ids[0])


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    while batch := list(islice(documents, _BATCH_DOCUMENTS)):
        yield batch


def encode_documents(source: Path, tokenizer: TextTokenizer, documents: Sequence[Document]) -> list[list[int]]:
    """Ids of documents of a file.

    Raises:
        TextError: one cannot be rendered, and in which line it is.
    """
    try:
        texts = iter(tokenizer.encode_texts([d.text for d in documents if d.text is not None]))
        chats = iter(tokenizer.encode_chats([d.messages for d in documents if d.messages is not None]))
    except TextError as error:
        if len(documents) == 1:
            raise TextError(f"{source}, line {documents[0].line}: {error}") from None
        return [ids for document in documents for ids in encode_documents(source, tokenizer, [document])]
    return [next(texts if d.text is not None else chats) for d in documents]
