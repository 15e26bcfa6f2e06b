"""A snapshot: one checkpoint in memory, checked from its bytes to what it writes."""

from dataclasses import dataclass
from pathlib import Path

import torch

from latentforge.core.checkpoint_files import CheckpointFiles
from latentforge.core.manifest import CheckpointError, Manifest
from latentforge.model.checkpoint import check_golden_text, load_checkpoint
from latentforge.model.decoding.batch import BatchDecoding
from latentforge.model.decoding.build import batch_decoding
from latentforge.model.engine import offline
from latentforge.model.engine.requests import GenerationRequest
from latentforge.model.finite import finite_logits
from latentforge.model.golden import TOLERANCE
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams
from latentforge.text.tokenizer import TextTokenizer

_CHECKED_CHUNKS = 2
# On a GPU matrix products may round their operands to 10 bits.
_GPU_TOLERANCE = 0.1


@dataclass(frozen=True)
class DecodingMemory:
    """What a snapshot decodes with.

    Attributes:
        num_slots: texts that it writes at the same time.
        exact: a text is bit for bit the same whatever is written beside it, and takes as long as alone.
        slots_setting: what the user lowers where there is no memory for so many.
    """

    num_slots: int = 16
    exact: bool = False
    slots_setting: str = "num_slots"


DEFAULT_MEMORY = DecodingMemory()


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything that answers one request; never changed after it is made.

    Whoever holds a reference can go on generating with it, whatever is served by then; memory is freed with the last
    reference.

    Attributes:
        decoding: writes many texts at once, in memory of its own.
        digest: sha256 of the manifest's bytes, in hex; what has the same is the same to the last bit.
    """

    place: Path
    manifest: Manifest
    tokenizer: TextTokenizer
    model: LatentModel
    decoding: BatchDecoding
    digest: str

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def max_context_tokens(self) -> int:
        """Tokens of prompt, padded to whole chunks, and answer together."""
        return self.decoding.max_tokens

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that leaves room for a step."""
        return self.decoding.max_tokens - self.decoding.chunk_size

    @property
    def max_prompt_bytes(self) -> int:
        """A text of more bytes in UTF-8 has more tokens than a prompt may have, without any need to count them."""
        return self.max_prompt_tokens * self.tokenizer.longest_token_bytes

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an assistant's answer besides the student's own end of text."""
        return frozenset(self.manifest.end_ids) | self.tokenizer.end_ids

    @property
    def has_likelihood(self) -> bool:
        """Whether log probabilities are exact: an energy head's are those of one drawn latent."""
        return self.model.student.config.head != "energy"

    def encode(self, text: str, *, parse_special_tokens: bool = False) -> list[int]:
        """The ids that the student was trained on for ``text``, with bos before them where its sequences begin so.

        What looks like a control token is text, as in training, unless ``parse_special_tokens``.
        """
        return self.tokenizer.begin(self.tokenizer.encode(text, parse_special_tokens=parse_special_tokens))

    def decode(self, token_ids: list[int]) -> str:
        """The text of what goes on behind a prompt, all ids at once."""
        return self.tokenizer.decode(token_ids, skip_special=True, goes_on=True)


def load_snapshot(place: Path, device: torch.device, memory: DecodingMemory = DEFAULT_MEMORY) -> Snapshot:
    """Reads a checkpoint's folder, every file of it once, and checks what it is and what it computes.

    Only safetensors, JSON and our own classes are read; nothing in the folder is ever executed. Nothing of it is read
    after this, so it may be changed or removed.

    Raises:
        CheckpointError: the checkpoint must not be served; the message says why.
        OSError: the folder cannot be read now.
    """
    files = CheckpointFiles(place)
    loaded = load_checkpoint(files)
    files.check_rest()
    # On the CPU, wherever it is served: that is where the publisher computed it.
    check_golden_text(files, loaded)
    tokenizer, model = loaded
    try:
        decoding = batch_decoding(model.to(device), memory.num_slots, exact=memory.exact)
    # What torch raises where there is too little memory.
    except RuntimeError as error:
        raise CheckpointError(
            f"{place}: no memory for {memory.num_slots} texts of {model.max_tokens} tokens: {error}; "
            f"lower {memory.slots_setting}"
        ) from error
    snapshot = Snapshot(place, files.manifest, tokenizer, model, decoding, files.digest)
    _check_decoding(snapshot)
    return snapshot


def _check_decoding(snapshot: Snapshot) -> None:
    """What answers requests, step by step with its memory and on its device, agrees with reading the whole at once."""
    model, place = snapshot.model, snapshot.place
    # The latents of an energy head are drawn, and twice they are not the same.
    if model.student.config.head == "energy":
        return
    num_drawn = min(_CHECKED_CHUNKS * model.chunk_size, model.max_tokens - model.chunk_size)
    prompt_ids = list(snapshot.manifest.golden.token_ids)[: model.max_tokens - num_drawn - model.chunk_size]
    try:
        request = GenerationRequest(snapshot.decoding, prompt_ids, num_drawn, SamplingParams(seed=0), logprobs=0)
        [result] = offline.run([request])
        logits = finite_logits(model, [*prompt_ids, *result.token_ids])[-num_drawn:].double().cpu()
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{place}: the golden text cannot be continued: {error}") from error
    # Which is never written.
    logits[:, model.student.config.pad_id] = -torch.inf
    found = logits.log_softmax(1).gather(1, torch.tensor(result.token_ids)[:, None])[:, 0]
    said = torch.tensor(result.logprobs, dtype=torch.float64)
    off = float((found - said).abs().max())
    if not off <= (TOLERANCE if model.device.type == "cpu" else _GPU_TOLERANCE):
        raise CheckpointError(
            f"{place}: what is drawn behind the golden text has log probabilities that differ by {off:.4f} nats from "
            "those of reading it at once; this is a fault of the server, not of the checkpoint"
        )
