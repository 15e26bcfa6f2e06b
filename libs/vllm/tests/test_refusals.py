"""Engines and students that the drafter does not know are refused before anything is served, with what to change."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from latentforge.core.settings import SettingsError
from latentforge.vllm import StudentDrafter
from latentforge.vllm.drafted_teacher import EngineError, check_release
from latentforge.vllm.settings import DrafterSettings

from .conftest import FakeEngine, MakeDrafter, always, engine_config, figure

Publish = Callable[..., Path]


def make(config: Any, **settings: Any) -> StudentDrafter:
    return StudentDrafter(config, DrafterSettings(**settings), CollectorRegistry())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_v2_model_runner": True}, "unset VLLM_USE_V2_MODEL_RUNNER"),
        ({"async_scheduling": True}, "--async-scheduling"),
        ({"world_size": 2}, "world_size is 2.*--tensor-parallel-size"),
        ({"data_parallel_size": 2}, "data_parallel_size is 2"),
        ({"runner_type": "pooling"}, "nothing can be drafted"),
        ({"is_encoder_decoder": True}, "nothing can be drafted"),
        ({"enable_prompt_embeds": True}, "--enable-prompt-embeds"),
        ({"num_speculative_tokens": 33}, "num_speculative_tokens .* is 33; use 1 to 32"),
    ],
)
def test_what_the_drafter_was_not_tried_with_is_refused(
    changes: dict[str, Any], message: str, teacher_folder: Path
) -> None:
    with pytest.raises(EngineError, match=message):
        make(engine_config(teacher_folder, **changes))


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "0.33.0rc1", "1.0.0", "dev", "0.320.1", "0"])
def test_a_release_that_nobody_has_read_is_refused_by_name(
    version: str, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("vllm")
    module.__dict__["__version__"] = version
    monkeypatch.setitem(sys.modules, "vllm", module)
    with pytest.raises(EngineError, match=rf"vLLM {version} is not known .* tried with 0\.32"):
        make(engine_config(teacher_folder))


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0+cpu", "0.32.1rc1"])
def test_the_known_release_is_taken(version: str) -> None:
    check_release(version)


@dataclass
class Speculative:
    """As vLLM's: a dataclass with more than the drafter reads."""

    num_speculative_tokens: int = 4
    method: str = "custom_class"
    model: str = "latentforge.vllm.StudentDrafter"
    target_model_config: object = None
    parallel_drafting: bool = False
    num_speculative_tokens_per_batch_size: list[int] | None = None


@pytest.mark.parametrize(
    ("field", "value"), [("parallel_drafting", True), ("num_speculative_tokens_per_batch_size", [1, 2, 3])]
)
def test_a_speculative_setting_that_the_drafter_does_not_know_is_refused(
    field: str, value: object, teacher_folder: Path
) -> None:
    config = engine_config(teacher_folder)
    config.speculative_config = Speculative(target_model_config=SimpleNamespace())
    make(config)
    setattr(config.speculative_config, field, value)
    with pytest.raises(EngineError, match=f"{field} of --speculative-config is .* leave it out"):
        make(config)


def test_a_teacher_whose_tokenizer_cannot_be_compared_is_refused(teacher_folder: Path) -> None:
    (teacher_folder / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match=r"has no tokenizer.json.*--tokenizer"):
        make(engine_config(teacher_folder))


@pytest.fixture
def other_tokenizer(tokenizer_json: str) -> str:
    """As many ids, and other ones for the same text."""
    content = json.loads(tokenizer_json)
    content["pre_tokenizer"]["add_prefix_space"] = True
    return json.dumps(content)


def test_a_student_of_another_tokenizer_ends_the_start(
    publish: Publish, make_drafter: MakeDrafter, other_tokenizer: str
) -> None:
    publish(1, tokenizer_json=other_tokenizer)
    with pytest.raises(EngineError, match=r"demo/step-00000001 was trained with another tokenizer .*LATENTFORGE_RUN"):
        make_drafter()


def test_a_student_of_more_ids_than_the_teacher_has_ends_the_start(publish: Publish, make_drafter: MakeDrafter) -> None:
    publish(1)
    with pytest.raises(EngineError, match=r"writes 300 ids, and the model that vLLM serves takes 299"):
        make_drafter({"vocab_size": 299})


def test_a_student_of_another_tokenizer_that_comes_later_is_quarantined(
    publish: Publish, make_drafter: MakeDrafter, other_tokenizer: str
) -> None:
    publish(1, shape=always(40))
    drafter = make_drafter()
    publish(2, shape=always(41), run="zother", tokenizer_json=other_tokenizer)
    drafter._refresh()
    engine = FakeEngine(drafter, lambda text: 40)
    engine.add("a", [5])
    engine.step()
    assert set(engine.drafts["a"]) == {40}
    [bad] = drafter._registry.quarantined
    assert (bad.checkpoint, "another tokenizer" in bad.reason) == ("zother/step-00000002", True)
    assert figure(drafter, "quarantines_total") == 1


def test_a_damaged_student_does_not_keep_vllm_from_starting(publish: Publish, make_drafter: MakeDrafter) -> None:
    publish(1, spoil=lambda student: student.bias.fill_(float("nan")))
    engine = FakeEngine(make_drafter(), lambda text: 40)
    engine.add("a", [5])
    engine.step()
    assert engine.drafts == {"a": []}


def test_a_device_that_is_not_there_is_refused(teacher_folder: Path) -> None:
    with pytest.raises(SettingsError, match="LATENTFORGE_DRAFTER_DEVICE is 'cuda:7'"):
        make(engine_config(teacher_folder), latentforge_drafter_device="cuda:7")
