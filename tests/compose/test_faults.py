"""The default stack under faults in a real engine, with TLS and keys: it heals, and answers nothing wrongly."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.teacher_client.sync_client import SyncTeacherClient
from tests.compose.load import TOP_K, Addresses, Load, ReferenceRows
from tests.compose.stack import Stack, eventually, free_port, running
from tools.demo.settings import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]

_GATEWAY_KEY, _INFERENCE_KEY, _VENICE_KEY = "gateway-Tr0ub4dor", "inference-c0rrecth0rse", "venice-b4ttery$taple"
_TEACHER = ROOT / "models" / "stdlib-teacher"
_PUBLISHED = re.compile(r"faults/step-(\d+)")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, and the gateway's cert.pem and key.pem that it signed."""
    folder = tmp_path_factory.mktemp("tls")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = "subjectAltName=DNS:teacher-gateway,DNS:localhost,IP:127.0.0.1"
    for arguments in (
        [*new, "-subj", "/CN=root", "-keyout", "ca.key", "-out", "ca.pem"],
        [*new, "-subj", "/CN=gateway", "-addext", names, *signed, "-keyout", "key.pem", "-out", "cert.pem"],
    ):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
    # As the documentation says: the container's user is another one.
    (folder / "key.pem").chmod(0o644)
    return folder


@pytest.fixture(scope="module")
def addresses(tls: Path) -> Addresses:
    return Addresses(
        f"localhost:{free_port()}", f"http://127.0.0.1:{free_port()}", _GATEWAY_KEY, _INFERENCE_KEY, tls / "ca.pem"
    )


@pytest.fixture(scope="module")
def stack(addresses: Addresses, tls: Path) -> Iterator[Stack]:
    with running(
        "faults",
        "docker-compose.yml",
        "tests/compose/faults.yml",
        GATEWAY_PORT=addresses.gateway.rpartition(":")[2],
        GATEWAY_HTTP_PORT=str(free_port()),
        INFERENCE_PORT=addresses.inference.rpartition(":")[2],
        GATEWAY_API_KEY=_GATEWAY_KEY,
        INFERENCE_API_KEY=_INFERENCE_KEY,
        VENICE_API_KEY=_VENICE_KEY,
        GATEWAY_TLS_CA=str(tls / "ca.pem"),
        GATEWAY_TLS_CERT=str(tls / "cert.pem"),
        GATEWAY_TLS_KEY=str(tls / "key.pem"),
    ) as stack:
        yield stack


@pytest.fixture(scope="module")
def load(stack: Stack, addresses: Addresses) -> Iterator[Load]:
    with Load(addresses, ReferenceRows(_TEACHER)) as load:
        more(load)
        yield load
        load.check()


def more(load: Load, scores: int = 40, texts: int = 2) -> None:
    """Waits until so many more calls were answered, and looks at all that was answered so far."""
    before = dict(load.answers)
    eventually(
        lambda: bool(
            load.wrong
            or load.failures
            or (
                load.answers["scores"] >= before["scores"] + scores and load.answers["texts"] >= before["texts"] + texts
            )
        ),
        "answers",
    )
    load.check()


def trained_to(addresses: Addresses) -> int:
    """The step of the run, as the page of inference learns it from the trainer."""
    status = addresses.said("/training")
    return int(status["step"]) if status["stage"] == "student" else -1


def served_step(addresses: Addresses) -> int:
    match = _PUBLISHED.fullmatch(addresses.said("/health")["checkpoint"])
    assert match is not None
    return int(match[1])


def rows_of(logprobs_rv: "NDArray[np.float32]", token_ids: "NDArray[np.int64]") -> SparseRows:
    """The rows of full distributions FOR the ids from the second on."""
    order = np.argsort(-logprobs_rv, axis=1)[:, :TOP_K]
    logprobs = np.take_along_axis(logprobs_rv, order, axis=1)
    realised = logprobs_rv[np.arange(len(order)), token_ids[1:]]
    return SparseRows(
        first_position=1,
        ids=order.astype(np.uint32),
        logprobs=logprobs,
        counts=np.full(len(order), TOP_K, np.uint16),
        realised_logprobs=realised,
        realised_ranks=1 + (logprobs_rv > realised[:, None]).sum(1).astype(np.uint32),
        tail_mass=1 - np.exp(logprobs).sum(1),
    )


