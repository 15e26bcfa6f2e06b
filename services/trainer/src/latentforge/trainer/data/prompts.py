"""What the teacher is asked to continue: chats and texts made of the data's documents, chosen by a seed."""

import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from latentforge.text.documents import Document
from latentforge.text.packed import PackedData
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.recipe import Recipe
from latentforge.trainer.config.sections import GenerateRecipe
from latentforge.trainer.errors import TrainerError

Split = Literal["train", "held-out"]
Messages = tuple[tuple[str, str], ...]

# A byte-level token is seldom longer; a text's first tokens are in its first so many characters.
_CHARACTERS_PER_TOKEN = 16
# Documents looked at beyond those that are wanted, for those that do not fit.
_SPARE = 2


@dataclass(frozen=True)
class Prompt:
    """What is continued, and how.

    Attributes:
        split: whose document it is made of.
        messages: (role, content) of a chat that ends before the assistant's turn; none of a text.
        seed: of the continuations.
        text: without a chat template; None of a chat.
        greedy: whether the likeliest tokens are wanted, once.
    """

    split: Split
    messages: Messages
    seed: int
    text: str | None = None
    greedy: bool = False


@dataclass(frozen=True)
class Chosen:
    """Prompts of one split, how many were wanted, and how many documents were passed over as giving none that fits."""

    prompts: list[Prompt]
    num_wanted: int
    num_passed_over: int


def choose_prompts(
    data: PackedData,
    split: Split,
    recipe: Recipe,
    tokenizer: TextTokenizer,
    limit: int,
    besides: Sequence[Prompt] = (),
) -> Chosen:
    """Chooses a split's prompts by a hash of (seed, document): the same ones each time, few changes when data is added.

    {"messages"} gives what stands before its last assistant turn. {"text"}, and packed data whose documents are not at
    hand, gives the instruction and the first tokens of the text, as a user's message; or with ``text_prompts`` of
    "continued" those tokens alone.

    Args:
        data: of the split.
        split: named in the prompts.
        recipe: says how many, and how they are made.
        tokenizer: the teacher's.
        limit: most tokens that a sequence with its continuation may have.
        besides: of the other split; documents that begin alike make one prompt, which is theirs.

    Raises:
        TrainerError: no prompt fits, or the tokenizer has no chat template.
    """
    settings = recipe.teacher.generate
    count = settings.prompts if split == "train" else settings.held_out_prompts
    room = limit - settings.max_tokens
    if room < settings.prompt_tokens:
        raise TrainerError(
            f"a prompt of teacher.generate.prompt_tokens={settings.prompt_tokens} and "
            f"max_tokens={settings.max_tokens} do not fit the {limit} tokens that data.sequence_length and the teacher "
            "leave; make one of them smaller"
        )
    source = data.source
    documents = _from_packed(data, settings.prompt_tokens, tokenizer) if source is None else source.documents()
    others = {prompt.text or prompt.messages for prompt in besides}
    prompts: dict[Messages | str, Prompt] = {}
    passed_over = 0
    for rank, document in _first(_SPARE * count, documents, settings.seed):
        asked = _asked(document, settings, tokenizer)
        if asked is None or _length(asked, tokenizer) > room:
            passed_over += 1
        elif len(prompts) < count and asked not in prompts and asked not in others:
            # Every service takes a seed of 31 bits.
            seed = int(rank[:8], 16) >> 1
            # The chosen have the smallest ranks, so the first bits of theirs say nothing.
            greedy = int(rank[8:], 16) < settings.greedy_share * 2**32
            messages, text = ((), asked) if isinstance(asked, str) else (asked, None)
            prompts[asked] = Prompt(split, messages, seed, text, greedy)
    if not prompts:
        raise TrainerError(
            f"none of the {split} documents in {data.source or data.folder} makes a prompt of at most {room} tokens "
            f'(data.sequence_length less teacher.generate.max_tokens={settings.max_tokens}): give {{"messages"}} that '
            'end with an assistant turn, or {"text"}; packed chats cannot be used, give the JSONL file as the data'
        )
    return Chosen(list(prompts.values()), count, passed_over)


def _from_packed(data: PackedData, max_tokens: int, tokenizer: TextTokenizer) -> Iterator[Document]:
    for number, ids in enumerate(data.document_beginnings(max_tokens), 1):
        # Special tokens make a chat, which is no text to be continued.
        if not tokenizer.special_ids.intersection(ids):
            yield Document(f"{data.folder}, document {number}", tokenizer.decode(ids), None)


def _first(count: int, documents: Iterator[Document], seed: int) -> list[tuple[str, Document]]:
    """The documents of the smallest hashes with these, copies once; no more than they are kept."""
    kept: dict[str, Document] = {}
    # The largest rank is the first to go.
    ranks: list[int] = []
    for document in documents:
        rank = hashlib.blake2b(document.content.encode(), digest_size=8, salt=seed.to_bytes(16, "little")).hexdigest()
        if rank in kept or (len(kept) == count and int(rank, 16) > -ranks[0]):
            continue
        kept[rank] = document
        heapq.heappush(ranks, -int(rank, 16))
        if len(kept) > count:
            del kept[f"{-heapq.heappop(ranks):016x}"]
    return sorted(kept.items())


def _asked(document: Document, settings: GenerateRecipe, tokenizer: TextTokenizer) -> Messages | str | None:
    """The chat or the text that a document gives; None of one that gives neither."""
    if document.messages is None:
        assert document.text is not None
        max_tokens = settings.prompt_tokens
        ids = tokenizer.encode_texts([document.text[: _CHARACTERS_PER_TOKEN * max_tokens]])[0][:max_tokens]
        # The last token may end inside a character.
        text = tokenizer.decode(ids).rstrip("\ufffd")
        if not text.strip():
            return None
        return text if settings.text_prompts == "continued" else (("user", f"{settings.instruction}\n\n{text}"),)
    if any(m.get("tool_calls") for m in document.messages):
        # A gateway takes words, and without its calls such a chat is another.
        return None
    turns = [(str(m["role"]), str(m["content"])) for m in document.messages]
    answers = [i for i, (role, _) in enumerate(turns) if role == "assistant"]
    before = turns[: answers[-1]] if answers else turns
    while before and before[-1][0] == "assistant":
        before.pop()
    return tuple(before) or None


def _length(asked: Messages | str, tokenizer: TextTokenizer) -> int:
    if isinstance(asked, str):
        return len(tokenizer.begin(tokenizer.encode_texts([asked])[0]))
    chat = [{"role": role, "content": content} for role, content in asked]
    return len(tokenizer.encode_chat(chat, to_answer=True))


def digest(prompts: list[Prompt]) -> str:
    """Tells one list of prompts from another; of chats that are not greedy as when there was nothing else."""
    return hashlib.sha256(json.dumps([_told(p) for p in prompts]).encode()).hexdigest()


def _told(prompt: Prompt) -> list[object]:
    told: list[object] = [prompt.split, prompt.messages if prompt.text is None else prompt.text, prompt.seed]
    return [*told, True] if prompt.greedy else told
