"""Prompts: what a request says, as ids that fit the model."""

from collections.abc import Sequence
from dataclasses import dataclass

from latentforge.inference.rest.schemas.common import SampledRequest
from latentforge.model.chunks import left_pad_count
from latentforge.model.sampling import SamplingParams
from latentforge.snapshots.snapshot import Snapshot
from latentforge.text.chat_template import Message
from latentforge.text.errors import ChatError


class PromptError(ValueError):
    """A request that does not fit the model; ``param`` names the field."""

    def __init__(self, param: str, message: str, code: str = "context_length_exceeded") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@dataclass(frozen=True)
class EncodedPrompt:
    """What a text begins with.

    Attributes:
        ids: as the model reads them.
        text: how they read, special tokens left out.
        room: tokens that may follow.
    """

    ids: Sequence[int]
    text: str
    room: int


def encode_text(
    snapshot: Snapshot, text: str, *, parse_special_tokens: bool = False, writes: bool = True
) -> EncodedPrompt:
    """A text as a prompt; its bytes are counted before it is tokenised.

    Args:
        writes: something is to follow it, so that it must leave room for a step.

    Raises:
        PromptError: it is longer than the context.
    """
    check_bytes(snapshot, len(text.encode()), "prompt")
    ids = snapshot.encode(text, parse_special_tokens=parse_special_tokens)
    return EncodedPrompt(ids, text, room_behind(snapshot, ids, "prompt", writes=writes))


def encode_ids(snapshot: Snapshot, ids: Sequence[int], *, writes: bool = True) -> EncodedPrompt:
    """Ids as a prompt, as they are.

    Raises:
        PromptError: one is none of the model's, or they are longer than the context.
    """
    room = room_behind(snapshot, ids, "prompt", writes=writes)
    check_ids(snapshot, ids, "prompt")
    return EncodedPrompt(ids, snapshot.decode(list(ids)), room)


def encode_chat(snapshot: Snapshot, messages: Sequence[Message]) -> EncodedPrompt:
    """A chat that the assistant is to answer, as the checkpoint's template writes it.

    Raises:
        PromptError: there is no template, it refuses the messages, or they are longer than the context.
    """
    check_bytes(snapshot, sum(len(message["content"].encode()) for message in messages), "messages")
    if not snapshot.tokenizer.has_chat_template:
        raise PromptError(
            "messages",
            f"{snapshot.id} has no chat template, so it cannot be asked in messages; send text to /v1/completions",
            code="no_chat_template",
        )
    try:
        ids = snapshot.tokenizer.begin(snapshot.tokenizer.encode_chat(messages, to_answer=True))
    except ChatError as error:
        raise PromptError("messages", str(error), code="invalid_value") from None
    return EncodedPrompt(ids, "", room_behind(snapshot, ids, "messages"))


def check_bytes(snapshot: Snapshot, num_bytes: int, name: str) -> None:
    """Raises PromptError for a text that is too long however it is tokenised."""
    if num_bytes > snapshot.max_prompt_bytes:
        longest = snapshot.max_prompt_tokens
        raise PromptError(
            name,
            f"{name} has {num_bytes} bytes, but {snapshot.id} takes at most {longest} tokens, which are at most "
            f"{snapshot.max_prompt_bytes} bytes; shorten it",
        )


def check_ids(snapshot: Snapshot, ids: Sequence[int], name: str) -> None:
    """Raises PromptError for an id that the model does not have."""
    size = snapshot.decoding.vocab_size
    wrong = next((i for i in ids if not 0 <= i < size), None)
    if wrong is not None:
        raise PromptError(
            name,
            f"{name} names id {str(wrong)[:40]}, but {snapshot.id} has ids from 0 to {size - 1}; "
            "use its tokenizer, or /tokenize",
            code="invalid_value",
        )


def always_fits(snapshot: Snapshot) -> int:
    """Tokens of prompt and answer together that fit however they are shared: the prompt is padded to whole chunks."""
    return snapshot.max_context_tokens - snapshot.decoding.chunk_size + 1


def room_behind(snapshot: Snapshot, ids: Sequence[int], name: str, *, writes: bool = True) -> int:
    """Tokens that may follow a prompt; raises PromptError where that is too long, or leaves no room for a step."""
    longest = snapshot.max_prompt_tokens if writes else snapshot.max_context_tokens
    if len(ids) > longest:
        raise PromptError(name, f"{name} has {len(ids)} tokens, but {snapshot.id} takes at most {longest}; shorten it")
    return snapshot.max_context_tokens - len(ids) - left_pad_count(len(ids), snapshot.decoding.chunk_size)


def tokens_to_write(
    snapshot: Snapshot, prompt: EncodedPrompt, asked: int | None, default: int, *, name: str = "max_tokens"
) -> int:
    """How many tokens are written at most: a default is lowered to what fits, a number that was asked for is not.

    Raises:
        PromptError: the number does not fit.
    """
    if asked is None:
        return min(default, prompt.room)
    if asked > prompt.room:
        raise PromptError(
            name,
            f"{name} is {str(asked)[:40]}, but after a prompt of {len(prompt.ids)} tokens {snapshot.id} has room for "
            f"{prompt.room} of its {snapshot.max_context_tokens}; ask for at most {prompt.room}",
        )
    return asked


def sampling_of(snapshot: Snapshot, body: SampledRequest, seed: int) -> SamplingParams:
    """How a text is drawn.

    Raises:
        PromptError: ``logit_bias`` names an id that the model does not have.
    """
    check_ids(snapshot, list(body.logit_bias), "logit_bias")
    return body.sampling.model_copy(update={"seed": seed})
