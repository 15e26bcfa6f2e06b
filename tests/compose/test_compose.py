"""The default stack in a real engine, and the GB10 files as far as they can be checked without one."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.compose.stack import Stack, compose, free_port, running
from tools.demo.settings import ROOT
from tools.gateway import gateway_answers
from tools.serve_vllm_drafted import DRAFTER

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]

_GB10 = ("-f", "docker-compose.yml", "-f", "docker-compose.gb10.yml")
_SERVICES = {"redis", "teacher-gateway", "trainer", "inference"}


@pytest.fixture(scope="module")
def url() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def gateway_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def http_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def stack(url: str, gateway_port: int, http_port: int) -> Iterator[Stack]:
    """The stack, with a recipe of seconds."""
    ports = {"GATEWAY_PORT": gateway_port, "GATEWAY_HTTP_PORT": http_port, "INFERENCE_PORT": url.rpartition(":")[2]}
    with running("test", **{name: str(port) for name, port in ports.items()}, RECIPE="smoke") as stack:
        yield stack


def test_generate_answers_from_a_checkpoint_that_the_trainer_published(stack: Stack, url: str) -> None:
    body = {"prompt": "def main():", "max_tokens": 16, "seed": 1}
    answer = httpx.post(f"{url}/generate", json=body, timeout=60).raise_for_status().json()
    published = stack("exec", "-T", "trainer", "sh", "-c", "cd checkpoints && echo */*/manifest.json").split()
    assert f"{answer['checkpoint']}/manifest.json" in published
    assert answer["checkpoint"].startswith("compose-smoke/")
    assert len(answer["token_ids"]) == 16


@pytest.mark.usefixtures("stack")
def test_the_image_of_inference_holds_the_page_and_the_documentation(url: str) -> None:
    page = httpx.get(url).raise_for_status().text
    files = re.findall(r'(?:href|src)="(page/[^"]+)"', page)
    assert {Path(file).suffix for file in files} >= {".css", ".js"}
    for file in (*files, "page/vendor/uplot/LICENSE", "docs"):
        assert httpx.get(f"{url}/{file}").raise_for_status().content


@pytest.mark.usefixtures("stack")
def test_inference_shows_the_trainer_and_asks_the_teacher(url: str) -> None:
    assert httpx.get(f"{url}/page/config").raise_for_status().json() == {"teacher": True, "training": True}
    assert httpx.get(f"{url}/training").raise_for_status().json()["run"] == "compose-smoke"
    written = httpx.post(f"{url}/generate", json={"prompt": "def", "max_tokens": 8}, timeout=60).json()
    body = {"prompt": "def", "token_ids": written["token_ids"], "top": 3, "model": written["checkpoint"]}
    judged = httpx.post(f"{url}/teacher", json=body, timeout=60).raise_for_status().json()
    assert len(judged["tokens"]) == len(written["token_ids"])


def test_a_pin_is_written_where_the_trainer_publishes(stack: Stack, url: str) -> None:
    checkpoint = httpx.get(f"{url}/health").raise_for_status().json()["checkpoint"]
    httpx.post(f"{url}/checkpoints/pin", json={"checkpoint": checkpoint}).raise_for_status()
    run, step = checkpoint.split("/")
    assert stack("exec", "-T", "trainer", "cat", f"checkpoints/{run}/pinned").strip() == step
    httpx.post(f"{url}/checkpoints/unpin", json={"run": run}).raise_for_status()


@pytest.mark.usefixtures("stack")
def test_clients_of_this_machine_reach_the_gateway(gateway_port: int, http_port: int) -> None:
    assert gateway_answers(f"127.0.0.1:{gateway_port}")
    models = httpx.get(f"http://127.0.0.1:{http_port}/v1/models", trust_env=False).raise_for_status().json()
    assert [model["object"] for model in models["data"]] == ["model"]


@pytest.mark.usefixtures("stack")
def test_what_the_documentation_shows_runs_against_the_gateway(gateway_port: int) -> None:
    text = (ROOT / "docs" / "teacher-api.md").read_text(encoding="utf-8")
    programs = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "localhost:50051" in code]
    assert len(programs) > 1
    for code in programs:
        here = code.replace("localhost:50051", f"localhost:{gateway_port}")
        run = subprocess.run([sys.executable, "-c", here], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert run.stdout


def test_every_service_is_healthy_and_nobody_is_root(stack: Stack) -> None:
    states = [json.loads(line) for line in stack("ps", "--format", "json").splitlines()]
    assert {s["Service"]: s["Health"] for s in states} == dict.fromkeys(_SERVICES, "healthy")
    assert all(int(stack("exec", "-T", service, "id", "-u")) > 0 for service in _SERVICES)


def test_a_trainer_whose_run_is_done_stays_healthy_and_serves_its_status(stack: Stack) -> None:
    wait = """
import json, time, urllib.request
while True:
    status = json.load(urllib.request.urlopen("http://127.0.0.1:7861/status"))
    if status["done"] or status["error"]:
        break
    time.sleep(0.5)
