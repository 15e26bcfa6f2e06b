"""Real servers and a real browser: Debian's Chromium, headless, driven by Playwright."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from latentforge.trainer.data.corpus import source_files, stdlib_root
from tests.browser.servers import (
    PATIENCE_MS,
    RUN,
    START_SECONDS,
    STEPS,
    environment,
    free_port,
    opened,
    program,
    published,
    serving,
    with_another_tokenizer,
)
from tools.demo.settings import TEACHER
from tools.gateway import gateway_answers, gateway_command
from tools.processes import Children


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium: apt-get install chromium")
        pytest.skip("there is no Chromium: apt-get install chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        # Containers run tests as root, where Chromium has no sandbox.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good checkpoints, a newer one with broken weights, and one of another tokenizer."""
    root = tmp_path_factory.mktemp("checkpoints")
    for step, metrics in STEPS.items():
        published(root, RUN, step, metrics=metrics)
    weights = published(root, RUN, 3000) / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    # Older: the run that published last is served.
    with_another_tokenizer(published(root, "stranger", 1, created="2026-11-01T00:00:00.000+00:00"))
    return root


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    folder = tmp_path_factory.mktemp("services")
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TORCH_THREADS": "1"}
    with Children(folder / "logs", cwd=folder, env=environment) as children:
        yield children


@pytest.fixture(scope="session")
def gateway(children: Children) -> str:
    """The embedded teacher behind a real gateway: host:port."""
    port = free_port()
    with environment(GATEWAY_PORT=port, EMBEDDED_TEACHER_PATH=TEACHER, TOKENIZER_PATH=TEACHER):
        children.start("teacher-gateway", gateway_command())
    target = f"127.0.0.1:{port}"
    children.wait_until(lambda: gateway_answers(target), "starting the gateway", seconds=START_SECONDS)
    return target


@pytest.fixture(scope="session")
def training(children: Children, gateway: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run that trains for as long as the tests take, and publishes now and then: its status's URL, and where."""
    folder = tmp_path_factory.mktemp("training")
    data = folder / "data.jsonl"
    texts = [file.text for file in source_files(stdlib_root(), "train") if len(file.text) < 8000][:60]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    port = free_port()
    settings = ("student.optim.steps=1000000", "student.publish_every=20", "student.validate_every=10")
    command = [program("trainer"), "run", "--recipe", "smoke", "--run", "live", "--status-port", str(port)]
    command += ["--data", str(data), *(word for setting in settings for word in ("--set", setting))]
    with environment(
        GATEWAY_TARGET=gateway,
        TOKENIZER_PATH=TEACHER,
        CHECKPOINTS_DIR=folder / "checkpoints",
        RUNS_DIR=folder / "runs",
        TRAINER_THREADS=1,
    ):
        children.start("trainer", command)
    url = f"http://127.0.0.1:{port}"

    def has_published() -> bool:
        try:
            status = httpx.get(f"{url}/status", trust_env=False).json()
        except httpx.HTTPError:
            return False
        return bool(status["stage"] == "student" and status["step"] > 20)

    children.wait_until(has_published, "training", seconds=START_SECONDS)
    return url, folder / "checkpoints"


@pytest.fixture(scope="session")
def server(children: Children, gateway: str, checkpoints: Path) -> Iterator[str]:
    """Everything but a trainer: the run ``library``, and the teacher."""
    with serving(children, "inference", CHECKPOINTS_DIR=checkpoints, GATEWAY_TARGET=gateway) as url:
        yield url


@pytest.fixture
def page(browser: Browser, server: str) -> Iterator[Page]:
    """The page at desktop width; whatever the browser complains of fails the test."""
    with opened(browser, server) as page:
        yield page
