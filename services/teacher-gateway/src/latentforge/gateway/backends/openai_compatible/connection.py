"""The way to a compatible server, and whether it is still the one that was met."""

from dataclasses import replace

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.openai_compatible.identity import MetServer
from latentforge.gateway.backends.upstream import Api, Upstream
from latentforge.gateway.breaker import Breaker
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings

NAME, URL, _KEY = "openai-compatible", "OPENAI_COMPATIBLE_URL", "OPENAI_COMPATIBLE_API_KEY"
_TIMEOUT_SECONDS = 600.0
_LOOK_SECONDS = 10.0
_MAX_QUEUED = 4096
_ATTEMPTS = 4
_BREAKER_FAILURES, _BREAKER_WINDOW, _BREAKER_PAUSE = 16, 30.0, 5.0


class Connection:
    """One server.

    Attributes:
        identity: what it must be still.
        upstream: asks it.
        looks: asks it how it is: once, soon, and past the breaker.

    Raises:
        SettingsError: OPENAI_COMPATIBLE_URL is not set, or it or the key cannot be used.
    """

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        if settings.openai_compatible_url is None:
            raise SettingsError(f"{URL} is not set; TEACHER_BACKEND={NAME} needs the server's base URL")
        self.api = Api(
            name=NAME,
            base_url=settings.openai_compatible_url.rstrip("/").removesuffix("/v1"),
            url_setting=URL,
            key=settings.openai_compatible_api_key,
            key_setting=_KEY,
            max_requests=settings.openai_compatible_max_requests,
            max_queued=_MAX_QUEUED,
            attempts=_ATTEMPTS,
            timeout=_TIMEOUT_SECONDS,
        )
        self._breaker = Breaker(_BREAKER_FAILURES, _BREAKER_WINDOW, _BREAKER_PAUSE, on_change=metrics.breaker(NAME))
        self.identity = MetServer(self.api)
        self.upstream = Upstream(self.api, self._breaker, metrics, on_doubt=self.identity.doubt)
        impatient = replace(self.api, attempts=1, timeout=_LOOK_SECONDS)
        self.looks = Upstream(impatient, Breaker.never_opening(), metrics)

    async def check(self) -> None:
        """
        Raises:
            BackendError: the server does not answer now, or is another teacher.
        """
        await self.identity.look()
        if self._breaker.is_open:
            # It is closed by an answer, which nobody may be waiting for.
            await self.upstream.get("/v1/models")

    async def close(self) -> None:
        await self.identity.close()
        await self.looks.close()
        await self.upstream.close()
