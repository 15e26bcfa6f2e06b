"""How tokens are written where a protocol wants strings: no two tokens alike."""

import codecs
from collections.abc import Sequence
from functools import cached_property

from latentforge.text.tokenizer import TextTokenizer


class TokenNames:
    """Of every id of a teacher, whose output layer may be wider than its tokenizer.

    What is no whole character is written as ``bytes:\\xe2\\x82``, as OpenAI does, an id without a token as
    ``token_id:4095``. May be shared by threads; the first that asks makes the table, in a second at most.
    """

    def __init__(self, tokenizer: TextTokenizer, width: int) -> None:
        self._tokenizer = tokenizer
        self._width = width

    @cached_property
    def table(self) -> list[str]:
        """The names, by id."""
        known = self._tokenizer.token_bytes
        unsaid = [i for i in range(self._width) if i in known and known[i] is None]
        alone = dict(zip(unsaid, self._tokenizer.decode_each(unsaid), strict=True))
        return [alone.get(i) or _name_of(i, known.get(i)) for i in range(self._width)]

    def text(self, ids: Sequence[int]) -> str:
        """What the tokens read as, one behind the other; control tokens as they are written."""
        return b"".join(map(self._bytes, ids)).decode("utf-8", "replace")

    def num_bytes(self, ids: Sequence[int]) -> int:
        """Of UTF-8, what :meth:`text` has."""
        return sum(len(self._bytes(i)) for i in ids)

    def offsets(self, ids: Sequence[int]) -> list[int]:
        """At which character of :meth:`text` each token begins."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        offsets, at = [], 0
        for i in ids:
            offsets.append(at)
            at += len(decoder.decode(self._bytes(i)))
        return offsets

    def _bytes(self, token_id: int) -> bytes:
        known = self._tokenizer.token_bytes.get(token_id)
        return self.table[token_id].encode() if known is None else known


def _name_of(token_id: int, content: bytes | None) -> str:
    if not content:
        return f"token_id:{token_id}"
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
