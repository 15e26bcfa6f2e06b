"""Generation from ids to ids, for one request: a latent student, K tokens a step, and a token-level one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from latentforge.model.chunks import left_pad_count
from latentforge.model.config import StudentConfig
from latentforge.model.decoding.batch import OpenText
from latentforge.model.decoding.slot_decoding import SlotDecoding
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import NonFiniteLogitsError, SamplingParams
from latentforge.model.token_level import TokenLevelModel

FinishReason = Literal["stop", "length", "cancelled"]

_M = TypeVar("_M", bound=LatentModel | TokenLevelModel)


@dataclass(frozen=True)
class GeneratedChunk:
    """What one step wrote.

    Attributes:
        token_ids: up to K ids (one of a token-level student), without the end-of-text id; empty if that came first.
        logprobs: the model's log probability of each id, before temperature and truncation.
        finish_reason: None while there is more to come; "stop" at end of text, "length" at max_tokens or a full
            context, "cancelled" when the caller said so.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason | None = None


class _Generator(Generic[_M]):
    """Generates with a model; calls share nothing but the weights, so threads may run them at once.

    Each call takes memory for its own text, as a :class:`SlotDecoding` of one text, and computes with the weights as
    they are then.
    """

    def __init__(self, model: _M) -> None:
        """Puts the model in evaluation mode."""
        self.model = model
        model.eval()

    def generate(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        params: SamplingParams | None = None,
        eos_id: int | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[GeneratedChunk]:
        """Continues a prompt, step by step.

        A prompt whose length is no multiple of K gets pads on the left of its first chunk, as in training; an empty one
        is the start embedding alone. The first step is computed when the iterator is first advanced.

        Args:
            prompt_ids: ids of the prompt.
            max_tokens: at most so many ids are written.
            params: how tokens are drawn; the default samples at temperature 1.
            eos_id: ends the text; the model's own by default.
            cancel: asked before every step; True ends with finish reason "cancelled".

        Raises:
            ValueError: an id is not in the vocabulary, max_tokens is below 1, or the prompt is too long.
            NonFiniteLogitsError: when the iterator is advanced: the model's logits are no numbers.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens}; ask for at least 1")
        k = self.model.chunk_size
        length = len(prompt_ids) + left_pad_count(len(prompt_ids), k)
        # Whole chunks, the last of which is cut. Weights stay stored as they are: the model may be in training.
        longest = min(self.model.max_tokens, length + max_tokens + left_pad_count(max_tokens, k))
        decoding = SlotDecoding(self.model, 1, longest)
        text = decoding.open(prompt_ids, params or SamplingParams(), logprobs=0)
        return self._run(decoding, text, min(max_tokens, text.room), eos_id, cancel)

    def _run(
        self,
        decoding: SlotDecoding,
        text: OpenText,
        left: int,
        eos_id: int | None,
        cancel: Callable[[], bool] | None,
    ) -> Iterator[GeneratedChunk]:
        eos_id = decoding.eos_id if eos_id is None else eos_id
        while True:
            if cancel is not None and cancel():
                yield GeneratedChunk([], [], "cancelled")
                return
            while text.num_unread:
                decoding.prefill([text], text.num_unread)
            chunk = decoding.step([text])[0]
            if not chunk.finite:
                raise NonFiniteLogitsError("the model's logits are NaN, inf or all -inf; its weights are damaged")
            assert chunk.logprobs is not None
            ids = chunk.token_ids[:left]
            ended = eos_id in ids
            if ended:
                ids = ids[: ids.index(eos_id)]
            left -= len(ids)
            logprobs = chunk.logprobs[: len(ids)]
            if ended or not left:
                yield GeneratedChunk(ids, logprobs, "stop" if ended else "length")
                return
            yield GeneratedChunk(ids, logprobs)


class ChunkGenerator(_Generator[LatentModel]):
    """Generates with a latent student: each step writes a chunk of K tokens."""

    @property
    def config(self) -> StudentConfig:
        return self.model.student.config


class TokenGenerator(_Generator[TokenLevelModel]):
    """Generates with a token-level student: each step writes one token, with the same sampling."""
