import sys
import tomllib
from pathlib import Path

import pytest

from tools import vllm_env


@pytest.mark.parametrize(("system", "machine"), [("Linux", "aarch64"), ("Darwin", "arm64"), ("Windows", "AMD64")])
def test_a_machine_without_a_build_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], system: str, machine: str
) -> None:
    with pytest.raises(SystemExit, match="1"):
        vllm_env.check_machine(system, machine)
    assert f"this is {system} {machine}" in capsys.readouterr().err


def test_linux_on_x86_is_accepted() -> None:
    vllm_env.check_machine("Linux", "x86_64")


def test_this_python_is_taken_when_it_is_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_env, "PYTHON", sys.version_info[:2])
    assert vllm_env.find_python() == sys.executable


def test_another_python_is_looked_for_and_missed_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vllm_env, "PYTHON", (3, 99))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="1"):
        vllm_env.find_python()
    assert "needs Python 3.99" in capsys.readouterr().err
    python = tmp_path / "python3.99"
    python.write_text("")
    python.chmod(0o755)
    assert vllm_env.find_python() == str(python)


def test_an_environment_without_vllm_is_not_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vllm_env, "VENV_PYTHON", tmp_path / "python")
    assert not vllm_env.is_ready()
    # Ours has no vLLM.
    monkeypatch.setattr(vllm_env, "VENV_PYTHON", Path(sys.executable))
    assert not vllm_env.is_ready()


def test_an_environment_that_is_ready_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vllm_env, "check_machine", lambda system, machine: None)
    monkeypatch.setattr(vllm_env, "is_ready", lambda: True)
    monkeypatch.setattr(vllm_env, "make", lambda python: pytest.fail("it was made again"))
    vllm_env.main()
    assert vllm_env.VERSION in capsys.readouterr().out


def test_the_environment_holds_every_package_of_ours_that_gateway_and_drafter_need() -> None:
    needed, seen = ["latentforge-teacher-gateway", "latentforge-vllm"], set()
    for name in needed:
        seen.add(name)
        project = tomllib.loads((vllm_env.ROOT / vllm_env.OURS[name] / "pyproject.toml").read_text())["project"]
        assert project["name"] == name
        needed += [d for d in project["dependencies"] if d.startswith("latentforge-") and d not in seen]
    assert seen == set(vllm_env.OURS)