def test_rows_of_others_would_be_seen() -> None:
    """Else what the tests below compare says nothing."""
    reference = ReferenceRows(_TEACHER)
    (ids, other), (logprobs, of_other) = reference.ids[:2], reference.logprobs[:2]
    length = len(ids)
    assert reference.error(0, length, rows_of(logprobs, ids), "float32") is None
    for wrong in (rows_of(of_other, ids), rows_of(logprobs, other), rows_of(np.roll(logprobs, 1, axis=0), ids)):
        for dtype in ("float32", "float16"):
            assert reference.error(0, length, wrong, dtype) is not None
    assert reference.error(0, length, rows_of(logprobs[1:], ids[1:]), "float32") is not None


def test_no_secret_is_in_what_docker_inspect_and_logs_show(stack: Stack) -> None:
    shown = json.dumps(stack.inspected()) + stack("logs")
    for secret in (_GATEWAY_KEY, _INFERENCE_KEY, _VENICE_KEY):
        assert secret not in shown
    for service, secret in (
        ("teacher-gateway", "venice_api_key"),
        ("trainer", "gateway_api_key"),
        ("inference", "inference_api_key"),
    ):
        expected = stack.environment[secret.upper()]
        assert stack("exec", "-T", service, "cat", f"/run/secrets/{secret}").strip() == expected
    # Each has what it needs, and no more.
    assert "venice" not in stack("exec", "-T", "trainer", "ls", "/run/secrets")


def test_key_and_tls_reach_trainer_and_inference(stack: Stack, addresses: Addresses) -> None:
    ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:7861/status').read().decode())"
    assert json.loads(stack("exec", "-T", "trainer", "python", "-c", ask))["teacher_rows"]["rows"] > 0
    body = {"prompt": "def", "token_ids": [17, 18, 19], "top": 3, "model": addresses.said("/health")["checkpoint"]}
    assert len(addresses.said("/teacher", body)["tokens"]) == 3
    plain = SyncTeacherClient(addresses.gateway, timeout=10, attempts=1, api_key=_GATEWAY_KEY)
    keyless = SyncTeacherClient(addresses.gateway, timeout=10, attempts=1, tls_ca=addresses.tls_ca)
    with plain, pytest.raises(TeacherError, match="UNAVAILABLE"):
        plain.teacher()
    with keyless, pytest.raises(TeacherError, match="no key was sent"):
        keyless.teacher()


@pytest.mark.parametrize("service", ["redis", "teacher-gateway", "trainer", "inference"])
def test_a_killed_container_comes_back_and_nothing_was_answered_wrongly(
    stack: Stack, addresses: Addresses, load: Load, service: str
) -> None:
    restarts, step = stack.restarts(service), trained_to(addresses)
    stack.kill(service)
    eventually(lambda: stack.restarts(service) == restarts + 1, f"a restart of {service}")
    eventually(lambda: trained_to(addresses) > step, "further steps")
    eventually(lambda: int(stack("exec", "-T", "redis", "redis-cli", "dbsize")) > 0, "rows in Redis")
    more(load)


def test_a_frozen_redis_costs_hits_and_no_answers(stack: Stack, load: Load, addresses: Addresses) -> None:
    with addresses.client(timeout=120, attempts=1000) as client:
        stack("pause", "redis")
        try:
            more(load, scores=60)
            eventually(lambda: bool(client.teacher().problems), "a word about the cache")
            # It is ready all the same.
            stack("exec", "-T", "teacher-gateway", "python", "healthcheck.py", "grpc", "50051")
        finally:
            stack("unpause", "redis")
        eventually(lambda: not client.teacher().problems, "a cache without problems")
    kept = int(stack("exec", "-T", "redis", "redis-cli", "dbsize"))
    eventually(lambda: int(stack("exec", "-T", "redis", "redis-cli", "dbsize")) > kept, "new rows in Redis")
    more(load)


def test_a_full_disk_holds_up_what_is_published_and_nothing_else(
    stack: Stack, addresses: Addresses, load: Load
) -> None:
    fill = "cat /dev/zero > checkpoints/filler; true"
    stack("exec", "-T", "trainer", "sh", "-c", fill)
    eventually(lambda: "cannot be published" in stack("logs", "trainer"), "a warning of the trainer")
    step, served = trained_to(addresses), served_step(addresses)
    eventually(lambda: trained_to(addresses) > step, "further steps")
    more(load)
    stack("exec", "-T", "trainer", "rm", "checkpoints/filler")
    eventually(lambda: served_step(addresses) > served, "a newer checkpoint")
    more(load)
