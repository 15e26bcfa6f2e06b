"""An engine that calls the drafter as vLLM does, with a teacher whose words are known, and tiny real checkpoints."""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from latentforge.model.student import Student
from latentforge.vllm import StudentDrafter
from latentforge.vllm.cpu_sampling import expanded
from latentforge.vllm.settings import DrafterSettings
from tests.tiny_checkpoints import VOCABULARY, checkpoints, one_thread, publish, tokenizer_json

__all__ = ["checkpoints", "one_thread", "publish", "tokenizer_json"]

NUM_DRAFT_TOKENS = 6
MAX_TOKENS = 512
# Says the token behind a text.
Teacher = Callable[[Sequence[int]], int]


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM is not here; of it the drafter asks its version, and what its sampler spreads over drafts."""
    names = "vllm", "vllm.v1", "vllm.v1.sample", "vllm.v1.sample.rejection_sampler"
    modules = [ModuleType(name) for name in names]
    modules[0].__dict__["__version__"] = "0.32.0"
    modules[-1].__dict__["expand_batch_to_tokens"] = expanded
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def teacher_folder(tokenizer_json: str, tmp_path: Path) -> Path:
    """What vLLM serves, as far as the drafter looks at it."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    return folder


def engine_config(folder: Path, **changes: Any) -> Any:
    """A VllmConfig's parts that the drafter reads; changes are by a name of any part."""
    parts: dict[str, dict[str, Any]] = {
        "speculative_config": {"num_speculative_tokens": NUM_DRAFT_TOKENS},
        "model_config": {
            "model": str(folder),
            "tokenizer": str(folder),
            "tokenizer_revision": None,
            "max_model_len": MAX_TOKENS,
            "vocab_size": VOCABULARY,
            "runner_type": "generate",
            "is_encoder_decoder": False,
            "enable_prompt_embeds": False,
        },
        "scheduler_config": {"async_scheduling": False},
        "parallel_config": {"world_size": 1, "data_parallel_size": 1},
        "device_config": {"device_type": "cpu"},
    }
    for name, value in changes.items():
        for part in parts.values():
            if name in part:
                part[name] = value
    config = SimpleNamespace(**{name: SimpleNamespace(**part) for name, part in parts.items()})
    config.use_v2_model_runner = changes.get("use_v2_model_runner", False)
    config.model_config.get_vocab_size = lambda: parts["model_config"]["vocab_size"]
    return config


MakeDrafter = Callable[..., StudentDrafter]


@pytest.fixture
def make_drafter(checkpoints: Path, teacher_folder: Path) -> Iterator[MakeDrafter]:
    """Makes drafters as vLLM does, loads their model and ends their threads."""
    made: list[StudentDrafter] = []

    def make(changes: dict[str, Any] | None = None, **settings: Any) -> StudentDrafter:
        values = {
            "latentforge_checkpoints": checkpoints,
            "latentforge_poll_seconds": 0.02,
            # Else drafts are as long as this machine's speed makes them.
            "latentforge_least_confidence": 0.0,
            # Teachers here write one token for ever, and what is tried is mostly the student.
            "latentforge_drafts_from": "student",
            **settings,
        }
        config = engine_config(teacher_folder, **(changes or {}))
        drafter = StudentDrafter(config, DrafterSettings(**values), CollectorRegistry())
        made.append(drafter)
        drafter.load_model(object())
        return drafter

    yield make
    for drafter in made:
        drafter.close()


class FakeEngine:
    """Rows of texts, verified greedily and handed to the drafter in arrays that are reused, as vLLM's are.

    Attributes:
        texts: by request; whole, in ids.
        drafts: of the last step, by request.
        accepted: for every draft that was verified, how many of its tokens the teacher took.
    """

    def __init__(self, drafter: StudentDrafter, teacher: Teacher) -> None:
        self._drafter, self._teacher = drafter, teacher
        self.texts: dict[str, list[int]] = {}
        self.drafts: dict[str, list[int]] = {}
        self.accepted: list[int] = []
        self._order = random.Random(0)
        # What lies behind a text is whatever was there before.
        self._ids = np.full((8, MAX_TOKENS), VOCABULARY - 1, dtype=np.int32)
        self._lengths = np.zeros(8, dtype=np.int32)

    def add(self, name: str, prompt: Sequence[int]) -> None:
        self.texts[name] = list(prompt)

    def finish(self, name: str) -> None:
        del self.texts[name]
        self.drafts.pop(name, None)

    def step(self, reading: Sequence[str] = ()) -> None:
        """Writes behind every text, in an order of rows that is new each time.

        Args:
            reading: texts whose prompts are still being read, which get no token.
        """
        names = [*self.texts]
        self._order.shuffle(names)
        sampled = [[] if name in reading else self._verify(name) for name in names]
        for row, (name, new) in enumerate(zip(names, sampled, strict=True)):
            text = self.texts[name] = self.texts[name] + new
            self._ids[row, : len(text)] = text
            self._lengths[row] = len(text)
        with torch.inference_mode():
            found = self._drafter.propose(sampled, self._lengths, self._ids, slot_mappings=None)
        assert len(found) == len(names)
        assert all(len(draft) <= NUM_DRAFT_TOKENS for draft in found)
        self.drafts = dict(zip(names, found, strict=True))

    def _verify(self, name: str) -> list[int]:
        """Tokens of the draft that the teacher would have written, and one of its own."""
        draft = self.drafts.get(name, [])
        new: list[int] = []
        for token in [*draft, None]:
            new.append(self._teacher([*self.texts[name], *new]))
            if new[-1] != token:
                break
        if name in self.drafts:
            self.accepted.append(len(new) - 1)
        return new


def always(token: int) -> Callable[[Student], object]:
    """Shapes a student that writes one token for ever."""

    def shape(student: Student) -> None:
        student.bias[token] = 50.0

    return shape


def figure(drafter: StudentDrafter, name: str, **labels: str) -> float:
    """A metric's value."""
    value = drafter._metrics.registry.get_sample_value(f"latentforge_drafter_{name}", labels)
    return value or 0.0
