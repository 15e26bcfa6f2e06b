"""Halves of surrogate pairs: JSON can write them alone, and they are no characters."""


def surrogate_in(text: str) -> str | None:
    """Where a text has half of a surrogate pair, which no bytes of UTF-8 stand for; None where nowhere."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x} at character {error.start} is half of a surrogate pair"
    return None
