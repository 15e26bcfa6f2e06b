"""Blocks of documents to ids: what packing does in parallel, whatever process does it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from latentforge.text.documents import Document
from latentforge.text.errors import TextError
from latentforge.text.held_out import content_hash
from latentforge.text.text_source import Block, block_documents
from latentforge.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class EncodingRules:
    """How documents become ids.

    Attributes:
        text_column: see :func:`latentforge.text.documents.parse_document`.
        skip_bad: lines that are not as expected are left out and counted, instead of ending the work.
        held_out_below: documents whose hash is below it are held out; None tells no sides apart.
    """

    text_column: str | None = None
    skip_bad: bool = False
    held_out_below: int | None = None


@dataclass
class EncodedBlock:
    """The documents of a block, n of them.

    Attributes:
        ids: of one document after another, each followed by the end-of-text, uint32.
        lengths: how many ids each has with its end-of-text, int64 [n]; 0 where it has none of its own.
        held_out: bool [n].
        forced: at how many places of each the ids may be others than those of the whole text, int64 [n].
        bad: what is wrong with the lines that were left out.
    """

    ids: NDArray[np.uint32]
    lengths: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    forced: NDArray[np.int64]
    bad: list[str] = field(default_factory=list)


def encode_block(block: Block, tokenizer: TextTokenizer, rules: EncodingRules) -> EncodedBlock:
    """Encodes the documents of a block.

    Raises:
        TextError: a line is not as expected, cannot be rendered or has the pad id; names file and line.
    """
    bad: list[str] = []

    def left_out(error: TextError) -> None:
        if not rules.skip_bad:
            raise error
        bad.append(str(error))

    parts: list[NDArray[np.uint32]] = []
    lengths: list[int] = []
    held_out: list[bool] = []
    forced: list[int] = []
    end = np.array([tokenizer.eos_id], np.uint32)
    documents = list(block_documents(block.name, block.raw, rules.text_column, left_out))
    for document, ids, num_forced in _encoded(documents, tokenizer, left_out):
        if (ids == tokenizer.pad_id).any():
            left_out(
                TextError(
                    f"{document.place}: the document has the pad id {tokenizer.pad_id}; give --pad-id an id that no "
                    "text has, or take out what has it"
                )
            )
            continue
        lengths.append(len(ids) + 1 if len(ids) else 0)
        parts += [ids, end] if len(ids) else []
        forced.append(num_forced)
        held_out.append(rules.held_out_below is not None and content_hash(document) < rules.held_out_below)
    return EncodedBlock(
        np.concatenate(parts) if parts else np.empty(0, np.uint32),
        np.array(lengths, np.int64),
        np.array(held_out, np.bool_),
        np.array(forced, np.int64),
        bad,
    )


def encode_documents(tokenizer: TextTokenizer, documents: Sequence[Document]) -> list[list[int]]:
    """Ids of documents.

    Raises:
        TextError: one cannot be rendered, and at which place it is.
    """

    def fail(error: TextError) -> None:
        raise error

    return [ids.tolist() for _, ids, _ in _encoded(documents, tokenizer, fail)]


def _encoded(
    documents: Sequence[Document], tokenizer: TextTokenizer, left_out: Callable[[TextError], None]
) -> Iterator[tuple[Document, NDArray[np.uint32], int]]:
    """Each document with its ids and the number of forced cuts; without those that cannot be rendered."""
    rendered: list[str] = []
    kept: list[Document] = []
    for document in documents:
        if document.messages is not None:
            try:
                rendered.append(tokenizer.rendered(document.messages))
            except TextError as error:
                left_out(TextError(f"{document.place}: {error}"))
                continue
        kept.append(document)
    texts = tokenizer.encode_long(d.text for d in kept if d.text is not None)
    chats = tokenizer.encode_long(rendered, rendered=True)
    for document in kept:
        ids, num_forced = next(chats if document.text is None else texts)
        yield document, ids, num_forced
