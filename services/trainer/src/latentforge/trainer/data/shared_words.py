"""Text that stands in held-out files too: found by runs of words, and cut out of what is trained on.

Words and not a tokenizer's ids: the teacher's tokenizer is itself made from the training text, and a corpus must not
depend on which one is installed. That a copy is cut out and the rest goes on as one text is as in Lee et al.,
"Deduplicating Training Data Makes Language Models Better" (2022).
"""

import re
from collections.abc import Iterable, Iterator

# Names, numbers and single signs. Whitespace is left out, so that an indented copy is one too.
_WORD = re.compile(r"\w+|[^\w\s]")


class SharedWords:
    """Finds in a text what is in given ones as well: runs of ``num_words`` equal words.

    Runs are compared as they are, not by a hash, so that every machine finds the same.
    """

    def __init__(self, texts: Iterable[str], num_words: int) -> None:
        self._num_words = num_words
        self._runs: set[str] = set()
        self._known: set[str] = set()
        for text in texts:
            words = _WORD.findall(text)
            self._known.update(words)
            self._runs.update(" ".join(words[i - num_words : i]) for i in range(num_words, len(words) + 1))

    def cut_from(self, text: str) -> str:
        """The text less every line that a shared run reaches into; it shares none then.

        A text that shares nothing comes back as it is.
        """
        lines = text.splitlines(keepends=True)
        # Lines that now follow each other may make a shared run.
        while shared := {i for first, last in self._shared(lines) for i in range(first, last + 1)}:
            lines = [line for i, line in enumerate(lines) if i not in shared]
        return "".join(lines)

    def _shared(self, lines: list[str]) -> Iterator[tuple[int, int]]:
        """The first and the last line of every shared run."""
        words = [(word, i) for i, line in enumerate(lines) for word in _WORD.findall(line)]
        num_known = 0
        for end, (word, _) in enumerate(words, 1):
            # Most runs have a word that the other texts do not.
            num_known = num_known + 1 if word in self._known else 0
            if num_known >= self._num_words:
                run = words[end - self._num_words : end]
                if " ".join(word for word, _ in run) in self._runs:
                    yield run[0][1], run[-1][1]