print(json.dumps(status))
"""
    status = json.loads(stack("exec", "-T", "trainer", "python", "-c", wait))
    assert (status["done"], status["error"], status["stage"]) == (True, None, "finished")
    stack("exec", "-T", "trainer", "python", "healthcheck.py", "http", "7861", "/health")


def test_teacher_rows_are_kept_in_redis(stack: Stack) -> None:
    assert int(stack("exec", "-T", "redis", "redis-cli", "dbsize")) > 0


@pytest.mark.parametrize(
    ("profile", "services"),
    [
        ("gb10-single", {"drop-caches", "redis", "vllm-teacher", "teacher-gateway", "trainer", "inference"}),
        ("gb10-dual", {"redis-dual", "teacher-gateway-dual", "trainer-dual", "inference-dual"}),
        ("gb10-dual-teacher", {"drop-caches", "vllm-teacher-dual"}),
        ("gb10-drafted", {"drop-caches", "drafted-vllm"}),
        ("gb10-multinode-head", {"drop-caches", "vllm-teacher-head"}),
        ("gb10-multinode-worker", {"drop-caches", "vllm-teacher-worker"}),
    ],
)
def test_gb10_profiles_start_what_belongs_to_the_machine(profile: str, services: set[str]) -> None:
    no_env = ("--env-file", os.devnull)
    compose(*no_env, *_GB10, "--profile", profile, "config", "-q")
    assert set(compose(*no_env, *_GB10, "--profile", profile, "config", "--services").split()) == services


def test_the_profile_with_drafts_is_the_default_stack_and_a_vllm_for_users() -> None:
    no_env = ("--env-file", os.devnull)
    compose(*no_env, "--profile", "drafted", "config", "-q")
    found = set(compose(*no_env, "--profile", "drafted", "config", "--services").split())
    assert found - set(compose(*no_env, "config", "--services").split()) == {"vllm-drafted"}


@pytest.mark.parametrize(
    ("files", "profile", "service", "num_tokens"),
    [((), "drafted", "vllm-drafted", 8), (_GB10, "gb10-drafted", "drafted-vllm", 3)],
)
def test_vllm_for_users_is_told_of_the_drafter_in_json(
    files: tuple[str, ...], profile: str, service: str, num_tokens: int
) -> None:
    said = compose("--env-file", os.devnull, *files, "--profile", profile, "config", "--format", "json")
    command = json.loads(said)["services"][service]["command"]
    speculative = json.loads(command[command.index("--speculative-config") + 1])
    assert speculative == {"method": "custom_class", "model": DRAFTER, "num_speculative_tokens": num_tokens}


def test_a_key_quoted_as_env_example_says_arrives_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (quoted,) = re.findall(r"as in (VENICE_API_KEY=\S+):", (ROOT / ".env.example").read_text(encoding="utf-8"))
    monkeypatch.delenv("VENICE_API_KEY", raising=False)
    (tmp_path / ".env").write_text(quoted + "\n", encoding="utf-8")
    files = ("--project-directory", str(tmp_path), "-f", str(ROOT / "docker-compose.yml"))
    config = json.loads(compose(*files, "config", "--format", "json"))
    # Compose writes $$ for a $ that it does not take for a variable's.
    assert config["configs"]["venice_api_key"]["content"] == "lit$$eral\n"


@pytest.mark.parametrize(("address", "published"), [("", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("[::1]", "::1")])
def test_the_gateway_is_published_where_the_settings_say(address: str, published: str) -> None:
    said = compose("--env-file", os.devnull, "config", "--format", "json", GATEWAY_BIND_ADDRESS=address)
    ports = json.loads(said)["services"]["teacher-gateway"]["ports"]
    for port, number in zip(ports, (50051, 50052), strict=True):
        assert (port["host_ip"], port["published"], port["target"]) == (published, str(number), number)


@pytest.mark.parametrize("profile", ["gb10-single", "gb10-dual-teacher"])
def test_a_scoring_teacher_has_the_flags_that_keep_its_rows_right(profile: str) -> None:
    config = json.loads(compose(*_GB10, "--profile", profile, "config", "--format", "json"))
    (teacher,) = (s for name, s in config["services"].items() if name.startswith("vllm-teacher"))
    command = " ".join(teacher["command"])
    for flag in (
        "--no-enable-prefix-caching",
        "--max-logprobs 64",
        "--max-num-batched-tokens 2048",
        "--kv-cache-memory-bytes",
    ):
        assert flag in command
    assert "speculative" not in command
    assert teacher["healthcheck"]["start_period"] == "30m0s"
    assert teacher["restart"] == "on-failure:3"
    assert int(teacher["shm_size"]) == 16 * 2**30
    assert teacher["ulimits"]["memlock"] == -1


@pytest.mark.parametrize("profile", ["gb10-single", "gb10-dual"])
def test_a_start_does_not_wait_for_the_first_checkpoint_of_a_gb10(profile: str) -> None:
    config = json.loads(compose("--env-file", os.devnull, *_GB10, "--profile", profile, "config", "--format", "json"))
    (inference,) = (s for name, s in config["services"].items() if name.startswith("inference"))
    assert inference["healthcheck"]["test"][-1] == "/health"
