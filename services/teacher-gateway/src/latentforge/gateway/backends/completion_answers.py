"""What servers answer to POST /v1/completions, as far as they agree. Meant for a thread: it may be megabytes of JSON.

What a kind of server adds to a choice is a class that extends one of these; whatever else the answer holds is skipped.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from latentforge.gateway.backends.base import BackendError


class AnsweredChoice(msgspec.Struct, gc=False):
    """One continuation; the fields that were not asked for are None."""

    index: int
    finish_reason: str | None = None


class PromptLogprob(msgspec.Struct, gc=False):
    """What is said of one token at one position of a prompt: nats, and 1 for the most probable."""

    logprob: float
    rank: int | None


class ScoredChoice(AnsweredChoice, gc=False):
    """A continuation with ``prompt_logprobs``, vLLM's field: for each token of the prompt what is said by id."""

    prompt_logprobs: list[dict[int, PromptLogprob] | None] | None = None


ChoiceT = TypeVar("ChoiceT", bound=AnsweredChoice)


class AnsweredUsage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None


class AnsweredCompletion(msgspec.Struct, Generic[ChoiceT], gc=False):
    """``system_fingerprint`` changes with the server's version and configuration, not with the weights."""

    choices: list[ChoiceT]
    usage: AnsweredUsage | None = None
    system_fingerprint: str | None = None


@dataclass(frozen=True)
class CompletionReader(Generic[ChoiceT]):
    """Reads answers whose choices are of one class; ``server`` is what errors call who wrote them."""

    decoder: "msgspec.json.Decoder[AnsweredCompletion[ChoiceT]]"
    server: str

    def read(self, body: bytes, count: int) -> AnsweredCompletion[ChoiceT]:
        """An answer with its ``count`` choices in the order of the prompts.

        Raises:
            BackendError: it is not the JSON of a completion, or has other choices.
        """
        try:
            answer = self.decoder.decode(body)
        except msgspec.DecodeError as error:
            raise BackendError(f"{self.server}'s answer to /v1/completions cannot be read: {error}") from None
        answer.choices.sort(key=lambda choice: choice.index)
        if [choice.index for choice in answer.choices] != list(range(count)):
            raise BackendError(f"{self.server} gives {len(answer.choices)} choices where {count} were asked for")
        return answer
