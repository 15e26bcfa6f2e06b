"""Control tokens: which they are, and how their places are told from text that only looks like them.

A control token is written with plain characters, ``<|im_end|>``, and so can be anybody's text. Here each one gets a
second spelling of private-use characters that are drawn at random for each process: what a template writes is spelled
so, what a user writes never is, and the tokenizer of :mod:`latentforge.text.respelling` knows no other spelling.
"""

import re
import secrets
from collections.abc import Mapping

from jinja2 import Environment, TemplateSyntaxError

from latentforge.text.errors import TextError
from latentforge.text.tokenizer_files import TokenizerFiles

# U+100000 to U+10FFFD: nobody's characters, which no normaliser touches.
_FIRST_PRIVATE, _NUM_PRIVATE = 0x100000, 0xFFFE
_MARK_CHARACTERS = 6
_LOOKS_LIKE_ONE = re.compile(r"<[|｜].+[|｜]>")


def control_literals(files: TokenizerFiles, ids: Mapping[str, int]) -> dict[int, str]:
    """How a tokenizer's control tokens are written, by id.

    They are its special tokens, those that have a role (bos, eos, pad, …), and added tokens that look like one or that
    its chat template writes: Qwen's ``<|fim_prefix|>`` and ``<tool_call>`` and DeepSeek's ``<｜User｜>`` are called
    ordinary ones by their tokenizers. Blanks, which some tokenizers have as added tokens and templates write as text,
    are none.

    Args:
        files: of the tokenizer.
        ids: of every token, as it is written.
    """
    template = "\0".join(value for _, _, value in _lex(files.chat_template or ""))
    added = files.content.get("added_tokens", [])
    literals = [
        t["content"]
        for t in added
        if t["special"] or _LOOKS_LIKE_ONE.fullmatch(t["content"]) or t["content"] in template
    ]
    literals += [literal for literal in files.named.values() if literal in ids]
    # A single character is in every other text: it is a role's name in some tokenizers, and an ordinary token.
    return {ids[literal]: literal for literal in literals if len(literal.strip(" \t\r\n▁")) > 1}


class ControlTokens:
    """Marks the places of control tokens in texts.

    Args:
        literals: how they are written, by id.
    """

    def __init__(self, literals: Mapping[int, str]) -> None:
        drawn = "".join(chr(_FIRST_PRIVATE + secrets.randbelow(_NUM_PRIVATE)) for _ in range(_MARK_CHARACTERS))
        self._mark, self._end, self._break = drawn[:-2], drawn[-2:], drawn[::-1]
        self.ids = frozenset(literals)
        self.spellings = {token_id: f"{self._mark}{token_id}{self._end}" for token_id in literals}
        self._literals = dict(literals)
        self._spelled = {literal: self.spellings[token_id] for token_id, literal in literals.items()}
        longest_first = sorted(self._spelled, key=len, reverse=True)
        self._literal = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._spelling = re.compile(f"{self._mark}(\\d+){self._end}")

    def check(self, text: str) -> None:
        """
        Raises:
            TextError: the text holds this process's marks, which nobody can know.
        """
        if self._mark in text or self._break in text:
            raise TextError("the text holds the characters that mark control tokens in this process; start it anew")

    def spell(self, text: str) -> str:
        """Every control token that is written in a text, in the second spelling."""
        return self._literal.sub(lambda match: self._spelled[match[0]], text)

    def restore(self, text: str) -> str:
        """The opposite of :meth:`spell`."""
        return self._spelling.sub(lambda match: self._literals[int(match[1])], text)

    def find(self, text: str) -> list[tuple[int, int, int]]:
        """(start, end, id) of what is in the second spelling."""
        return [(m.start(), m.end(), int(m[1])) for m in self._spelling.finditer(text)]

    def has_literal(self, text: str) -> bool:
        """Whether a control token is written in a text in its own characters."""
        return self._literal.search(text) is not None

    def break_up(self, text: str) -> str:
        """The text with marks around each of its characters; blanks at its ends stay at its ends, without any."""
        bare = text.strip()
        if not bare:
            return text
        start = text.index(bare)
        marked = self._break.join(["", *bare, ""])
        return f"{text[:start]}{marked}{text[start + len(bare) :]}"

    def mend(self, text: str) -> str:
        """The opposite of :meth:`break_up`."""
        return text.replace(self._break, "")

    def spell_own(self, template: str) -> str:
        """A template's source with the control tokens that it writes in the second spelling.

        Those that it compares with, looks for and splits at stay: they are what messages say.
        """
        tokens = _lex(template)
        return "".join(
            self.spell(value) if kind == "data" or (kind == "string" and not _inspects(tokens, at)) else value
            for at, (_, kind, value) in enumerate(tokens)
        )


def _lex(template: str) -> list[tuple[int, str, str]]:
    """(line, kind, characters) of a template's source, which they make together; kinds are Jinja's.

    Nothing of one that is no Jinja: it cannot be rendered either, which whoever sends a chat is told.
    """
    try:
        return list(Environment(keep_trailing_newline=True).lex(template))
    except TemplateSyntaxError:
        return []


def _inspects(tokens: list[tuple[int, str, str]], at: int) -> bool:
    """Whether a string of a template is compared, looked for, or the argument of a method, a filter or a test."""
    before = [value for _, kind, value in tokens[:at] if kind not in ("whitespace", "comment")]
    after = [value for _, kind, value in tokens[at + 1 :] if kind not in ("whitespace", "comment")]
    if after[:1] in (["in"], ["=="], ["!="]) or after[:2] == ["not", "in"] or before[-1:] in (["=="], ["!="]):
        return True
    depth = 0
    for place in range(len(before) - 1, 1, -1):
        depth += (before[place] == ")") - (before[place] == "(")
        if depth < 0:
            return before[place - 2] in (".", "|", "is")
        if before[place] in ("{{", "{%", "{{-", "{%-"):
            break
    return False
