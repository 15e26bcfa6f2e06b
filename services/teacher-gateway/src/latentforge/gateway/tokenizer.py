"""The teacher's tokenizer: text and chats to ids and back, incrementally too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from latentforge.text.fingerprint import tokenizer_fingerprint


class ChatError(ValueError):
    """A chat that the teacher's template cannot render, and why."""


class TeacherTokenizer:
    """A folder's ``tokenizer.json``, exactly as fingerprinted: nothing is added before or after a text's own ids."""

    def __init__(self, folder: Path, *, template_arguments: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            template_arguments: variables that the chat template is rendered with.

        Raises:
            ValueError: the folder has no readable tokenizer.json.
        """
        self._template_arguments = dict(template_arguments or {})
        self.fingerprint = tokenizer_fingerprint(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special = {i: t.content for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special}
        self._chat = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of (role, content) messages rendered with the teacher's template.

        A chat that ends with the assistant's words is rendered as it is; any other is followed by the opening of the
        assistant's turn.

        Raises:
            ChatError: the teacher has no template, or it refuses these messages.
        """
        if not self._chat.chat_template:
            raise ChatError("this teacher has no chat template; send text or token ids")
        conversation = [{"role": role, "content": content} for role, content in messages]
        try:
            rendered = self._chat.apply_chat_template(
                conversation,
                tokenize=False,
                add_generation_prompt=messages[-1][0] != "assistant",
                **self._template_arguments,
            )
        except Exception as error:  # a template is a program and raises what it likes
            raise ChatError(f"the teacher's chat template refuses these messages: {error}") from None
        return self.encode(str(rendered))

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = False) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special))

    def special_tokens(self) -> list[str]:
        """How special tokens are written, by id."""
        return [self._special[i] for i in sorted(self._special)]

    def special_id(self, text: str) -> int | None:
        """The id of a special token that is written exactly so."""
        return next((i for i, content in self._special.items() if content == text), None)


class TextStream:
    """Text of tokens that arrive one by one; special tokens give none.

    Only a short window is decoded at each token. Text whose last character may still be incomplete waits.
    """

    def __init__(self, tokenizer: TeacherTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Ids from _start on are decoded each time; of their text, what ids before _read gave was returned already.
        self._start = 0
        self._read = 0

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        return self._take(final=False)

    def flush(self) -> str:
        """What is left at the end, incomplete characters as U+FFFD."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._read], skip_special=True)
        now = self._tokenizer.decode(self._ids[self._start :], skip_special=True)
        # A window of bytes that never become a character must not grow for ever.
        stuck = len(self._ids) - self._read > 16
        if now.endswith("\ufffd") and not (final or stuck):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return now[len(before) :]
