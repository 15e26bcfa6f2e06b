"""TRL's own trainer, as PyPI has it, with the gateway for its teacher."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentforge.teacher_client.sync_client import SyncTeacherClient
from tests.gateway_process import GatewayProcess, gateway_process
from tests.vllm.conftest import running_vllm
from tools.pip_env import ROOT
from tools.trl_env import TRL
from tools.vllm_env import VENV_PYTHON

pytestmark = [pytest.mark.trl, pytest.mark.timeout(600)]

TEACHER = ROOT / "models" / "stdlib-teacher"
_SCRIPT = Path(__file__).with_name("distil.py")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway_process(tmp_path_factory.mktemp("gateway"), embedded_teacher_path=str(TEACHER)) as process:
        yield process


def distil(url: str, beta: float, top_k: int, folder: Path) -> list[tuple[float, float]]:
    """Each step's loss: TRL's, and the one computed again."""
    out = folder / "losses.json"
    command = [str(TRL.python), str(_SCRIPT), url, str(TEACHER), str(beta), str(top_k), str(out)]
    offline = {"HF_HUB_OFFLINE": "1", "NO_PROXY": "*", "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | offline, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    losses = [(float(ours), float(again)) for ours, again in json.loads(out.read_text())]
    assert len(losses) == 4
    return losses


@pytest.mark.parametrize(("beta", "top_k"), [(0.0, 16), (1.0, 1)])
def test_trls_trainer_distils_and_its_loss_is_that_of_the_teachers_weights(
    gateway: GatewayProcess, tmp_path: Path, beta: float, top_k: int
) -> None:
    losses = distil(gateway.url, beta, top_k, tmp_path)
    for of_trl, expected in losses:
        assert of_trl == pytest.approx(expected, rel=1e-4)
    # It trained, or each would be the first.
    assert len({round(of_trl, 6) for of_trl, _ in losses}) == 4


def test_what_was_distilled_once_is_distilled_again_from_the_cache(gateway: GatewayProcess, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    first.mkdir()
    again.mkdir()
    with SyncTeacherClient(gateway.target) as client:
        losses = distil(gateway.url, 0.0, 4, first)
        before = client.cache_stats()
        assert distil(gateway.url, 0.0, 4, again) == losses
        after = client.cache_stats()
    assert (after.misses, after.hits - before.hits) == (before.misses, 4 * 3)


@pytest.mark.skipif(not VENV_PYTHON.is_file(), reason="there is no vLLM here; python -m tools.vllm_env installs it")
def test_the_loss_is_that_of_a_vllm_asked_without_the_gateway(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("gateway", "through", "direct")]
    for folder in folders:
        folder.mkdir()
    with running_vllm(TEACHER, tmp_path / "vllm.log", teacher_dtype="float32") as vllm:
        settings = {"teacher_backend": "vllm-remote", "vllm_remote_url": vllm.url, "tokenizer_path": str(TEACHER)}
        with gateway_process(folders[0], **settings) as gateway:
            through = distil(gateway.url, 0.0, 16, folders[1])
        direct = distil(vllm.url, 0.0, 16, folders[2])
    assert [of_trl for of_trl, _ in through] == pytest.approx([of_trl for of_trl, _ in direct], rel=1e-4)
