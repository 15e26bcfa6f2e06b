"""What a user can cause with text, documents and tokenizers: one exception, printed as one message."""


class TextError(ValueError):
    """Something that the user can put right; the message says what and how."""
