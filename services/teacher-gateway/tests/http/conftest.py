"""A gateway with its HTTP API, and a client of that."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest


@dataclass(frozen=True)
class Asked:
    """``running`` is the gateway, ``client`` knows its HTTP address."""

    running: Any
    client: httpx.AsyncClient

    async def complete(self, **fields: Any) -> Any:
        """An answer of /v1/completions, which has to be one."""
        answer = await self.client.post("/v1/completions", json=fields)
        assert answer.status_code == 200, answer.text
        return answer.json()


RunHttp = Callable[..., AbstractAsyncContextManager[Asked]]


@pytest.fixture
def run_http(run_gateway: Any) -> RunHttp:
    """Starts a gateway for given settings, and an HTTP client of it."""

    @asynccontextmanager
    async def run(**changes: Any) -> AsyncIterator[Asked]:
        async with run_gateway(gateway_http_port=0, **changes) as running:
            url = f"http://127.0.0.1:{running.gateway.http_port}"
            async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
                yield Asked(running, client)

    return run


@pytest.fixture
async def http(run_http: RunHttp) -> AsyncIterator[Asked]:
    async with run_http() as asked:
        yield asked
