"""What decodes many texts at once: texts of any lengths join and leave between steps."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from latentforge.model.sampling import SamplingParams

# An id and its log probability.
TokenLogprob = tuple[int, float]


@dataclass(eq=False)
class OpenText:
    """A text that has a slot; made by :meth:`BatchDecoding.open`, and good until it is closed.

    Attributes:
        num_unread: tokens of its prompt that are still to be read; it may step once there are none.
        room: tokens that it may still be continued by.
    """

    num_unread: int
    room: int


@dataclass(frozen=True)
class WrittenChunk:
    """What one step wrote behind one text.

    Attributes:
        token_ids: as many as the model's chunk has; those behind an end of text mean nothing.
        logprobs: the model's log probability of each, before temperature, penalties and truncation; None where they
            were not asked for.
        likeliest: for each token as many of the likeliest ids as were asked for, most likely first.
        finite: False where a logit that it was drawn from is NaN or infinite; its ids mean nothing then.
    """

    token_ids: list[int]
    logprobs: list[float] | None = None
    likeliest: list[list[TokenLogprob]] | None = None
    finite: bool = True


@dataclass(frozen=True)
class DraftRequest:
    """What is asked of a draft.

    Attributes:
        text: behind which; all of it has been read.
        begun: up to K - 1 ids behind it, which are no whole chunk yet.
        most: tokens of the longest draft.
        least: the draft ends before the token with which the product of its tokens' probabilities falls below.
    """

    text: OpenText
    begun: Sequence[int]
    most: int
    least: float = 0.0


@dataclass(frozen=True)
class Draft:
    """The likeliest next tokens, one after the other; no pads.

    Attributes:
        token_ids: may be none.
        probabilities: the model's, of each behind those before it.
    """

    token_ids: list[int]
    probabilities: list[float]


@dataclass(frozen=True)
class TextLogprobs:
    """Each token's log probability behind those before it; the first one's is that at the beginning of a text.

    Attributes:
        logprobs: one for each token.
        likeliest: for each token as many of the likeliest ids as were asked for, most likely first.
    """

    logprobs: list[float]
    likeliest: list[list[TokenLogprob]]


class BatchDecoding(ABC):
    """Texts in slots of memory that is allocated once, when it is made. Not thread-safe.

    Attributes:
        num_slots: texts that may be open at the same time.
        max_tokens: the longest text, pads of the first chunk included.
        chunk_size: tokens that a step writes.
        vocab_size: ids of the vocabulary.
        eos_id: the model's own end of text.
    """

    num_slots: int
    max_tokens: int
    chunk_size: int
    vocab_size: int
    eos_id: int

    @property
    @abstractmethod
    def num_free(self) -> int:
        """Slots that no text has."""

    @abstractmethod
    def open(self, prompt_ids: Sequence[int], params: SamplingParams, logprobs: int | None = None) -> OpenText:
        """Takes a slot for a text that begins with ``prompt_ids``; nothing is read yet.

        Args:
            prompt_ids: may be none; where their number is no multiple of K, pads go before them, as in training.
            params: how its tokens are drawn.
            logprobs: None for none; else each token's log probability, and so many of the likeliest ids.

        Raises:
            ValueError: an id is not in the vocabulary, or the prompt leaves no room for a step.
            RuntimeError: no slot is free.
        """

    @abstractmethod
    def prefill(self, texts: Sequence[OpenText], max_tokens: int) -> int:
        """Reads the next piece of the texts' prompts, in the order given while they fit ``max_tokens``.

        Several prompts are read at once, and a long one in pieces: one call reads at most one piece of each, and always
        that of the first text with something unread, even if it is longer than ``max_tokens``. Pieces begin at fixed
        places of a prompt, whatever else is read beside it, so that its numbers do not depend on that.

        Returns:
            How many tokens were read; 0 if nothing was left to read.
        """

    @abstractmethod
    def step(self, texts: Sequence[OpenText], forced: Sequence[Sequence[int]] | None = None) -> list[WrittenChunk]:
        """Writes a chunk behind each of the texts, all of which have been read; in their order.

        Args:
            texts: which.
            forced: for each of them up to K ids that the chunk begins with, which are read instead of drawn.

        Raises:
            ValueError: a text is not read yet, has no room left, or is closed.
        """

    @abstractmethod
    def extend(self, text: OpenText, token_ids: Sequence[int]) -> None:
        """Goes on with ids that somebody else wrote; :meth:`prefill` reads them.

        Args:
            text: which.
            token_ids: whole chunks.

        Raises:
            ValueError: they are not, there is no room for them, or one is not in the vocabulary.
        """

    @abstractmethod
    def draft(self, asked: Sequence[DraftRequest]) -> list[Draft]:
        """Drafts behind texts, one for each request; nothing of it is kept. A draft ends where the text's room does.

        Args:
            asked: of different texts.

        Raises:
            ValueError: a text is not read yet or is closed, what is begun is a whole chunk, or an id is not in the
                vocabulary.
        """

    @abstractmethod
    def close(self, text: OpenText) -> None:
        """Frees the text's slot."""

    @abstractmethod
    def score(self, token_ids: Sequence[int], likeliest: int = 0) -> Generator[None, None, TextLogprobs]:
        """Teacher-forced log probabilities of a text, which takes no slot; a bounded piece of work for each ``next()``.

        Args:
            token_ids: at least one.
            likeliest: for each token so many of the likeliest ids as well.

        Returns:
            What the generator returns at its end.

        Raises:
            ValueError: at the first ``next()``: an id is not in the vocabulary, or the text is longer than the context.
        """
