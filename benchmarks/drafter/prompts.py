"""What is asked for: 64 prompts of each of three domains, none of which anything of ours is trained on.

Documentation and Python are excerpts of :data:`latentforge.trainer.data.packages.HELD_OUT_PACKAGES` and of this
repository's own pages, chat is questions that were written for this benchmark. ``prompts.jsonl`` names each one's
source, ``LICENSES.txt`` has the packages' licences.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from latentforge.text.tokenizer import TextTokenizer

Domain = Literal["documentation", "chat", "python"]
DOMAINS: tuple[Domain, ...] = get_args(Domain)
_FILE = Path(__file__).with_name("prompts.jsonl")


@dataclass(frozen=True)
class DrafterPrompt:
    """One line of the file.

    Attributes:
        text: the beginning of a text, or what a user says.
        source: where it is from: package, version and place.
        licence: that it is under.
    """

    domain: Domain
    text: str
    source: str
    licence: str


def prompts(per_domain: int | None = None) -> list[DrafterPrompt]:
    """The first ``per_domain`` of each domain, domain after domain; None takes all."""
    lines = _FILE.read_text(encoding="utf-8").splitlines()
    found = [DrafterPrompt(**json.loads(line)) for line in lines]
    return [prompt for domain in DOMAINS for prompt in [p for p in found if p.domain == domain][:per_domain]]


def prompt_ids(asked: Sequence[DrafterPrompt], model: Path) -> list[list[int]]:
    """Ids of each: what a user says in the model's chat template, the rest as it is.

    Raises:
        TextError: the folder has no tokenizer, or no chat template.
    """
    tokenizer = TextTokenizer(model)
    return [
        tokenizer.encode_chat([{"role": "user", "content": prompt.text}], to_answer=True)
        if prompt.domain == "chat"
        else tokenizer.encode(prompt.text)
        for prompt in asked
    ]
