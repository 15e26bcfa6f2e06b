"""The teacher's tokenizer at the trainer's edge: text and chats to ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from latentforge.text.errors import TextError
from latentforge.text.fingerprint import tokenizer_fingerprint


class TextTokenizer:
    """A fast tokenizer loaded from a folder, with the two ids that training needs.

    Args:
        folder: holds tokenizer.json and tokenizer_config.json.
        eos_id: id that ends a document; None takes the tokenizer's end-of-text.
        pad_id: id that fills first chunks; None takes the tokenizer's pad. It must be no other token's id.

    Raises:
        TextError: no fast tokenizer is there, or eos or pad are missing or the same.
    """

    def __init__(self, folder: Path, *, eos_id: int | None = None, pad_id: int | None = None) -> None:
        self.folder = folder
        try:
            self.fingerprint = tokenizer_fingerprint(folder)
        except ValueError as error:
            raise TextError(f"TOKENIZER_PATH: {error}") from None
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._backend = self._tokenizer.backend_tokenizer
        self.special_ids = frozenset(i for i, t in self._backend.get_added_tokens_decoder().items() if t.special)
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        self.eos_id = self._id("eos_id", eos_id, self._tokenizer.eos_token_id)
        self.pad_id = self._id("pad_id", pad_id, self._tokenizer.pad_token_id)
        if self.eos_id == self.pad_id:
            raise TextError(
                f"{folder}: eos_id and pad_id are both {self.pad_id}; set data.pad_id in the recipe to an id that "
                "no text uses"
            )

    def _id(self, name: str, chosen: int | None, default: int | None) -> int:
        value = default if chosen is None else chosen
        if value is None:
            raise TextError(f"{self.folder}: the tokenizer defines no {name}; set data.{name} in the recipe")
        return value

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of plain texts. What looks like a special token is text: only the packer places those."""
        return self._encode(texts, special_tokens_are_text=True)

    def encode_chats(self, chats: Sequence[Sequence[dict[str, Any]]], *, to_answer: bool = False) -> list[list[int]]:
        """Ids of chats, rendered with the tokenizer's chat template.

        Args:
            chats: messages with role and content.
            to_answer: ends each with the opening of the assistant's turn.

        Raises:
            TextError: the tokenizer has no template.
        """
        if chats and not self._tokenizer.chat_template:
            raise TextError(f'{self.folder} has no chat template, so {{"messages"}} cannot be rendered; use {{"text"}}')
        rendered = [
            self._tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=to_answer)
            for chat in chats
        ]
        return self._encode(rendered, special_tokens_are_text=False)

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids)
        return text

    def num_bytes(self, ids: Sequence[int]) -> int:
        """UTF-8 bytes of the text that ids stand for; special tokens have none.

        With a byte-level tokenizer, a token that is a part of a character has the bytes of that part.
        """
        text_ids = [i for i in ids if i not in self.special_ids]
        if type(self._backend.decoder).__name__ == "ByteLevel":
            # Such a tokenizer spells every byte as one character.
            spelled: list[str] = [self._backend.id_to_token(i) or "" for i in text_ids]
            return sum(map(len, spelled))
        text: str = self._backend.decode(text_ids, skip_special_tokens=False)
        return len(text.encode())

    def _encode(self, texts: Sequence[str], *, special_tokens_are_text: bool) -> list[list[int]]:
        self._backend.encode_special_tokens = special_tokens_are_text
        try:
            return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        finally:
            self._backend.encode_special_tokens = False
