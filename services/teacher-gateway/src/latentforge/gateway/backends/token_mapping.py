"""Token strings and bytes back to token ids, where that is certain."""

from collections.abc import Sequence

from latentforge.text.tokenizer import TextTokenizer

_REPLACEMENT = "\ufffd".encode()


class TokenMapping:
    """Which id a token that an API wrote as a string, and perhaps as bytes, must be.

    An API writes a token as its own bytes, or as what decoding it alone gives, which loses what is no UTF-8 by itself
    and, in some vocabularies, a leading space. Both renderings of every id are known here, and one that two ids share,
    that is empty or that holds U+FFFD stands for none. So an id is found only if no other id could have been meant.
    Special tokens have one rendering, their literal.

    Args:
        tokenizer: the teacher's.

    Attributes:
        special_ids: ids of special tokens.
        num_ids: one more than the highest id.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.special_ids = tokenizer.special_ids
        self.num_ids = tokenizer.vocab_size
        self._bytes = {i: data for i, data in tokenizer.token_bytes.items() if data is not None}
        ids = sorted(tokenizer.token_bytes)
        decoded = tokenizer.decode_each(ids)
        owners: dict[bytes, int | None] = {}
        for token_id, text in zip(ids, decoded, strict=True):
            renderings = {self._bytes.get(token_id, b"")}
            if token_id not in self.special_ids:
                renderings.add(text.encode())
            for rendering in renderings:
                owners[rendering] = token_id if owners.get(rendering, token_id) == token_id else None
            # What no bytes are known of has the text that it decodes to, if that is whole.
            self._bytes.setdefault(token_id, text.encode())
        self._ids = {data: i for data, i in owners.items() if i is not None and data and _REPLACEMENT not in data}

    def id_of(self, token: str, data: bytes | None = None) -> int | None:
        """The id of a token written as ``token`` and, where the API gives them, as the bytes ``data``; None if unsure.

        Bytes decide, and a string that contradicts them means neither is to be believed. A server that has only a
        lossy string may give that string's bytes, so they are no surer than it where they hold U+FFFD.
        """
        written = token.encode("utf-8", "surrogatepass")
        if not data:
            return self._ids.get(written)
        token_id = self._ids.get(data)
        if token_id in self.special_ids and written != data:
            return None
        return token_id if _may_render(written, data) else None

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of an id that :meth:`id_of` gave."""
        return self._bytes[token_id]

    def text_of(self, token_ids: Sequence[int], *, special: bool) -> bytes:
        """The bytes of several ids; special tokens count only if ``special``."""
        return b"".join(self._bytes[i] for i in token_ids if special or i not in self.special_ids)


def _may_render(written: bytes, data: bytes) -> bool:
    """Whether a token of bytes ``data`` may be written so. Bytes that are no UTF-8 are written in many ways."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return True
    return written == data
