from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from latentforge.core.settings import SettingsError, load_settings
from latentforge.inference.main import build
from latentforge.inference.settings import InferenceSettings

Client = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
BODY = {"prompt": "x"}


@pytest.fixture
def client_of(tmp_path: Path) -> Client:
    @asynccontextmanager
    async def start(**changes: Any) -> AsyncIterator[httpx.AsyncClient]:
        values = {f"inference_{name}": value for name, value in changes.items()}
        app = build(load_settings(InferenceSettings, checkpoints_dir=tmp_path, **values)).app
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            yield client

    return start


@pytest.mark.parametrize("path", ["/status", "/metrics", "/nowhere"])
async def test_a_key_guards_what_tells_something(client_of: Client, path: str) -> None:
    async with client_of(api_key="k-1") as client:
        refused = await client.get(path)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        error = refused.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
        assert "no key was sent" in error["message"]
        assert "x-request-id" in refused.headers
        let_in = await client.get(path, headers={"authorization": "Bearer k-1"})
        assert let_in.status_code == (404 if path == "/nowhere" else 200)


async def test_without_the_key_nothing_is_generated(client_of: Client) -> None:
    async with client_of(api_key="k-1, k-2") as client:
        assert (await client.post("/generate", json=BODY)).status_code == 401
        for wrong in (
            "Bearer k-3",
            "Bearer k-1x",
            "Bearer k-",
            "Bearer ",
            "Bearer",
            "Basic k-1",
            "k-1",
            "Bearer k-1, k-2",
        ):
            answer = await client.post("/generate", json=BODY, headers={"authorization": wrong})
            assert answer.status_code == 401, wrong
            assert "the key is wrong" in answer.json()["error"]["message"]
        odd = await client.post("/generate", json=BODY, headers=[(b"authorization", b"Bearer \xff\xfe")])
        assert odd.status_code == 401
        for good in ("Bearer k-1", "bearer k-2", "Bearer  k-2"):
            answer = await client.post("/generate", json=BODY, headers={"authorization": good})
            assert answer.json()["error"]["code"] == "no_checkpoint", good


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json"])
async def test_probes_and_the_documentation_need_no_key(client_of: Client, path: str) -> None:
    async with client_of(api_key="k-1") as client:
        assert (await client.get(path)).status_code != 401
        probe = await client.head(path)
        assert (probe.status_code != 401, probe.content) == (True, b"")


async def test_without_a_key_everybody_is_let_in(client_of: Client) -> None:
    async with client_of() as client:
        assert (await client.post("/generate", json=BODY)).json()["error"]["code"] == "no_checkpoint"


@pytest.mark.parametrize("value", [",", " ", " , ,"])
def test_keys_that_are_none_let_nobody_in(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("INFERENCE_API_KEY", value)
    with pytest.raises(SettingsError, match=r"INFERENCE_API_KEY.* would let everybody in"):
        load_settings(InferenceSettings)


@pytest.mark.parametrize("origin", ["https://a.example/", "a.example", "https://A.example", "https://*.a.example/x"])
def test_an_origin_that_no_browser_sends_is_refused(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("INFERENCE_CORS_ORIGINS", f"https://b.example:8443,{origin}")
    with pytest.raises(SettingsError, match=r"INFERENCE_CORS_ORIGINS.*is no origin"):
        load_settings(InferenceSettings)


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_API_KEY", "good,s3cret key")
    with pytest.raises(SettingsError, match="INFERENCE_API_KEY") as refused:
        load_settings(InferenceSettings)
    assert "s3cret" not in str(refused.value)
    assert "good" not in str(refused.value)


async def test_no_origin_may_read_unless_a_setting_says_so(client_of: Client) -> None:
    asked = {"origin": "https://a.org", "access-control-request-method": "POST"}
    async with client_of() as client:
        answer = await client.get("/health", headers={"origin": "https://a.org"})
        assert "access-control-allow-origin" not in answer.headers
        preflight = await client.options("/generate", headers=asked)
        assert preflight.status_code == 405
        assert "access-control-allow-origin" not in preflight.headers


async def test_an_allowed_origin_may_ask_with_a_key(client_of: Client) -> None:
    asked = {
        "origin": "https://b.org",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-request-id",
    }
    async with client_of(cors_origins="https://a.org, https://b.org", api_key="k-1") as client:
        preflight = await client.options("/generate", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://b.org"
        allowed = preflight.headers["access-control-allow-headers"].lower()
        assert {"authorization", "content-type", "x-request-id"} <= {name.strip() for name in allowed.split(",")}
        # A refusal, too, must be readable by the page that is to show it.
        refused = await client.post("/generate", json=BODY, headers={"origin": "https://b.org"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://b.org"
        assert "x-request-id" in refused.headers["access-control-expose-headers"]
        other = await client.get("/health", headers={"origin": "https://c.org"})
        assert "access-control-allow-origin" not in other.headers


async def test_a_page_of_another_site_changes_nothing(client_of: Client) -> None:
    sent = {"origin": "https://evil.org", "content-type": "text/plain"}
    async with client_of(cors_origins="https://a.org") as client:
        for site in ("cross-site", "same-site"):
            refused = await client.post("/generate", json=BODY, headers=sent | {"sec-fetch-site": site})
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == "origin_not_allowed"
        for headers in (
            {"sec-fetch-site": "same-origin", "origin": "http://test"},
            {"sec-fetch-site": "cross-site", "origin": "https://a.org"},
            {},
        ):
            assert (await client.post("/generate", json=BODY, headers=headers)).status_code == 503
        read = await client.get("/health", headers={"sec-fetch-site": "cross-site", "origin": "https://evil.org"})
        assert read.json()["status"] == "waiting"
