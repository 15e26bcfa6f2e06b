"""Figures of the engine's process on the API server's page, which are two processes in vLLM."""

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from latentforge.vllm.metrics import DrafterMetrics, publish
from latentforge.vllm.pending import Verified

# What vLLM's engine does, and after it what vLLM's API server does: get_prometheus_registry of its v1/metrics.
ENGINE = """
from latentforge.vllm.metrics import DrafterMetrics, publish
from latentforge.vllm.pending import Verified
metrics = DrafterMetrics()
publish(metrics, 0)
metrics.count_drafts([[1, 2, 3], []], 0.003)
metrics.count_verified([Verified("v", 3, 1, 2), Verified("v", 0, 0, 2)])
metrics.show_version("demo", 7)
metrics.show_version("other", 9)
metrics.show_quarantines(2)
metrics.show_quarantines(2)
metrics.acceptance.set(1.5)
"""
API_SERVER = """
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def test_they_are_on_vllms_page_where_the_two_processes_share_a_folder(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", ENGINE], env=environment, check=True)
    page = subprocess.run([sys.executable, "-c", API_SERVER], env=environment, check=True, capture_output=True).stdout
    lines = page.decode().splitlines()
    for line in (
        "latentforge_drafter_drafts_total 2.0",
        "latentforge_drafter_drafted_tokens_total 3.0",
        'latentforge_drafter_verified_tokens_total{position="3"} 1.0',
        'latentforge_drafter_accepted_tokens_total{position="1"} 1.0',
        "latentforge_drafter_seconds_count 1.0",
        'latentforge_drafter_checkpoint_step{run="demo"} 0.0',
        'latentforge_drafter_checkpoint_step{run="other"} 9.0',
        "latentforge_drafter_swaps_total 2.0",
        "latentforge_drafter_quarantines_total 2.0",
        "latentforge_drafter_acceptance 1.5",
    ):
        assert line in lines
    assert not any("accepted" in line and 'position="2"' in line for line in lines)


def test_a_port_of_their_own_serves_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    metrics = DrafterMetrics(CollectorRegistry())
    publish(metrics, port)
    metrics.count_verified([Verified("v", 2, 2, 1)])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert b'latentforge_drafter_accepted_tokens_total{position="2"} 1.0' in answer.read()


def test_whoever_has_neither_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    publish(DrafterMetrics(CollectorRegistry()), 0)
    assert "set PROMETHEUS_MULTIPROC_DIR to an empty folder" in caplog.text
