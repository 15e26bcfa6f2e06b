"""A tokenizer's vocabulary: text to ids and back, with control tokens told from text that looks like them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from latentforge.text import stopping
from latentforge.text.control_tokens import ControlTokens, control_literals
from latentforge.text.errors import TextError
from latentforge.text.fingerprint import fingerprint_of
from latentforge.text.long_texts import PIECE, Border, CutText, pieces_of, usable_borders
from latentforge.text.respelling import respelled, unknown_literal
from latentforge.text.surrogates import surrogate_in
from latentforge.text.token_bytes import bytes_of_pieces, is_byte_level
from latentforge.text.tokenizer_files import TOKENIZER, read_tokenizer_files

# Characters of texts that are encoded at once where memory must stay bounded.
_CHARACTERS_AT_ONCE = 2**19


class Vocabulary:
    """A folder's ``tokenizer.json``, exactly as fingerprinted: nothing is added before or after a text's own ids.

    It may be shared by threads, and encodes without holding the GIL.

    Args:
        folder: holds tokenizer.json, and where there are any tokenizer_config.json and chat_template.jinja.
        contents: what these hold, by name, where they have been read already; the folder is only named then.

    Attributes:
        fingerprint: see :func:`latentforge.text.fingerprint.tokenizer_fingerprint`.
        vocab_size: one more than the highest id.
        longest_token_bytes: a token that the vocabulary has stands for at most so many bytes of UTF-8.
        special_ids: ids that stand for no text.
        control_ids: ids that no text has: the special ones but for the unknown token, and what the template writes.
        anchor_ids: an id that stands for a letter, or none: decoded before others, it makes them read as going on.

    Raises:
        TextError: there is no tokenizer in the folder that can be read.
    """

    def __init__(self, folder: Path, contents: Mapping[str, bytes] | None = None) -> None:
        self.folder = folder
        self._files = files = read_tokenizer_files(folder, contents)
        self.fingerprint = fingerprint_of(files.content)
        # Parses control tokens, and decodes.
        self._parsing = _made(folder, lambda: Tokenizer.from_str(json.dumps(files.content)))
        self._ids: dict[str, int] = self._parsing.get_vocab(with_added_tokens=True)
        literals = control_literals(files, self._ids)
        listed = {token.content for token in self._parsing.get_added_tokens_decoder().values()}
        missing = [literal for literal in literals.values() if literal not in listed]
        self._parsing.add_special_tokens([AddedToken(literal, special=True, normalized=False) for literal in missing])
        self._added = {i: token.content for i, token in self._parsing.get_added_tokens_decoder().items()}
        self.special_ids = frozenset(i for i, t in self._parsing.get_added_tokens_decoder().items() if t.special)
        self.vocab_size = 1 + max(self._ids.values(), default=-1)
        # In byte-level vocabularies a byte is written as one character of one or two bytes.
        self.longest_token_bytes = max((len(token.encode()) for token in self._ids), default=0)

        unknown = unknown_literal(files.content["model"])
        every = literals | ({self._ids[unknown]: unknown} if unknown is not None and unknown in self._ids else {})
        self.control_ids = frozenset(i for i in literals if literals[i] != unknown)
        self._control = ControlTokens(every)
        # Encodes texts and rendered chats.
        content = respelled(files.content, every, self._control.spellings)
        self._respelled = _made(folder, lambda: Tokenizer.from_str(json.dumps(content)))
        self.anchor_ids = self._anchor()

    def encode(self, text: str, *, parse_special_tokens: bool = False) -> list[int]:
        """Ids of one text.

        Args:
            text: what looks like a control token in it is text.
            parse_special_tokens: it is the control token instead, for whoever renders chats himself.

        Raises:
            TextError: the text is none: it has half of a surrogate pair.
        """
        return (self._encoded(self._parsing, [text]) if parse_special_tokens else self.encode_texts([text]))[0]

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of plain texts; raises as :meth:`encode`."""
        for text in texts:
            self._control.check(text)
        return self._encoded(self._respelled, texts)

    def encode_long(self, texts: Iterable[str], *, rendered: bool = False) -> Iterator[tuple[NDArray[np.uint32], int]]:
        """Ids of texts of any length at bounded memory, see :mod:`latentforge.text.long_texts`.

        Args:
            texts: plain ones.
            rendered: they are chats with control tokens in their second spelling instead.

        Returns:
            For each text its ids, uint32 [n], and at how many places they may be others than those of the whole text.

        Raises:
            TextError: as :meth:`encode`.
        """
        waiting: list[CutText] = []
        parts: list[NDArray[np.uint32]] = []
        num_forced = num_characters = 0

        def encoded() -> Iterator[tuple[NDArray[np.uint32], int]]:
            nonlocal parts, num_forced
            found = self._arrays([piece.text for piece in waiting])
            for piece, ids in zip(waiting, found, strict=True):
                parts.append(ids[piece.num_anchor_ids :])
                num_forced += piece.forced
                if piece.last:
                    yield np.concatenate(parts) if len(parts) > 1 else parts[0], num_forced
                    parts, num_forced = [], 0
            waiting.clear()

        for text in texts:
            if not rendered:
                self._control.check(text)
            for piece in pieces_of(text, self._borders) if len(text) > PIECE else [CutText(text)]:
                waiting.append(piece)
                num_characters += len(piece.text)
                if num_characters >= _CHARACTERS_AT_ONCE:
                    yield from encoded()
                    num_characters = 0
        yield from encoded()

    @cached_property
    def _borders(self) -> list[tuple[Border, int]]:
        spelled = self._parsing.get_vocab(with_added_tokens=True)
        tokens = [
            self.token_bytes.get(i) or token.replace("▁", " ").encode()
            for token, i in spelled.items()
            if i not in self.control_ids
        ]
        return usable_borders(self.encode, tokens)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False, goes_on: bool = False) -> str:
        """The text of ids.

        Args:
            ids: all at once: a character's bytes may be spread over several of them.
            skip_special: leaves special tokens out.
            goes_on: the ids are behind others, so that a blank at their beginning is kept, which vocabularies that
                mark the beginnings of words leave out at the beginning of a text.
        """
        text: str = self._parsing.decode(list(ids), skip_special_tokens=skip_special)
        if not goes_on or not self.anchor_ids:
            return text
        before: str = self._parsing.decode(self.anchor_ids)
        whole: str = self._parsing.decode([*self.anchor_ids, *ids], skip_special_tokens=skip_special)
        return whole.removeprefix(before) if whole.startswith(before) else text

    def decode_each(self, ids: Sequence[int]) -> list[str]:
        """The text of every id alone."""
        return list(self._parsing.decode_batch([[i] for i in ids], skip_special_tokens=False))

    def special_tokens(self) -> list[str]:
        """How special tokens are written, by id."""
        return [self._added[i] for i in sorted(self.special_ids)]

    def special_id(self, text: str) -> int | None:
        """The id of a special token that is written exactly so."""
        return next((i for i in self.special_ids if self._added[i] == text), None)

    def stops(self, words: Iterable[str]) -> tuple[list[str], frozenset[int]]:
        """What ends a text: strings to look for in it, and ids that end it.

        A word that is a special token is that id and nothing else: texts do not show special tokens, and what only
        looks like one is text.
        """
        ids = {word: self.special_id(word) for word in words}
        return [word for word, i in ids.items() if i is None], frozenset(i for i in ids.values() if i is not None)

    @cached_property
    def token_bytes(self) -> dict[int, bytes | None]:
        """The bytes of every id, special tokens' literals among them; None where the vocabulary does not say."""
        to_bytes = bytes_of_pieces(self._files.content)
        pieces = self._parsing.get_vocab(with_added_tokens=False)
        known = {i: to_bytes(piece) for piece, i in pieces.items()}
        return known | {i: literal.encode() for i, literal in self._added.items()}

    def num_bytes(self, ids: Sequence[int]) -> int:
        """UTF-8 bytes of the text that ids stand for; special tokens have none.

        With a byte-level tokenizer, a token that is a part of a character has the bytes of that part.
        """
        text_ids = [i for i in ids if i not in self.special_ids]
        if is_byte_level(self._files.content):
            return sum(len(self.token_bytes.get(i) or b"") for i in text_ids)
        return len(self.decode(text_ids).encode())

    def _anchor(self) -> list[int]:
        """Of letters that have an id of their own, the first."""
        for letter in "aox":
            ids = self.encode(letter)[-1:]
            if self.decode(ids) == letter:
                return ids
        return []

    def _encoded(self, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
        stopping.check()
        if tokenizer is self._respelled and stopping.is_stoppable() and any(len(text) > PIECE for text in texts):
            return [self._in_pieces(text) for text in texts]
        return [list(e.ids) for e in _encodings(tokenizer, texts)]

    def _in_pieces(self, text: str) -> list[int]:
        """The same ids, with a look for a stop before each piece; at once where a piece would end at no border."""
        ids: list[int] = []
        for piece in pieces_of(text, self._borders):
            stopping.check()
            if piece.forced:
                return list(_encodings(self._respelled, [text])[0].ids)
            ids += _encodings(self._respelled, [piece.text])[0].ids[piece.num_anchor_ids :]
        return ids

    def _arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        return [np.fromiter(e.ids, np.uint32, len(e)) for e in _encodings(self._respelled, texts)]


def _encodings(tokenizer: Any, texts: Sequence[str]) -> list[Any]:
    try:
        # Without offsets, which nobody needs; the GIL is released, which encoding one text would not do.
        return list(tokenizer.encode_batch_fast(list(texts), add_special_tokens=False))
    except TypeError:
        raise TextError(next(filter(None, map(surrogate_in, texts)), "not a text")) from None


def _made(folder: Path, make: Callable[[], Any]) -> Any:
    try:
        tokenizer = make()
    # tokenizers raises plain Exception, and what is no tokenizer.json may lack anything.
    except Exception as error:
        raise TextError(f"{folder / TOKENIZER} is not a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
