"""On-policy text: what the student writes itself, with the teacher's rows on it."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentforge.model.batch_generation import generate_batch
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.sampling import SamplingParams
from latentforge.model.token_level import TokenLevelModel
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.packed import PackedData
from latentforge.trainer.data.sequence_order import step_random
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.targets.continuation_batches import lay_out
from latentforge.trainer.teacher.continuations import Continuation
from latentforge.trainer.teacher.failures import Failures
from latentforge.trainer.teacher.rows import RowSource


class OnPolicyText:
    """Batches of ``student.on_policy``: functions of the seed, the step and the student as it is at that step.

    Taught on other people's text alone, a student never sees what it does itself, such as beginning to repeat a word,
    and never hears what the teacher would write then (Agarwal et al., "On-Policy Distillation of Language Models",
    2024).
    """

    def __init__(self, run: RunContext, train: PackedData, rows: RowSource, failures: Failures) -> None:
        """Takes prompts from ``train``, and the teacher's rows, as sparse as all others, from ``rows``."""
        self._run, self._train, self._rows, self._failures = run, train, rows, failures
        student, self._recipe = run.recipe.student, run.recipe.student.on_policy
        self._first = self._recipe.begin * student.optim.steps
        # As many as fit the tokens of a step of text.
        longest = self._recipe.prompt_tokens + self._recipe.max_tokens + run.recipe.chunk_size
        self.per_batch = max(1, student.optim.batch_size * run.recipe.data.sequence_length // longest)

    def is_due(self, step: int) -> bool:
        """Whether the student writes what step ``step`` learns from."""
        return self._recipe.share > 0 and step >= self._first and self._random(step)[0] < self._recipe.share

    def num_tokens(self, steps: int) -> int:
        """Tokens that it writes at most in so many steps."""
        return sum(map(self.is_due, range(steps))) * self.per_batch * self._recipe.max_tokens

    def batch(self, step: int, model: LatentModel | TokenLevelModel) -> StudentBatch:
        """What the student writes after prompts that end with a chunk, and the teacher's rows for that.

        Raises:
            TrainerError: the teacher refused.
            TeacherLostError, Interrupted: while its rows were waited for.
        """
        recipe, tokenizer = self._run.recipe, self._run.tokenizer
        _, random = self._random(step)
        prompts = self._prompts(random)
        params = SamplingParams(temperature=self._recipe.temperature, seed=int(random.integers(2**63)))
        written = generate_batch(model, prompts, self._recipe.max_tokens, params)
        model.train()
        # All processes write all of it, alike; each asks about its own.
        share = self._run.ranks.share(self.per_batch)
        # The end of a text is written, too.
        texts = [
            torch.cat([prompt, ids[: length + 1]])
            for prompt, ids, length in zip(prompts, written.token_ids.cpu(), written.lengths.tolist(), strict=True)
        ][share]
        # Asked for now and waited for: what is written hangs on the student as the last step left it.
        answers = self._rows.take(self._rows.ask(texts))
        rows = self._failures.rows_of(answers, [f"on-policy text {i} of step {step}" for i in range(len(texts))])
        examples = [self._example(text.numpy().astype(np.uint32), r) for text, r in zip(texts, rows, strict=True)]
        batch = lay_out(examples, [0] * len(examples), recipe, tokenizer.pad_id, None)
        return replace(batch, on_policy=True, first=share.start, of=self.per_batch)

    def _example(self, text: NDArray[np.uint32], rows: SparseRows) -> Continuation:
        prompt, written = np.split(text, [self._recipe.prompt_tokens])
        return Continuation(prompt, written, rows, stopped=False)

    def _random(self, step: int) -> tuple[float, np.random.Generator]:
        """What decides whether a step is due, and what everything else in it is drawn from.

        The same generator for both, less its first number: whoever asks whether a step is due, and how often, changes
        nothing of what is drawn in it.
        """
        random = step_random(self._run.recipe.seed, step)
        return random.random(), random

    def _prompts(self, random: np.random.Generator) -> Tensor:
        """Places of the training text, int64 [b, prompt_tokens]; they begin with bos where sequences do."""
        length = self._recipe.prompt_tokens
        found = []
        for index in random.integers(len(self._train), size=self.per_batch):
            sequence = torch.from_numpy(self._train.sequence(int(index)))
            start = int(random.integers(len(sequence) - length + 1))
            found.append(sequence[start : start + length])
        prompts = torch.stack(found)
        if self._train.meta.bos_id is not None:
            prompts[:, 0] = self._train.meta.bos_id
        return prompts
