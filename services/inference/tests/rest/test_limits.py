from pathlib import Path

import pytest
import torch

from latentforge.core.settings import load_settings
from latentforge.inference.rest.chat import plan_chat
from latentforge.inference.rest.completions import plan_completion
from latentforge.inference.rest.limits import check_choices
from latentforge.inference.rest.prompts import PromptError
from latentforge.inference.rest.schemas.chat import ChatCompletionRequest
from latentforge.inference.rest.schemas.completions import CompletionRequest
from latentforge.inference.settings import InferenceSettings
from latentforge.snapshots.snapshot import Snapshot, load_snapshot


@pytest.fixture
def energy(publish: object) -> Snapshot:
    """A student that says of itself that its head draws latents."""
    assert callable(publish)
    place: Path = publish(1)
    snapshot = load_snapshot(place, torch.device("cpu"))
    student = snapshot.model.student
    student.config = student.config.model_copy(update={"head": "energy"})
    return snapshot


def test_an_energy_head_has_no_exact_log_probabilities(energy: Snapshot) -> None:
    assert not energy.has_likelihood
    with pytest.raises(PromptError, match="energy head, whose likelihood can only be bounded") as refused:
        plan_completion(energy, CompletionRequest.model_validate({"prompt": "a", "logprobs": 0}))
    assert (refused.value.param, refused.value.code) == ("logprobs", "no_exact_likelihood")
    chat = {"messages": [{"role": "user", "content": "a"}], "logprobs": True}
    with pytest.raises(PromptError, match="energy head"):
        plan_chat(energy, ChatCompletionRequest.model_validate(chat))
    assert plan_completion(energy, CompletionRequest.model_validate({"prompt": "a"})).choices


def test_texts_of_a_request_are_bounded() -> None:
    settings = load_settings(InferenceSettings, inference_max_choices=64, inference_queue_limit=100)
    check_choices(settings, 4, 16)
    with pytest.raises(PromptError, match=r"65 prompts with n=1 ask for 65 texts.*64 \(INFERENCE_MAX_CHOICES\)"):
        check_choices(settings, 65, 1)


def test_no_more_texts_are_written_than_an_idle_server_has_room_for() -> None:
    settings = load_settings(InferenceSettings, inference_slots=2, inference_queue_limit=3)
    check_choices(settings, 1, 5)
    with pytest.raises(PromptError, match=r"may have 5 \(INFERENCE_SLOTS and INFERENCE_QUEUE_LIMIT together\)"):
        check_choices(settings, 1, 6)
    # Nothing is written for those.
    check_choices(settings, 64, 1, writes=False)
