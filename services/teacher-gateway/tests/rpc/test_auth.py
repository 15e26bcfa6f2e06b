import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from latentforge.core.settings import SettingsError, load_settings
from latentforge.gateway.main import Gateway
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceStub
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sync_client import SyncTeacherClient

KEY = "s3cret-key"
HEALTHCHECK = Path(__file__).parents[4] / "compose" / "healthcheck.py"


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, a gateway's cert.pem and key.pem signed by it, and other.pem, a stranger's root."""
    folder = tmp_path_factory.mktemp("tls")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = "subjectAltName=DNS:gateway.example,IP:127.0.0.1"
    for arguments in (
        [*new, "-subj", "/CN=root", "-keyout", "ca.key", "-out", "ca.pem"],
        [*new, "-subj", "/CN=stranger", "-keyout", "other.key", "-out", "other.pem"],
        [*new, "-subj", "/CN=gateway", "-addext", names, *signed, "-keyout", "key.pem", "-out", "cert.pem"],
    ):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(
    ("metadata", "reason", "words"),
    [
        ((), "KEY_MISSING", "no key was sent; send the metadata 'authorization: Bearer"),
        ((("authorization", f"Bearer {KEY}x"),), "KEY_WRONG", "the key is wrong"),
        ((("authorization", f"Bearer {KEY[:-1]}"),), "KEY_WRONG", "the key is wrong"),
        ((("authorization", "Bearer "),), "KEY_WRONG", "the key is wrong"),
        ((("authorization", KEY),), "KEY_WRONG", "the key is wrong"),
        ((("authorization", f"Basic {KEY}"),), "KEY_WRONG", "the key is wrong"),
    ],
)
async def test_who_lacks_the_key_is_told_what_to_send(run_gateway: Any, metadata: Any, reason: str, words: str) -> None:
    async with run_gateway(gateway_api_key=KEY) as running, grpc.aio.insecure_channel(running.target) as channel:
        stub = TeacherServiceStub(channel)
        for call in (
            stub.GetTeacher(pb.GetTeacherRequest(), metadata=metadata),
            stub.Score(pb.ScoreRequest(token_ids=[1, 2]), metadata=metadata),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            info = error_details_pb2.ErrorInfo()
            assert rpc_status.from_call(caught.value).details[0].Unpack(info)  # type: ignore[arg-type]
            assert info.reason == reason
            assert KEY not in str(caught.value)
        with pytest.raises(grpc.aio.AioRpcError, match=words):
            await stub.ScoreBatch(pb.ScoreBatchRequest(sequences=[pb.TokenIds(ids=[1, 2])]), metadata=metadata).read()
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), metadata=metadata
        )
        with pytest.raises(grpc.aio.AioRpcError, match=words):
            await reflection.read()
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert running.backend.scored == []


async def test_the_key_opens_every_method_and_reflection(run_gateway: Any) -> None:
    async with run_gateway(gateway_api_key=KEY) as running:
        async with TeacherClient(running.target, timeout=10, api_key=KEY) as client:
            assert (await client.teacher()).model == "tiny-random"
            assert [a.index async for a in client.score_batch([[1, 2, 3]], 4)] == [0]
        async with grpc.aio.insecure_channel(running.target) as channel:
            listed = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(list_services="")]),
                metadata=[("authorization", f"bearer {KEY}")],
            )
            assert len((await listed.read()).list_services_response.service) == 3


async def test_a_client_without_the_key_says_so(run_gateway: Any) -> None:
    async with run_gateway(gateway_api_key=KEY) as running:
        with pytest.raises(TeacherError, match="GATEWAY_API_KEY") as caught:
            await running.client.teacher()
    assert caught.value.reason == "KEY_MISSING"


@pytest.mark.parametrize("key", ["two words", "żółć", "line\nbreak"])
def test_a_key_that_metadata_cannot_carry_is_refused_and_not_shown(key: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="GATEWAY_API_KEY: use printable ASCII") as caught:
        load_settings(GatewaySettings, gateway_api_key=key)
    assert key not in str(caught.value)


async def test_tls_answers_who_trusts_its_root_and_nobody_else(run_gateway: Any, tls: Path) -> None:
    settings = {"gateway_tls_cert": tls / "cert.pem", "gateway_tls_key": tls / "key.pem", "gateway_api_key": KEY}
    async with run_gateway(**settings) as running:
        async with TeacherClient(running.target, timeout=10, tls_ca=tls / "ca.pem", api_key=KEY) as client:
            assert len(await client.score([1, 2, 3], 4)) == 2
        async with TeacherClient(running.target, timeout=10, tls_ca=tls / "other.pem", attempts=1) as client:
            with pytest.raises(TeacherError, match="GATEWAY_TLS_CA"):
                await client.teacher()
        async with TeacherClient(running.target, timeout=10, attempts=1) as client:
            with pytest.raises(TeacherError, match="UNAVAILABLE"):
                await client.teacher()


@pytest.mark.parametrize("trusted", ["ca.pem", None])
async def test_the_containers_health_check_works_over_tls(run_gateway: Any, tls: Path, trusted: str | None) -> None:
    environment = {"GATEWAY_TLS_CERT": str(tls / "cert.pem")}
    if trusted is not None:
        environment["GATEWAY_TLS_CA"] = str(tls / trusted)
    async with run_gateway(gateway_tls_cert=tls / "cert.pem", gateway_tls_key=tls / "key.pem") as running:
        port = running.target.rpartition(":")[2]
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(HEALTHCHECK), "grpc", port, env=environment, stderr=asyncio.subprocess.PIPE
        )
        _, stderr = await process.communicate()
    assert (process.returncode, stderr) == (0, b"")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"gateway_tls_cert": "cert.pem"}, "GATEWAY_TLS_CERT is set without GATEWAY_TLS_KEY"),
        ({"gateway_tls_key": "key.pem"}, "GATEWAY_TLS_KEY is set without GATEWAY_TLS_CERT"),
        ({"gateway_tls_cert": "no.pem", "gateway_tls_key": "key.pem"}, "GATEWAY_TLS_CERT=.*no.pem cannot be read"),
        ({"gateway_tls_cert": "cert.pem", "gateway_tls_key": "ca.key"}, "are no PEM certificate and its key"),
        ({"gateway_tls_cert": "key.pem", "gateway_tls_key": "key.pem"}, "are no PEM certificate and its key"),
    ],
)
def test_wrong_tls_files_are_named_before_anything_starts(
    make_settings: Callable[..., Any], tls: Path, files: dict[str, str], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        Gateway(make_settings(**{name: tls / file for name, file in files.items()}))


@pytest.mark.parametrize(("file", "words"), [("no.pem", "cannot be read"), ("ca.key", "holds no PEM certificate")])
def test_a_wrong_root_certificate_is_named(tls: Path, file: str, words: str) -> None:
    with pytest.raises(SettingsError, match=f"GATEWAY_TLS_CA=.*{file} {words}"):
        SyncTeacherClient("localhost:1", tls_ca=tls / file)
