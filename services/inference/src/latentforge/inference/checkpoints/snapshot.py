"""A snapshot: one checkpoint in memory, checked from its bytes to what it writes."""

from dataclasses import dataclass
from pathlib import Path

import torch

from latentforge.core.manifest import CheckpointError, Manifest, verify_checkpoint
from latentforge.model.finite import check_finite
from latentforge.model.generation import ChunkGenerator, store_for_one_request
from latentforge.model.io import load_autoencoder, load_student
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams
from latentforge.text.errors import TextError
from latentforge.text.tokenizer import TextTokenizer

GREEDY = SamplingParams(temperature=0)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything that answers one request; never changed after it is made.

    Whoever holds a reference can go on generating with it, whatever is served by then; memory is freed with the last
    reference.
    """

    place: Path
    manifest: Manifest
    tokenizer: TextTokenizer
    generator: ChunkGenerator

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def max_context_tokens(self) -> int:
        """Tokens of prompt, padded to whole chunks, and answer together."""
        return self.generator.model.max_tokens

    @property
    def max_prompt_bytes(self) -> int:
        """A text of more bytes in UTF-8 has more tokens than a prompt may have, without any need to count them."""
        return self.generator.max_prompt_tokens * self.tokenizer.longest_token_bytes

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an assistant's answer besides the student's own end of text."""
        return frozenset(self.manifest.end_ids) | self.tokenizer.end_ids

    def encode(self, text: str, *, parse_special_tokens: bool = False) -> list[int]:
        """The ids that the student was trained on for ``text``, with bos before them where its sequences begin so.

        What looks like a control token is text, as in training, unless ``parse_special_tokens``.
        """
        return self.tokenizer.begin(self.tokenizer.encode(text, parse_special_tokens=parse_special_tokens))

    def decode(self, token_ids: list[int]) -> str:
        """The text of what goes on behind a prompt, all ids at once."""
        return self.tokenizer.decode(token_ids, skip_special=True, goes_on=True)


def load_snapshot(place: Path, device: torch.device) -> Snapshot:
    """Reads a checkpoint's folder, having verified every file of it, and has it write its golden continuation.

    A student that diverged is refused too: with a NaN in its logits it still writes the golden ids, and fails requests.

    Only safetensors, JSON and our own classes are read; nothing in the folder is ever executed.

    Raises:
        CheckpointError: the checkpoint must not be served; the message says why.
        OSError: the folder cannot be read now.
    """
    manifest = verify_checkpoint(place)
    tokenizer = _load_tokenizer(place, manifest)
    try:
        model = LatentModel(load_autoencoder(place / "autoencoder"), load_student(place / "student"))
    except OSError:
        raise
    # Sizes that torch refuses surface as RuntimeError and others; whatever it is, this checkpoint cannot be served.
    except Exception as error:
        message = str(error)
        raise CheckpointError(message if str(place) in message else f"{place}: {message}") from error
    generator = ChunkGenerator(model)
    config = generator.config
    for field in ("chunk_size", "latent_size"):
        said, found = getattr(manifest, field), getattr(config, field)
        if said != found:
            raise CheckpointError(f"{place}: {field} is {said} in the manifest, but {found} in the student")
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{place}: the tokenizer has {tokenizer.vocab_size} ids, but the student only {config.vocab_size}"
        )
    snapshot = Snapshot(place, manifest, tokenizer, generator)
    # On the CPU, wherever it is served: that is where the publisher computed it.
    _check_golden(snapshot)
    store_for_one_request(model.to(device))
    return snapshot


def _load_tokenizer(place: Path, manifest: Manifest) -> TextTokenizer:
    try:
        tokenizer = TextTokenizer(place / "tokenizer", bos=manifest.bos_id is not None)
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


def _check_golden(snapshot: Snapshot) -> None:
    golden, place = snapshot.manifest.golden, snapshot.place
    prompt_ids = snapshot.encode(golden.prompt)
    if prompt_ids != golden.prompt_ids:
        raise CheckpointError(
            f"{place}: the golden prompt {golden.prompt!r} has the ids {prompt_ids}, "
            f"but the manifest says {golden.prompt_ids}"
        )
    try:
        check_finite(snapshot.generator.model, prompt_ids)
    except ValueError as error:
        raise CheckpointError(f"{place}: {error}; its training diverged") from None
    try:
        chunks = snapshot.generator.generate(prompt_ids, max(1, len(golden.token_ids)), GREEDY)
        token_ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{place}: the golden prompt cannot be continued: {error}") from error
    if token_ids != golden.token_ids:
        raise CheckpointError(
            f"{place}: the golden prompt is continued with the ids {token_ids}, "
            f"but the manifest says {golden.token_ids}"
        )
