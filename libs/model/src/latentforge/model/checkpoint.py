"""A checkpoint's files as what they are: a tokenizer and a model that fit each other."""

from typing import NamedTuple

from latentforge.core.checkpoint_files import CheckpointFiles
from latentforge.core.manifest import CheckpointError
from latentforge.model.golden import check_golden
from latentforge.model.io import CONFIG_FILE, WEIGHTS_FILE, ModuleFiles, autoencoder_from, student_from
from latentforge.model.latent_model import LatentModel
from latentforge.text.errors import TextError
from latentforge.text.tokenizer import TextTokenizer


class LoadedCheckpoint(NamedTuple):
    """A checkpoint in memory, on the CPU, in evaluation mode."""

    tokenizer: TextTokenizer
    model: LatentModel


def load_checkpoint(files: CheckpointFiles) -> LoadedCheckpoint:
    """Reads tokenizer and models, each file once, and checks that they fit each other and the manifest.

    Only safetensors, JSON and our own classes are read; nothing in the folder is ever executed.

    Raises:
        CheckpointError: the checkpoint must not be used; the message says why.
        OSError: the folder cannot be read now.
    """
    place, manifest = files.place, files.manifest
    tokenizer = _tokenizer(files)
    try:
        model = LatentModel(autoencoder_from(_module(files, "autoencoder")), student_from(_module(files, "student")))
    except (OSError, CheckpointError):
        raise
    # Sizes that torch refuses surface as RuntimeError and others; whatever it is, this checkpoint is no good.
    except Exception as error:
        message = str(error)
        raise CheckpointError(message if str(place) in message else f"{place}: {message}") from error
    config = model.student.config
    for field in ("chunk_size", "latent_size"):
        said, found = getattr(manifest, field), getattr(config, field)
        if said != found:
            raise CheckpointError(f"{place}: {field} is {said} in the manifest, but {found} in the student")
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{place}: the tokenizer has {tokenizer.vocab_size} ids, but the student only {config.vocab_size}"
        )
    return LoadedCheckpoint(tokenizer, model.eval())


def check_golden_text(files: CheckpointFiles, loaded: LoadedCheckpoint) -> None:
    """The tokenizer reads the golden text as the publisher's did, and the student makes of it what his did.

    Raises:
        CheckpointError: not so; the message says where.
    """
    golden, place = files.manifest.golden, files.place
    token_ids = tuple(loaded.tokenizer.begin(loaded.tokenizer.encode(golden.text)))
    if token_ids != golden.token_ids:
        at = next((i for i, (a, b) in enumerate(zip(token_ids, golden.token_ids, strict=False)) if a != b), None)
        where = f"{len(token_ids)} and {len(golden.token_ids)} of them" if at is None else f"first at token {at}"
        raise CheckpointError(f"{place}: the golden text has other ids than the manifest says: {where}")
    try:
        check_golden(loaded.model, golden)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{place}: {error}") from error


def _module(files: CheckpointFiles, part: str) -> ModuleFiles:
    config, weights = (files.read(f"{part}/{name}") for name in (CONFIG_FILE, WEIGHTS_FILE))
    return ModuleFiles(files.place / part, config, weights)


def _tokenizer(files: CheckpointFiles) -> TextTokenizer:
    place, manifest = files.place, files.manifest
    try:
        tokenizer = TextTokenizer(
            place / "tokenizer", bos=manifest.bos_id is not None, contents=files.read_folder("tokenizer")
        )
    except TextError as error:
        raise CheckpointError(f"{place}: {error}") from error
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise CheckpointError(
            f"{place}: the tokenizer's fingerprint is {tokenizer.fingerprint}, "
            f"but the manifest says {manifest.tokenizer_fingerprint}"
        )
    if tokenizer.bos_id != manifest.bos_id:
        raise CheckpointError(
            f"{place}: the tokenizer's bos is {tokenizer.bos_id}, but the manifest says {manifest.bos_id}"
        )
    return tokenizer
