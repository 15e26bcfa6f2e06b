"""A snapshot: one checkpoint in memory, checked from its bytes to what it writes."""

from dataclasses import dataclass
from pathlib import Path

import torch

from latentforge.core.checkpoint_files import CheckpointFiles
from latentforge.core.manifest import CheckpointError, Manifest
from latentforge.model.checkpoint import check_golden_text, load_checkpoint
from latentforge.model.finite import finite_logits
from latentforge.model.generation import ChunkGenerator, store_for_one_request
from latentforge.model.golden import TOLERANCE
from latentforge.model.sampling import SamplingParams
from latentforge.text.tokenizer import TextTokenizer

_NO_EOS = -1
_CHECKED_CHUNKS = 2
# On a GPU matrix products may round their operands to 10 bits.
_GPU_TOLERANCE = 0.1


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything that answers one request; never changed after it is made.

    Whoever holds a reference can go on generating with it, whatever is served by then; memory is freed with the last
    reference.

    Attributes:
        digest: sha256 of the manifest's bytes, in hex; what has the same is the same to the last bit.
    """

    place: Path
    manifest: Manifest
    tokenizer: TextTokenizer
    generator: ChunkGenerator
    digest: str

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
    snapshot = Snapshot(place, files.manifest, tokenizer, ChunkGenerator(model), files.digest)
    store_for_one_request(model.to(device))
    _check_decoding(snapshot)
    return snapshot


def _check_decoding(snapshot: Snapshot) -> None:
    """What answers requests, step by step with its memory and on its device, agrees with reading the whole at once."""
    model, place = snapshot.generator.model, snapshot.place
    # The latents of an energy head are drawn, and twice they are not the same.
    if model.student.config.head == "energy":
        return
    num_drawn = min(_CHECKED_CHUNKS * model.chunk_size, model.max_tokens - model.chunk_size)
    prompt_ids = list(snapshot.manifest.golden.token_ids)[: model.max_tokens - num_drawn - model.chunk_size]
    try:
        chunks = list(snapshot.generator.generate(prompt_ids, num_drawn, SamplingParams(seed=0), eos_id=_NO_EOS))
        drawn = [token_id for chunk in chunks for token_id in chunk.token_ids]
        logits = finite_logits(model, [*prompt_ids, *drawn])[-len(drawn) :].double().cpu()
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{place}: the golden text cannot be continued: {error}") from error
    # Which is never written.
    logits[:, model.student.config.pad_id] = -torch.inf
    found = logits.log_softmax(1).gather(1, torch.tensor(drawn)[:, None])[:, 0]
    said = torch.tensor([logprob for chunk in chunks for logprob in chunk.logprobs], dtype=torch.float64)
    off = float((found - said).abs().max())
    if not off <= (TOLERANCE if model.device.type == "cpu" else _GPU_TOLERANCE):
        raise CheckpointError(
            f"{place}: what is drawn behind the golden text has log probabilities that differ by {off:.4f} nats from "
            "those of reading it at once; this is a fault of the server, not of the checkpoint"
        )
