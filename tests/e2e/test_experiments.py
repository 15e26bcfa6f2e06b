"""make pareto and make speed SCALE=smoke, for real: text, autoencoders, students, evaluations, chart; then again."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.results import ModelResults
from tools.demo.settings import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = [sys.executable, "-m"]
    options = ["--scale", "smoke", "--folder", str(folder / "work"), "--results", str(folder / "results")]
    options += ["--publish", str(folder / "published")]
    environment = {"GATEWAY_PORT": str(port), "CACHE_URL": f"sqlite:///{folder}/cache.sqlite", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*python, "tools.gateway", "--", *python, "experiments", "pareto", *options],
        cwd=ROOT,
        env={**os.environ, **environment},
        text=True,
        capture_output=True,
        check=False,
    )


def test_the_whole_chart_and_again_without_training(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert first.returncode == 0, first.stderr
    (path,) = (tmp_path / "results").glob("pareto_*.json")
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert path.with_name(f"{path.stem}_panels.png").read_bytes()[:4] == b"\x89PNG"
    assert {p.name for p in (tmp_path / "published").iterdir()} == {"results.json", "quality-speed.png", "panels.png"}
    result = ModelResults.read(path)
    bars = {"gap_k4", "gap_k8", "pareto_k4", "pareto_k8", "decode_k4", "decode_k8", "fast_k8"}
    assert bars <= result.by_id.keys()
    for model in result.models:
        figures = model["evaluations"]["stdlib"]
        assert 4 < figures["nats_per_token"]["value"] < 11, model["run"]
        assert ("kl_to_teacher" in figures) == (model["vocabulary"] == "demo")
        assert 0 < figures["gen_t07_teacher_nats"]["value"] < 30
        assert model["speed"]["one"][0] > 0
        assert model["evaluations"]["packages"]["nats_per_token"]["value"] > 4
        # Three times the scale's steps of 256 chunks; the output table of width 32 is most of it.
        learnt = 0 if model["kind"] == "token-level" else 30 * 256 * model["k"]
        if model["vocabulary"] == "large":
            assert 1 <= (model["autoencoder_flops"] + 1) / (6 * 32 * 32768 * learnt + 1) < 1.5, model["run"]
    again = run(tmp_path)
    assert again.returncode == 0, again.stderr
    found = re.findall(r"^(.+): (\d+) of (\d+) done before$", again.stderr, re.MULTILINE)
    done = {what: (int(number), int(of)) for what, number, of in found}
    stages = ("token-level models and autoencoders", "students", "evaluations")
    assert {f"{stage}, {v}" for stage in stages for v in ("demo", "large")} <= done.keys()
    assert all(n == of for n, of in done.values()), done
    assert "train " not in again.stderr


def test_speed_needs_nothing_trained(tmp_path: Path) -> None:
    options = ["--scale", "smoke", "--results", str(tmp_path)]
    command = [sys.executable, "-m", "experiments", "speed", *options]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("speed_*.json")
    results = ModelResults.read(path).by_id
    sizes = ("k4_1x64", "k8_1x64", "k8_2x128")
    assert results.keys() == {f"{name}_{size}" for name in ("speed", "speed16") for size in sizes}
    bounds: list[Any] = [(result.low, result.ratio, result.high) for result in results.values()]
    assert all(low <= ratio <= high for low, ratio, high in bounds)
