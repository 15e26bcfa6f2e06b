"""What a user can cause: one exception, printed as one message."""


class TrainerError(ValueError):
    """Something that the user can put right; the message says what and how."""
