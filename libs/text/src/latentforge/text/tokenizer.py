"""The one tokenizer wrapper: text, chats and prompts to ids, and ids to text.

Text is text. What a user, a document or a message of a chat says never becomes a control token, whatever it looks like:
only a chat template makes those, ids that are sent as ids, and a prompt whose sender asks for it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentforge.text.chat_template import ChatTemplate, Message
from latentforge.text.errors import ChatError, TextError
from latentforge.text.vocabulary import Vocabulary


class TextTokenizer(Vocabulary):
    """A tokenizer's vocabulary with its chat template, and the ids that end and begin texts.

    Args:
        folder: holds tokenizer.json, and where there are any tokenizer_config.json and chat_template.jinja.
        eos_id: id that ends a document; None takes the tokenizer's end-of-text.
        pad_id: id that fills first chunks; None takes the tokenizer's pad.
        bos: whether sequences begin with the tokenizer's bos; None does as the tokenizer itself does.
        template_arguments: variables that the chat template is rendered with.
        contents: what the folder's files hold, by name, where they have been read already.

    Attributes:
        own_bos_id: what the tokenizer itself begins a sequence with; None where that is nothing.
        bos_id: what sequences begin with here, see :meth:`begin`; None for nothing.
        text_end_ids: ids that end a text: the end of text, and those that the model's configuration names.
        end_ids: ids that end what an assistant says: these, and what the chat template puts behind an assistant's
            words.

    Raises:
        TextError: there is no tokenizer in the folder that can be read, or it has no bos and ``bos`` is true.
    """

    def __init__(
        self,
        folder: Path,
        *,
        eos_id: int | None = None,
        pad_id: int | None = None,
        bos: bool | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        contents: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__(folder, contents)
        self._eos_id = self._named("eos_token") if eos_id is None else eos_id
        self._pad_id = self._named("pad_token") if pad_id is None else pad_id
        self._template_arguments = dict(template_arguments or {})
        self._template = None
        if self._files.chat_template is not None:
            self._template = ChatTemplate(
                self._files.chat_template, self._control, self._files.named, self._template_arguments
            )
        ends = (self._eos_id, self._named("eos_token"), *self._files.model_eos_ids)
        self.text_end_ids = frozenset(i for i in ends if i is not None)
        turn_end = None if self._template is None else self._template.turn_end_id()
        self.end_ids = self.text_end_ids if turn_end is None else self.text_end_ids | {turn_end}
        self.own_bos_id = self._own_bos()
        self.bos_id = self._chosen_bos(bos)

    @property
    def eos_id(self) -> int:
        """
        Raises:
            TextError: none was given, and the tokenizer has none.
        """
        if self._eos_id is None:
            raise TextError(f"{self.folder}: the tokenizer defines no eos_id; {_say('eos')}")
        return self._eos_id

    @property
    def pad_id(self) -> int:
        """
        Raises:
            TextError: none was given, and the tokenizer has none.
        """
        if self._pad_id is None:
            raise TextError(f"{self.folder}: the tokenizer defines no pad_id; {_say('pad')}")
        return self._pad_id

    def spec(self) -> dict[str, Any]:
        """What another process makes the same one of, in words of JSON: folder, arguments and, to compare, the
        fingerprint."""
        return {
            "folder": str(self.folder),
            "fingerprint": self.fingerprint,
            "arguments": {
                "eos_id": self._eos_id,
                "pad_id": self._pad_id,
                "bos": self.bos_id is not None,
                "template_arguments": self._template_arguments,
            },
        }

    @property
    def has_chat_template(self) -> bool:
        """Whether chats can be encoded."""
        return self._template is not None

    def check_ids(self) -> None:
        """Raises TextError unless there are an end-of-text id and a pad id, and they are two."""
        if self.eos_id == self.pad_id:
            raise TextError(
                f"{self.folder}: eos_id and pad_id are both {self.pad_id}; {_say('pad')} to an id that no text has"
            )

    def encode_chat(self, messages: Sequence[Message], *, to_answer: bool = False) -> list[int]:
        """Ids of one chat; as :meth:`encode_chats`."""
        return self.encode_chats([messages], to_answer=to_answer)[0]

    def encode_chats(self, chats: Sequence[Sequence[Message]], *, to_answer: bool = False) -> list[list[int]]:
        """Ids of chats, rendered with the tokenizer's chat template.

        Args:
            chats: messages with role and content.
            to_answer: ends each with the opening of the assistant's turn.

        Raises:
            ChatError: there is no template, or it cannot render a chat.
        """
        if not chats:
            return []
        return self._encoded(self._respelled, [self.rendered(chat, to_answer=to_answer) for chat in chats])

    def rendered(self, chat: Sequence[Message], *, to_answer: bool = False) -> str:
        """A chat's text, control tokens in their second spelling, for :meth:`encode_long`; as :meth:`encode_chats`."""
        if self._template is None:
            raise ChatError(f"{self.folder} has no chat template; give text")
        return self._template.render(chat, to_answer=to_answer)

    def begin(self, ids: Sequence[int]) -> list[int]:
        """A sequence that begins with ``ids``: the bos is put before them where sequences have one and ids have not."""
        return list(ids) if self.bos_id is None or list(ids[:1]) == [self.bos_id] else [self.bos_id, *ids]

    def _named(self, role: str) -> int | None:
        return self._ids.get(self._files.named.get(role, ""))

    def _own_bos(self) -> int | None:
        """What the tokenizer puts before a text: as its configuration says, which is also how a checkpoint keeps a
        run's choice; where that says nothing, what the post-processor does.
        """
        if self._files.adds_bos is not None:
            return self._named("bos_token") if self._files.adds_bos else None
        plain: list[int] = self._parsing.encode("a", add_special_tokens=False).ids
        whole: list[int] = self._parsing.encode("a", add_special_tokens=True).ids
        return whole[0] if whole[:1] != plain[:1] and whole[1 : 1 + len(plain)] == plain else None

    def _chosen_bos(self, bos: bool | None) -> int | None:
        if bos is None:
            return self.own_bos_id
        if not bos:
            return None
        found = self._named("bos_token") if self.own_bos_id is None else self.own_bos_id
        if found is None:
            raise TextError(f"{self.folder}: the tokenizer has no bos token; leave --bos and data.bos out")
        return found


def _say(name: str) -> str:
    return f"give --{name}-id, or set data.{name}_id in the recipe"
