"""The one tokenizer wrapper: text, chats and prompts to ids, and ids to text.

Text is text. What a user, a document or a message of a chat says never becomes a control token, whatever it looks like:
only a chat template makes those, ids that are sent as ids, and a prompt whose sender asks for it.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from latentforge.text.chat_template import ChatTemplate, Message
from latentforge.text.control_tokens import ControlTokens, control_literals
from latentforge.text.errors import ChatError, TextError
from latentforge.text.fingerprint import fingerprint_of
from latentforge.text.respelling import respelled, unknown_literal
from latentforge.text.surrogates import surrogate_in
from latentforge.text.token_bytes import bytes_of_pieces, is_byte_level
from latentforge.text.tokenizer_files import read_tokenizer_files


class TextTokenizer:
    """A folder's ``tokenizer.json``, exactly as fingerprinted: nothing is added before or after a text's own ids.

    It may be shared by threads, and encodes without holding the GIL.

    Args:
        folder: holds tokenizer.json, and where there are any tokenizer_config.json and chat_template.jinja.
        eos_id: id that ends a document; None takes the tokenizer's end-of-text.
        pad_id: id that fills first chunks; None takes the tokenizer's pad.
        bos: whether sequences begin with the tokenizer's bos; None does as the tokenizer itself does.
        template_arguments: variables that the chat template is rendered with.

    Attributes:
        fingerprint: see :func:`latentforge.text.fingerprint.tokenizer_fingerprint`.
        vocab_size: one more than the highest id.
        longest_token_bytes: a token that the vocabulary has stands for at most so many bytes of UTF-8.
        special_ids: ids that stand for no text.
        own_bos_id: what the tokenizer itself begins a sequence with; None where that is nothing.
        bos_id: what sequences begin with here, see :meth:`begin`; None for nothing.
        end_ids: ids that end what an assistant says: the end of text, those that the model's configuration names, and
            what the chat template puts behind an assistant's words.
        control_ids: ids that no text has: the special ones but for the unknown token, and what the template writes.
        anchor_ids: an id that stands for a letter, or none: decoded before others, it makes them read as going on.

    Raises:
        TextError: there is no tokenizer in the folder that can be read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        eos_id: int | None = None,
        pad_id: int | None = None,
        bos: bool | None = None,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self._files = files = read_tokenizer_files(folder)
        self.fingerprint = fingerprint_of(files.content)
        # Parses control tokens, and decodes.
        self._parsing = _made(folder, files.content)
        ids = self._parsing.get_vocab(with_added_tokens=True)
        literals = control_literals(files, ids)
        listed = {token.content for token in self._parsing.get_added_tokens_decoder().values()}
        missing = [literal for literal in literals.values() if literal not in listed]
        self._parsing.add_special_tokens([AddedToken(literal, special=True, normalized=False) for literal in missing])
        self._added = {i: token.content for i, token in self._parsing.get_added_tokens_decoder().items()}
        self.special_ids = frozenset(i for i, t in self._parsing.get_added_tokens_decoder().items() if t.special)
        self.vocab_size = 1 + max(ids.values(), default=-1)
        # In byte-level vocabularies a byte is written as one character of one or two bytes.
        self.longest_token_bytes = max((len(token.encode()) for token in ids), default=0)

        unknown = unknown_literal(files.content["model"])
        every = literals | ({} if unknown is None else {ids[unknown]: unknown})
        self._control = ControlTokens(every)
        self.control_ids = frozenset(i for i in literals if literals[i] != unknown)
        # Encodes texts and rendered chats.
        self._respelled = _made(folder, respelled(files.content, every, self._control.spellings))
        self._eos_id = ids.get(files.named.get("eos_token", "")) if eos_id is None else eos_id
        self._pad_id = ids.get(files.named.get("pad_token", "")) if pad_id is None else pad_id
        self._template = None
        if files.chat_template is not None:
            self._template = ChatTemplate(files.chat_template, self._control, files.named, template_arguments or {})
        self.anchor_ids = self._anchor()
        self.end_ids = self._ends(ids)
        self.own_bos_id = self._own_bos(ids)
        self.bos_id = self._chosen_bos(bos, ids)

    @property
    def eos_id(self) -> int:
        """
        Raises:
            TextError: none was given, and the tokenizer has none.
        """
        if self._eos_id is None:
            raise TextError(f"{self.folder}: the tokenizer defines no eos_id; {_say('eos')}")
        return self._eos_id

    @property
    def pad_id(self) -> int:
        """
        Raises:
            TextError: none was given, and the tokenizer has none.
        """
        if self._pad_id is None:
            raise TextError(f"{self.folder}: the tokenizer defines no pad_id; {_say('pad')}")
        return self._pad_id

    def check_ids(self) -> None:
        """Raises TextError unless there are an end-of-text id and a pad id, and they are two."""
        if self.eos_id == self.pad_id:
            raise TextError(
                f"{self.folder}: eos_id and pad_id are both {self.pad_id}; {_say('pad')} to an id that no text has"
            )

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

    def encode_chat(self, messages: Sequence[Message], *, to_answer: bool = False) -> list[int]:
        """Ids of one chat; as :meth:`encode_chats`."""
        return self.encode_chats([messages], to_answer=to_answer)[0]

    def encode_chats(self, chats: Sequence[Sequence[Message]], *, to_answer: bool = False) -> list[list[int]]:
        """Ids of chats, rendered with the tokenizer's chat template.

        Args:
            chats: messages with role and content.
            to_answer: ends each with the opening of the assistant's turn.

        Raises:
            ChatError: there is no template, or it cannot render a chat.
        """
        if not chats:
            return []
        if self._template is None:
            raise ChatError(f"{self.folder} has no chat template; give text")
        rendered = [self._template.render(chat, to_answer=to_answer) for chat in chats]
        return self._encoded(self._respelled, rendered)

    def begin(self, ids: Sequence[int]) -> list[int]:
        """A sequence that begins with ``ids``: the bos is put before them where sequences have one and ids have not."""
        return list(ids) if self.bos_id is None or list(ids[:1]) == [self.bos_id] else [self.bos_id, *ids]

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

    def _ends(self, ids: Mapping[str, int]) -> frozenset[int]:
        named = ids.get(self._files.named.get("eos_token", ""))
        turn_end = None if self._template is None else self._template.turn_end_id()
        ends = (self._eos_id, named, turn_end, *self._files.model_eos_ids)
        return frozenset(i for i in ends if i is not None)

    def _own_bos(self, ids: Mapping[str, int]) -> int | None:
        """As the configuration has it, else as the post-processor does it to a text."""
        if self._files.adds_bos is not None:
            return ids.get(self._files.named["bos_token"]) if self._files.adds_bos else None
        plain: list[int] = self._parsing.encode("a", add_special_tokens=False).ids
        whole: list[int] = self._parsing.encode("a", add_special_tokens=True).ids
        return whole[0] if whole[:1] != plain[:1] and whole[1 : 1 + len(plain)] == plain else None

    def _chosen_bos(self, bos: bool | None, ids: Mapping[str, int]) -> int | None:
        if bos is None:
            return self.own_bos_id
        if not bos:
            return None
        named = ids.get(self._files.named.get("bos_token", ""))
        if self.own_bos_id is None and named is None:
            raise TextError(f"{self.folder}: the tokenizer has no bos token; leave --bos and data.bos out")
        return named if self.own_bos_id is None else self.own_bos_id

    def _anchor(self) -> list[int]:
        """Of letters that have an id of their own, the first."""
        for letter in "aox":
            ids = self.encode(letter)[-1:]
            if self.decode(ids) == letter:
                return ids
        return []

    def _encoded(self, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
        try:
            # Without offsets, which nobody needs; the GIL is released, which encoding one text would not do.
            return [list(e.ids) for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        except TypeError:
            raise TextError(next(filter(None, map(surrogate_in, texts)), "not a text")) from None


def _say(name: str) -> str:
    return f"give --{name}-id, or set data.{name}_id in the recipe"


def _made(folder: Path, content: Mapping[str, Any]) -> Any:
    try:
        tokenizer = Tokenizer.from_str(json.dumps(content))
    # tokenizers raises plain Exception, and what is no tokenizer.json may lack anything.
    except Exception as error:
        raise TextError(f"{folder / 'tokenizer.json'} is not a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
