import httpx
import pytest

from .conftest import Serve


@pytest.mark.parametrize("path", ["/health", "/ready", "/status", "/metrics", "/docs", "/openapi.json", "/nowhere"])
def test_head_is_what_get_is_without_a_body(serve: Serve, path: str) -> None:
    with serve() as running, httpx.Client(base_url=running.url) as client:
        asked, told = client.get(path), client.head(path)
        assert told.status_code == asked.status_code
        assert told.content == b""
        assert told.headers["content-type"] == asked.headers["content-type"]
        if path != "/metrics":
            assert told.headers["content-length"] == asked.headers["content-length"]
        # The connection is still in step.
        assert client.get("/status").status_code == 200
