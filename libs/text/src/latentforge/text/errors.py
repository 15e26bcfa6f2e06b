"""What a user can cause with text, documents and tokenizers: exceptions that are printed as one message."""


class TextError(ValueError):
    """Something that the user can put right; the message says what and how."""


class ChatError(TextError):
    """A chat that the tokenizer's template cannot render, and why."""


class PackingStoppedError(Exception):
    """Packing stopped because it was asked to; what is done is kept, and the same call resumes."""
