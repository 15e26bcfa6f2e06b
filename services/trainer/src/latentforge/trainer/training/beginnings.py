"""Beginnings of held-out sequences as texts: what checkpoints are checked with, and what samples continue."""

from collections.abc import Iterable, Iterator, Sequence

from latentforge.text.tokenizer import TextTokenizer


def beginnings(tokenizer: TextTokenizer, sequences: Iterable[Sequence[int]], most_tokens: int) -> Iterator[str]:
    """The texts that sequences begin with, of ``most_tokens`` or a few less, leaving out those without any."""
    for ids in sequences:
        text = tokenizer.decode(ids[: min(most_tokens, len(ids))], skip_special=True)
        # The cut may have gone through a character.
        text = text.strip("\ufffd")
        # Or through a word, which then has more tokens than it had.
        while len(tokenizer.begin(tokenizer.encode(text))) > min(most_tokens, len(ids)):
            text = text[: len(text) * 7 // 8]
        if text.strip():
            yield text
