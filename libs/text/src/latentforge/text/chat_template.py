"""Chats as text, in which the template's control tokens can be told from what messages say."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from latentforge.text.control_tokens import ControlTokens
from latentforge.text.errors import ChatError

# A template writes them into control tokens of its own ('<|' + role + '|>'), so they are never just any text.
ROLES = ("system", "user", "assistant", "tool")
Message = Mapping[str, Any]


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        source: in Jinja.
        control: the tokenizer's control tokens.
        named: tokens that the template can name, like eos_token.
        arguments: its other variables.
    """

    def __init__(
        self, source: str, control: ControlTokens, named: Mapping[str, str], arguments: Mapping[str, Any]
    ) -> None:
        self._source, self._control, self._named, self._arguments = source, control, dict(named), dict(arguments)

    def render(self, messages: Sequence[Message], *, to_answer: bool) -> str:
        """A chat's text, in which exactly the control tokens of the template are in the second spelling.

        The text is what the template makes of the messages as they are, whatever it looks for in them. It is rendered
        once more with its own control tokens spelled otherwise: what is left in plain characters was said, or was made
        of what was said, by leaving out or changing characters. A template that makes control tokens of pieces does not
        have them to be spelled; it is rendered with marks between all characters of what was said instead, and what has
        none is its own. Either must give the same text, or the template has acted on what was changed.

        Args:
            messages: with role and content; what else they have is the template's affair.
            to_answer: ends with the opening of the assistant's turn.

        Raises:
            ChatError: a role is unknown, the template refuses the messages, or it cannot be told what is its own.
        """
        control = self._control
        for message in messages:
            if message.get("role") not in ROLES:
                raise ChatError(f"a message has the role {message.get('role')!r}; roles are {', '.join(ROLES)}")
        for text in strings_of([{name: value for name, value in m.items() if name != "role"} for m in messages]):
            control.check(text)
        plain = self._jinja(self._source, self._named, messages, to_answer)
        own = self._own(messages, to_answer)
        if control.restore(own) == plain and not (control.has_literal(own) and self._is_composed(messages, to_answer)):
            return own
        broken = self._jinja(self._source, self._named, [self._said(m, control.break_up) for m in messages], to_answer)
        if control.mend(broken) == plain:
            return control.mend(control.spell(broken))
        raise ChatError(
            "the chat template makes its control tokens of pieces and acts on what messages say: what they say cannot "
            "be told from the template's own; change it, or render the chat yourself and send it as a prompt"
        )

    def turn_end_id(self) -> int | None:
        """The control token that the template puts behind an assistant's words; None where it puts none there."""
        said = "An answer."
        chat = [{"role": "user", "content": "A question."}, {"role": "assistant", "content": said}]
        try:
            text = self.render(chat, to_answer=False)
        except ChatError:
            return None
        before, _, after = text.rpartition(said)
        behind = self._control.find(after)[:1]
        return next((token_id for start, _, token_id in behind if before and not after[:start].strip()), None)

    def _own(self, messages: Sequence[Message], to_answer: bool) -> str:
        named = {name: self._control.spell(token) for name, token in self._named.items()}
        return self._jinja(self._own_source, named, messages, to_answer)

    @cached_property
    def _own_source(self) -> str:
        return self._control.spell_own(self._source)

    @cached_property
    def _looked_up(self) -> frozenset[str]:
        return frozenset(re.findall(r"\w+", self._source)) | {"role"}

    def _said(self, message: Message, change: Callable[[str], str]) -> Message:
        """A message with every string in it changed but its role, and but the names by which the template finds it."""

        def changed(value: Any) -> Any:
            if isinstance(value, str):
                return change(value)
            if isinstance(value, Mapping):
                return {changed_name(name): changed(item) for name, item in value.items()}
            return [changed(item) for item in value] if isinstance(value, list) else value

        def changed_name(name: str) -> str:
            return name if name in self._looked_up else change(name)

        return {changed_name(name): value if name == "role" else changed(value) for name, value in message.items()}

    def _is_composed(self, messages: Sequence[Message], to_answer: bool) -> bool:
        """Whether the template makes control tokens of pieces, which no change of its source can show."""
        neutral = [self._said(message, lambda _: "a") for message in messages]
        try:
            return self._control.has_literal(self._own(neutral, to_answer))
        except ChatError:
            # It wants to be told something else than this, so it cannot be known.
            return True

    def _jinja(self, source: str, named: Mapping[str, str], messages: Sequence[Message], to_answer: bool) -> str:
        # A second of every command's start, which few need.
        from transformers.utils.chat_template_utils import render_jinja_template

        given = [{name: value for name, value in message.items() if value is not None} for message in messages]
        try:
            text: str = render_jinja_template(
                [given], chat_template=source, add_generation_prompt=to_answer, **{**named, **self._arguments}
            )[0][0]
        except Exception as error:  # a template is a program and raises what it likes
            raise ChatError(f"the chat template refuses these messages: {error}") from None
        return text


def strings_of(value: Any) -> list[str]:
    """All strings in a part of a message, whatever it is made of: values and names."""
    if isinstance(value, str):
        return [value]
    items = [*value, *value.values()] if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [s for item in items for s in strings_of(item)]
