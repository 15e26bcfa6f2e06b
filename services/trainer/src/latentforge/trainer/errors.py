"""What a user can cause, printed as one message."""


class TrainerError(ValueError):
    """Something that the user can put right; the message says what and how."""


class RecipeError(TrainerError):
    """A recipe, or a value given in place of one of its own, that cannot be used."""
