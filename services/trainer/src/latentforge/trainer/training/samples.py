"""Samples of what a student writes, at every publish, from the same prompts with the same random numbers."""

from collections.abc import Iterable, Sequence

import torch

from latentforge.core.manifest import TextSample
from latentforge.model.batch_generation import generate_batch
from latentforge.model.chunks import left_pad_count
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import NonFiniteLogitsError, SamplingParams
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.training.beginnings import beginnings

# Of a held-out sequence, so many tokens are a prompt.
_PROMPT_TOKENS = 32


class Sampler:
    """Draws a run's samples.

    Args:
        run: its recipe says how many, after which prompts and how long.
        held_out: ids of the sequences that validations look at, whose beginnings are prompts where the recipe names
            none.
        max_tokens: the student's context.

    Raises:
        TrainerError: a prompt of the recipe has no token, or no room in the context beside a chunk.
    """

    def __init__(self, run: RunContext, held_out: Iterable[Sequence[int]], max_tokens: int) -> None:
        self._tokenizer, self._recipe, self._seed = run.tokenizer, run.recipe.student, run.recipe.seed
        most = max_tokens - 2 * run.recipe.chunk_size
        asked = self._recipe.sample_prompts
        prompts: Iterable[str] = (
            asked if asked is not None else beginnings(self._tokenizer, held_out, min(_PROMPT_TOKENS, most))
        )
        # Each once, in their order.
        chosen = [*dict.fromkeys(prompts)][: self._recipe.samples]
        self._prompts = {prompt: self._ids(prompt, most) for prompt in chosen}

    def draw(self, model: LatentModel | TokenLevelModel) -> tuple[TextSample, ...]:
        """What a student writes after each prompt at temperature 1, up to its end of text.

        Draws from generators of its own, so that training's random numbers stay as they are. The same weights and
        seed write the same text. A student whose logits are not finite writes nothing.

        Args:
            model: left in evaluation mode.
        """
        params = SamplingParams(temperature=1.0, seed=self._seed)
        samples = []
        for prompt, ids in self._prompts.items():
            room = model.max_tokens - len(ids) - left_pad_count(len(ids), model.chunk_size)
            num_tokens = min(self._recipe.sample_tokens, room)
            try:
                written = generate_batch(model, torch.tensor([ids], device=model.device), num_tokens, params)
            except NonFiniteLogitsError:
                # Publishing refuses such a student, and says more.
                return ()
            drawn = written.token_ids[0, : int(written.lengths[0])].tolist()
            samples.append(TextSample(prompt=prompt, text=self._tokenizer.decode(drawn, skip_special=True)))
        return tuple(samples)

    def _ids(self, prompt: str, most: int) -> list[int]:
        ids = self._tokenizer.begin(self._tokenizer.encode(prompt))
        if not 0 < len(ids) <= most:
            raise TrainerError(
                f"student.sample_prompts: {prompt[:40]!r} has {len(ids)} tokens; give from 1 to {most}, so that a "
                "sample fits the student's context beside it"
            )
        return ids
