"""What torchrun's environment must say before its processes meet."""

import pytest

from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.ranks import joined_ranks


def test_restarts_with_the_agents_store_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "WORLD_SIZE": "2",
        "TORCHELASTIC_MAX_RESTARTS": "3",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(TrainerError, match=r"--max-restarts is 3.*TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"),
        joined_ranks(),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "value"), [("TORCHELASTIC_MAX_RESTARTS", "0"), ("TORCHELASTIC_USE_AGENT_STORE", "False")]
)
def test_other_groups_are_joined(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    settings = {"WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for key, said in {**settings, name: value}.items():
        monkeypatch.setenv(key, said)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(KeyError, match="RANK"), joined_ranks():  # Looked for once the settings are accepted.
        pass
