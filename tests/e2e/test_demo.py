"""make demo, for real and in miniature: what it promises, and how it fails."""

import json
import os
import re
import signal
import socket
from typing import Any

import httpx
import pytest

from .conftest import DemoProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

_FIELDS = {
    "ae": {"k", "d", "token_exact", "chunk_exact", "token_exact_noisy"},
    "student": {"steps", "tokens", "kd_first", "kd_last", "ce_first", "ce_last"},
    "teacher": {"model", "revision", "fingerprint", "held_out_nll"},
    "cache": {"hits", "misses", "rows", "rows_from_cache"},
    "decode": {"student_tokens_per_s", "student_steps_per_s", "token_level_tokens_per_s", "ratio"},
    "seconds": {"start", "data", "autoencoder", "student", "generate", "bench", "total"},
}


def _result(demo: DemoProcess) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((demo.folder / "results" / "demo.json").read_text())
    return result


def test_the_whole_job_then_again_from_the_cache_and_left_serving(demo: DemoProcess) -> None:
    demo.start()
    assert demo.wait() == 0, demo.output
    assert demo.left_over() == []
    first = _result(demo)
    for part, names in _FIELDS.items():
        assert names <= first[part].keys(), part
    assert first["swaps"][0]["from"] is None
    assert [swap["to"] for swap in first["swaps"]] == first["checkpoints"]
    assert [swap["from"] for swap in first["swaps"][1:]] == first["checkpoints"][:-1]
    assert len(first["checkpoints"]) >= 3
    assert len(first["samples"]) == 5
    assert {s["checkpoint"] for s in first["samples"]} == {first["checkpoints"][-1]}
    assert first["cache"]["rows_from_cache"] == 0
    assert {"commit", "command", "date", "device", "seed"} <= first.keys()
    assert "generated" not in first

    demo.start(SERVE=1)
    assert demo.wait() == 0, demo.output
    second = _result(demo)
    served = re.search(r"inference stays up at (\S+) \(kill (\d+) stops it\)", demo.output)
    assert served, demo.output
    try:
        assert second["run"] != first["run"]
        assert second["cache"]["rows_from_cache"] == second["cache"]["rows"] > 0
        assert f"{second['cache']['rows']:,} teacher rows came from it" in " ".join(demo.output.split())
        answer = httpx.post(f"{served[1]}/generate", json={"prompt": "import os", "max_tokens": 8}, timeout=60).json()
        assert answer["checkpoint"] == second["checkpoints"][-1]
        assert f"page at {served[1]}/;" in demo.output
        page = httpx.get(f"{served[1]}/")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    finally:
        os.kill(int(served[2]), signal.SIGTERM)


def test_a_taken_port_is_named_with_its_owner(demo: DemoProcess) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", int(demo.environment["GATEWAY_PORT"])))
        server.listen()
        demo.start()
        assert demo.wait() == 2
    assert f"port {demo.environment['GATEWAY_PORT']} is taken by" in demo.output
    assert f"(pid {os.getpid()})" in demo.output
    assert "Traceback" not in demo.output
    assert demo.started == set()


def test_a_full_disk_is_refused_before_anything_starts(demo: DemoProcess) -> None:
    demo.start(DEMO_MIN_FREE_GB=1e9)
    assert demo.wait() == 2
    assert "GB free, the demo wants 1000000000.0 GB" in demo.output
    assert demo.started == set()


def test_a_wrong_setting_is_named_with_its_value(demo: DemoProcess) -> None:
    demo.start(STATUS_PORT="http")
    assert demo.wait() == 2
    assert "STATUS_PORT is 'http'" in demo.output
    assert "Traceback" not in demo.output


def test_a_run_that_cannot_work_ends_with_the_trainers_reason(demo: DemoProcess) -> None:
    demo.start(RECIPE="no-such-recipe")
    assert demo.wait() == 1
    assert "no-such-recipe" in demo.output
    assert re.search(r"trainer \(pid \d+\) ended with exit code \d", demo.output), demo.output
    assert demo.left_over() == []


@pytest.mark.parametrize("victim", ["teacher-gateway", "trainer"])
def test_a_killed_child_is_named_and_nothing_is_left_running(demo: DemoProcess, victim: str) -> None:
    demo.start()
    demo.wait_for(lambda: "trainer" in demo.children(), "training")
    pid = demo.children()[victim]
    os.kill(pid, signal.SIGKILL)
    assert demo.wait(120) == 1
    assert f"{victim} (pid {pid}) was killed by SIGKILL" in demo.output
    assert "Traceback" not in demo.output
    assert demo.left_over() == []
    assert not (demo.folder / "results" / "demo.json").exists()


def test_ctrl_c_leaves_nothing_running_and_the_logs(demo: DemoProcess) -> None:
    demo.start()
    demo.wait_for(lambda: len(demo.children()) == 3, "training")
    demo.process.send_signal(signal.SIGINT)
    assert demo.wait(120) == 128 + signal.SIGINT
    assert "stopped by SIGINT; everything it started is stopped" in demo.output
    assert demo.left_over() == []
    assert {path.name for path in demo.folder.glob("runs/*/logs/*")} == {"teacher-gateway.log", "inference.log"}


def test_a_killed_demo_takes_its_children_along(demo: DemoProcess) -> None:
    demo.start()
    demo.wait_for(lambda: len(demo.children()) == 3, "training")
    demo.process.kill()
    demo.wait()
    assert demo.left_over(60) == []
