"""The teacher's tokenizer, as the settings name it."""

from latentforge.text.errors import TextError
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.settings import TrainerSettings


def teachers_tokenizer(
    settings: TrainerSettings, *, eos_id: int | None = None, pad_id: int | None = None, bos: bool | None = None
) -> TextTokenizer:
    """The tokenizer in TOKENIZER_PATH.

    Args:
        settings: name the folder.
        eos_id, pad_id: instead of its own.
        bos: whether sequences begin with its bos; None does as it does itself.

    Raises:
        TextError: it cannot be read, and the setting's name.
    """
    try:
        return TextTokenizer(settings.tokenizer_path, eos_id=eos_id, pad_id=pad_id, bos=bos)
    except TextError as error:
        raise TextError(f"TOKENIZER_PATH: {error}") from None
