"""The text of tokens that arrive one by one, up to the first of some stop strings."""

from collections.abc import Iterable, Sequence

from latentforge.text.text_stream import TextStream
from latentforge.text.vocabulary import Vocabulary


class StoppingText:
    """A continuation's text as it becomes certain.

    What may be the beginning of a stop string waits until it is known whether it is one. The string that is complete
    first ends the text, and is not part of it.

    Args:
        tokenizer: of the tokens.
        stop: strings, none of them empty; may be none.

    Attributes:
        is_over: whether a stop string was complete; nothing more may be pushed then.
    """

    def __init__(self, tokenizer: Vocabulary, stop: Iterable[str] = ()) -> None:
        self.is_over = False
        self._stream = TextStream(tokenizer)
        self._stop = tuple(stop)
        self._waiting = ""
        self._read = ""

    def read(self, token_ids: Sequence[int]) -> int | None:
        """Reads tokens up to the one that completes a stop string; :meth:`take` gives their text.

        Returns:
            How many they are with that one; None where no stop string is complete.
        """
        for count, token_id in enumerate(token_ids, 1):
            self._read += self.push(token_id)
            if self.is_over:
                return count
        return None

    def take(self) -> str:
        """The text of what was read that is certain and was not taken before."""
        text, self._read = self._read, ""
        return text

    def push(self, token_id: int) -> str:
        """The text that is certain with one more token, behind what was given before."""
        self._waiting += self._stream.push(token_id)
        return self._certain(final=False)

    def flush(self) -> str:
        """What is left at the end; nothing where a stop string ended the text."""
        if self.is_over:
            return ""
        self._waiting += self._stream.flush()
        return self._certain(final=True)

    def _certain(self, *, final: bool) -> str:
        starts = [self._waiting.find(word) for word in self._stop if word in self._waiting]
        if starts:
            self.is_over = True
            end = min(starts)
        else:
            end = len(self._waiting) - (0 if final else self._num_uncertain())
        text, self._waiting = self._waiting[:end], self._waiting[end:]
        return text

    def _num_uncertain(self) -> int:
        """Characters at the end with which a stop string may begin."""
        longest = min(len(self._waiting), max(map(len, self._stop), default=1) - 1)
        ends = (self._waiting[-size:] for size in range(longest, 0, -1))
        return next((len(end) for end in ends if any(word.startswith(end) for word in self._stop)), 0)
