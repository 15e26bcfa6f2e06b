"""Incremental decoding: the text of tokens that arrive one by one."""

from latentforge.text.vocabulary import Vocabulary

# Tokens without a whole character that are waited for; a longer run of bytes is none and must not grow for ever.
_STUCK = 16


class TextStream:
    """Text of a continuation's tokens; special tokens give none.

    Only a short window is decoded at each token. Text whose last character may still be incomplete waits. As the text
    goes on behind a prompt, a blank that its first token begins with is part of it.
    """

    def __init__(self, tokenizer: Vocabulary) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = list(tokenizer.anchor_ids)
        # Ids from _start on are decoded each time; of their text, what ids before _read gave was returned already.
        self._start = 0
        self._read = len(self._ids)

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        return self._take(final=False)

    def flush(self) -> str:
        """What is left at the end, incomplete characters as U+FFFD."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._read], skip_special=True)
        now = self._tokenizer.decode(self._ids[self._start :], skip_special=True)
        stuck = len(self._ids) - self._read > _STUCK
        if now.endswith("\ufffd") and not (final or stuck):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return now[len(before) :]
