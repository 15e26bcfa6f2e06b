"""What a recipe says of a pretrained model, checked against the model's own files before anything is trained."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from latentforge.model.config import AutoencoderConfig, StudentConfig
from latentforge.text.errors import TextError
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.sections import AutoencoderRecipe, StudentRecipe
from latentforge.trainer.errors import RecipeError

# A student's backbone without a pretrained one has Qwen3's defaults; with one it has that one's.
_STUDENT, _AUTOENCODER = "student.init_from", "autoencoder.init_from"
# The recipe smollm2's.
_MADE_HERE = "models/cache/smollm2"


def with_pretrained_sizes(student: StudentRecipe) -> StudentRecipe:
    """The same, with the sizes of the layers that it starts from where the recipe leaves them out.

    Raises:
        RecipeError: there is no such model, a student cannot start from it, or the recipe says another size; names
            field, both values and what to do.
    """
    takes_layers = student.init_from is not None and "layers" in student.parts
    if student.init_layers is not None and not takes_layers:
        raise RecipeError(
            f"student.init_layers is {student.init_layers}, and no layers are taken over; set {_STUDENT}, and layers "
            "among student.init_parts, or leave it out"
        )
    if not takes_layers:
        return student
    source = open_student_source(student)
    for name, theirs in source.sizes.items():
        if name in student.model and student.model[name] != theirs:
            raise RecipeError(
                f"student.model.{name} is {student.model[name]!r}, and {_STUDENT}={student.init_from} has {theirs!r}: "
                "its layers are taken as they are; leave the field out, or take layers out of student.init_parts"
                + (", or some layers alone with student.init_layers" if name == "num_layers" else "")
            )
    return student.model_copy(update={"model": {**student.model, **source.sizes}})


def check_widths(
    student: StudentRecipe, autoencoder: AutoencoderRecipe, config: StudentConfig, ae_config: AutoencoderConfig
) -> None:
    """Checks that the token tables that a recipe starts from a pretrained model are no wider than that one's.

    Raises:
        RecipeError: one is, or the student is longer than the model was made for; names field, both values and what to
            do.
    """
    if student.init_from is not None:
        source = open_source(_STUDENT, student.init_from)
        widths = {}
        if "inputs" in student.parts:
            widths["embed_size"] = config.embed_size
        if "outputs" in student.parts:
            if config.chunk_decoder.kind != "none":
                widths["chunk_decoder.rank"] = config.chunk_decoder.rank
            if config.logit_features.kind == "linear":
                widths["logit_features.width"] = config.logit_features.width
        for name, width in widths.items():
            _check_width(f"student.model.{name}", width, _STUDENT, student.init_from, source.sizes["hidden_size"])
        for part, name in (("inputs", "embed_size"), ("outputs", "output_rank")):
            narrow = getattr(student.token_level, name)
            if part in student.parts and narrow is not None:
                theirs = source.sizes["hidden_size"]
                _check_width(f"student.token_level.{name}", narrow, _STUDENT, student.init_from, theirs)
        if "layers" in student.parts and config.max_positions > source.max_positions:
            raise RecipeError(
                f"student.model.max_chunks is {config.max_chunks}, {config.max_positions} positions, and "
                f"{_STUDENT}={student.init_from} was made for {source.max_positions} positions; shorten "
                "data.sequence_length"
            )
    if autoencoder.init_from is not None:
        source = open_source(_AUTOENCODER, autoencoder.init_from)
        width = source.sizes["hidden_size"]
        _check_width("autoencoder.model.hidden_size", ae_config.hidden_size, _AUTOENCODER, autoencoder.init_from, width)


def check_vocabulary(
    student: StudentRecipe, autoencoder: AutoencoderRecipe, tokenizer: TextTokenizer, vocab_size: int
) -> None:
    """Checks that token tables that are taken over are of the teacher's ids.

    Raises:
        RecipeError: the pretrained model has another tokenizer, none, or fewer ids.
    """
    asked = {autoencoder.init_from: _AUTOENCODER}
    if {"inputs", "outputs"} & set(student.parts):
        # One place for both is asked once.
        asked = {student.init_from: _STUDENT} | asked
    for place, field in asked.items():
        if place is None:
            continue
        source = open_source(field, place)
        try:
            theirs = TextTokenizer(source.tokenizer_folder).fingerprint
        except TextError as error:
            raise RecipeError(
                f"{field}={place}: whose ids its token tables have is not known ({error}); put its tokenizer beside "
                'it, or take its layers alone with student.init_parts = ["layers"]'
            ) from None
        if theirs != tokenizer.fingerprint:
            raise RecipeError(
                f"{field}={place} has a tokenizer with the fingerprint {theirs}, the run's "
                f"({tokenizer.folder}) has {tokenizer.fingerprint}: its token tables are of other ids; set "
                "TOKENIZER_PATH and the teacher to its own, or take its layers alone with "
                'student.init_parts = ["layers"]'
            )
        if source.vocab_size < vocab_size:
            raise RecipeError(
                f"vocab_size is {vocab_size}, and {field}={place} has {source.vocab_size} ids; lower vocab_size"
            )


def open_student_source(student: StudentRecipe) -> Any:
    """The pretrained model that a student starts from, a CausalLM, with the layers alone that are taken over.

    Raises:
        RecipeError: there is none, it is of no use, or it has no such layers; names the field.
    """
    assert student.init_from is not None
    source = open_source(_STUDENT, student.init_from)
    if student.init_layers is None:
        return source
    try:
        return source.with_layers(student.init_layers)
    except ValueError as error:
        raise RecipeError(
            f"student.init_layers is {student.init_layers}, of {_STUDENT}={student.init_from}: {error}"
        ) from None


def open_source(field: str, place: str) -> Any:
    """The pretrained model that a field names, a CausalLM.

    Raises:
        RecipeError: there is none, or it is of no use; names the field.
    """
    folder = Path(place)
    files = [(p.name, p.stat()) for p in sorted(folder.iterdir())] if folder.is_dir() else []
    try:
        return _opened(place, tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in files))
    except ValueError as error:
        fix = "; make smollm2 makes it" if place == _MADE_HERE and not folder.exists() else ""
        raise RecipeError(f"{field}={place}: {error}{fix}") from None


# A recipe's sizes and widths, the vocabulary and what is taken over: each asks for it.
@lru_cache(maxsize=4)
def _opened(place: str, files: tuple[tuple[str, int, int], ...]) -> Any:
    """A pretrained model, checked once as long as its folder's ``files`` (name, time and size) are what they were."""
    # It brings torch and transformers along.
    from latentforge.model.causal_lm import open_causal_lm

    return open_causal_lm(place)


def _check_width(name: str, ours: int, field: str, place: str, theirs: int) -> None:
    if ours > theirs:
        raise RecipeError(
            f"{name} is {ours}, and the token tables of {field}={place} are {theirs} wide; set it to {theirs} or less"
        )
