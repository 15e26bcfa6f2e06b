"""Generated text as batches: one prompt and its continuation per sequence, only the continuation is learnt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentforge.model.losses import StudentBatch
from latentforge.trainer.config.recipe import Recipe
from latentforge.trainer.data.sequence_order import batch_indices, phase
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.targets.kd_targets import kd_targets
from latentforge.trainer.teacher.continuations import Continuation, Record


class ContinuationStore(Protocol):
    """Where continuations are: a collection, or a folder of kept rows.

    Attributes:
        folder: of them.
        num_usable, num_dropped: how many can be used, and how many cannot.
    """

    folder: Path
    num_usable: int
    num_dropped: int

    def records(self, prompts: Sequence[int]) -> list[Record]:
        """The usable continuations of prompts, in the prompts' order."""

    def read(self, record: Record) -> Continuation: ...

    def num_tokens(self) -> int:
        """Tokens of the usable continuations."""

    def digest(self, prompts: Sequence[int]) -> str:
        """Tells the continuations of prompts from others."""


class Examples:
    """One split's continuations, laid out for training.

    A sequence is [pads, prompt, continuation, end-of-text, pads]. The teacher saw nothing but the prompt, so nothing
    else is in the sequence. Pads on the left end the prompt with a chunk, as inference does, or at another phase; pads
    on the right come after everything that is learnt and are seen by none of it. A continuation that the teacher
    ended with something else than end-of-text is followed by that id, for the cross-entropy alone.

    Args:
        store: holds them.
        prompts: numbers of the split's prompts.
        recipe: the run's.
        pad_id, eos_id: the tokenizer's.

    Raises:
        TrainerError: there are none.
    """

    def __init__(
        self, store: ContinuationStore, prompts: Sequence[int], recipe: Recipe, pad_id: int, eos_id: int
    ) -> None:
        self._store, self._recipe = store, recipe
        self._pad_id, self._eos_id = pad_id, eos_id
        self._records = store.records(prompts)
        if not self._records:
            raise TrainerError(f"{store.folder} holds no continuation of {len(prompts)} prompts that can be used")
        # With an end-of-text and the pads of any phase.
        longest = max(r.num_prompt_ids + r.num_token_ids for r in self._records) + recipe.chunk_size
        tokens = recipe.student.optim.batch_size * recipe.data.sequence_length
        #: as many as fit the tokens of a step
        self.per_batch = max(1, min(len(self._records), tokens // min(longest, recipe.data.sequence_length)))

    def __len__(self) -> int:
        return len(self._records)

    def token_counts(self, vocab_size: int) -> NDArray[np.int64]:
        """How often each token stands in the continuations, int64 [V]."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for record in self._records:
            counts += np.bincount(self._store.read(record).token_ids, minlength=vocab_size)
        return counts

    def num_tokens(self, steps: int) -> int:
        """Tokens of the continuations of so many steps."""
        lengths = np.array([record.num_token_ids for record in self._records])
        seed = self._recipe.seed
        return sum(int(lengths[batch_indices(len(self), self.per_batch, seed, step)].sum()) for step in range(steps))

    def training_batch(self, step: int) -> StudentBatch:
        """The batch of one step, each example at a phase of its own."""
        recipe, k = self._recipe, self._recipe.chunk_size
        picked = batch_indices(len(self), self.per_batch, recipe.seed, step)
        examples = [self._store.read(self._records[i]) for i in picked]
        shifts = [phase(recipe.student.phase_probability, k, recipe.seed, step, row) for row in range(len(examples))]
        return lay_out(examples, shifts, recipe, self._pad_id, self._eos_id)

    def batches(self) -> list[StudentBatch]:
        """All examples in order, at phase 0, without the ends that have no row: what is compared with the teacher."""
        found = []
        for i in range(0, len(self), self.per_batch):
            examples = [self._store.read(r) for r in self._records[i : i + self.per_batch]]
            found.append(lay_out(examples, [0] * len(examples), self._recipe, self._pad_id, None))
        return found


def lay_out(
    examples: Sequence[Continuation], shifts: Sequence[int], recipe: Recipe, pad_id: int, eos_id: int | None
) -> StudentBatch:
    """Puts examples into the rows of a batch, cut off after ``data.sequence_length`` tokens.

    Args:
        examples: a row each.
        shifts: where each prompt ends: 0 at the end of a chunk, else so many tokens later.
        recipe: K and the longest sequence.
        pad_id: fills what is no text.
        eos_id: follows a continuation that the teacher ended otherwise; None leaves it out.

    Returns:
        A batch whose ``valid`` covers the continuations and whose ``chunk_valid`` the chunks that are within them.
    """
    k = recipe.chunk_size
    # pads + prompt ≡ shift (mod K). With shift 0 the continuation begins a chunk, as after any prompt in inference; the
    # other phases teach the student to continue inside a chunk that begins with context.
    pads = [(-len(e.prompt_ids) + shift) % k for e, shift in zip(examples, shifts, strict=True)]
    texts = [_text(example, eos_id) for example in examples]
    longest = max(p + len(t) for p, t in zip(pads, texts, strict=True))
    length = -(-longest // k) * k
    tokens = torch.full((len(examples), length), pad_id, dtype=torch.int64)
    valid = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, (example, pad, text) in enumerate(zip(examples, pads, texts, strict=True)):
        tokens[row, pad : pad + len(text)] = text
        valid[row, pad + len(example.prompt_ids) : pad + len(text)] = True
    # Rows end with the continuation: an end-of-text that was added has none, so KD leaves it out and CE does not.
    kd = kd_targets([e.rows for e in examples], length, pads)
    # A multiple of K, like the length: no chunk is cut through.
    kept = min(length, recipe.data.sequence_length)
    kd = type(kd)(**{name: column[:, :kept] for name, column in vars(kd).items()})
    valid = valid[:, :kept]
    return StudentBatch(tokens[:, :kept], valid, kd, valid.view(len(examples), -1, k).all(-1))


def _text(example: Continuation, eos_id: int | None) -> Tensor:
    ids: list[NDArray[Any]] = [example.prompt_ids, example.token_ids]
    if eos_id is not None and example.stopped and example.token_ids[-1] != eos_id:
        ids.append(np.array([eos_id]))
    return torch.from_numpy(np.concatenate(ids).astype(np.int64))
