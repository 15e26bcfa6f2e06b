import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentforge.core.settings import SettingsError
from latentforge.gateway.settings import GatewaySettings
from tools.serve_vllm_drafted import MULTIPROCESS, drafted_command, students


def published(run_folder: Path, *steps: int) -> Path:
    for step in steps:
        place = run_folder / f"step-{step:08d}"
        place.mkdir(parents=True)
        (place / "manifest.json").write_text("{}")
    return run_folder


def test_the_command_asks_vllm_for_our_drafter_after_what_a_scoring_teacher_wants() -> None:
    settings = GatewaySettings(vllm_local_model="org/model", vllm_python=Path(sys.executable))
    command = drafted_command(settings, 5, ["--enforce-eager"])
    speculative = json.loads(command[command.index("--speculative-config") + 1])
    assert speculative == {
        "method": "custom_class",
        "model": "latentforge.vllm.StudentDrafter",
        "num_speculative_tokens": 5,
    }
    # The later one counts.
    assert command.index("--enable-prefix-caching") > command.index("--no-enable-prefix-caching")
    assert command[-1] == "--enforce-eager"


def test_a_checkpoint_stands_for_its_run(tmp_path: Path) -> None:
    folder = published(tmp_path / "shipped", 9, 10)
    expected = {"LATENTFORGE_FALLBACK_RUN": str(folder), "LATENTFORGE_RUN": "shipped"}
    assert students(folder, None) == students(folder / "step-00000010", None) == expected
    assert students(folder, tmp_path / "watched") == expected | {"LATENTFORGE_CHECKPOINTS": str(tmp_path / "watched")}
    assert students(None, None) == {}


def test_what_would_not_be_taken_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = published(tmp_path / "shipped", 9, 10)
    with pytest.raises(SettingsError, match=r"not the newest .* step-00000010; .* write step-00000009 into .*pinned"):
        students(folder / "step-00000009", None)
    with pytest.raises(SettingsError, match=r"CHECKPOINT=.* no step-00001200/"):
        students(tmp_path, None)


def test_the_server_has_a_folder_for_figures_that_is_gone_with_it(tmp_path: Path) -> None:
    told = tmp_path / "told"
    code = f"import os, pathlib, sys; pathlib.Path({str(told)!r}).write_text(os.environ[{MULTIPROCESS!r}]); sys.exit(7)"
    # In a process of its own, since it changes what signals do.
    runner = (
        f"from tools.serve_vllm_drafted import run; import os, sys; sys.exit(run({[sys.executable, '-c', code]!r}, "
    )
    assert subprocess.run([sys.executable, "-c", runner + "os.environ))"], check=False).returncode == 7
    folder = Path(told.read_text())
    assert "vllm-metrics-" in folder.name
    assert not folder.exists()
    assert os.environ.get(MULTIPROCESS) is None
