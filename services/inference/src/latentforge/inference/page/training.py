"""What the trainer says of its run, asked for the page, whose browser asks no other server."""

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentforge.core.errors import describe_errors
from latentforge.core.proxies import is_loopback, proxy_hint
from latentforge.inference.rest.errors import RestError

_SECONDS = 3.0
_MOST_BYTES = 2**20
_MOST_POINTS = 2000


class TrainingStatus(BaseModel):
    """The trainer's GET /status; what else it says is left out.

    Attributes:
        run: its name.
        stage: starting, data, generate, autoencoder, student or finished.
        step, of: in the stage.
        losses: the newest figures by name.
        eta: seconds left in the stage.
        tokens_per_s: over the newest steps.
        teacher_wait_seconds: how long the trainer's process has waited for its teacher.
        train, held_out: the stage's curves: points with ``step`` and figures by name.
        done: the run is finished.
        error: why it failed.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    run: str
    stage: str
    step: int = 0
    of: int = 0
    losses: dict[str, float] = {}
    eta: float | None = None
    tokens_per_s: float | None = None
    teacher_wait_seconds: float | None = None
    train: list[dict[str, float]] = Field([], max_length=_MOST_POINTS)
    held_out: list[dict[str, float]] = Field([], max_length=_MOST_POINTS)
    done: bool = False
    error: str | None = None


class TrainerStatus:
    """Asks a trainer for its status.

    Args:
        url: where it serves it, as ``http://trainer:7861``; None where nothing is configured.
    """

    def __init__(self, url: str | None) -> None:
        self.url = url.rstrip("/") if url else None

    async def get(self) -> TrainingStatus:
        """The status as it is now.

        Raises:
            RestError: 404 where no URL is set, 503 where nobody answers there, 502 where the answer is no status.
        """
        if self.url is None:
            raise RestError(
                404,
                "not_configured",
                "INFERENCE_TRAINER_STATUS_URL is not set: set it to where the trainer serves its status, as "
                "http://localhost:7861",
            )
        try:
            body = await self._body(f"{self.url}/status")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise RestError(
                503,
                "trainer_unavailable",
                f"no trainer answers at {self.url} ({reason}); it may have ended{proxy_hint(self.url)}",
            ) from None
        try:
            return TrainingStatus.model_validate_json(body)
        except ValidationError as error:
            raise RestError(
                502, "not_a_trainer", f"what answers at {self.url} is no trainer's status: {describe_errors(error)[0]}"
            ) from None

    async def _body(self, url: str) -> bytes:
        body = bytearray()
        async with (
            httpx.AsyncClient(trust_env=not is_loopback(url), timeout=_SECONDS) as client,
            client.stream("GET", url) as response,
        ):
            response.raise_for_status()
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > _MOST_BYTES:
                    raise RestError(502, "not_a_trainer", f"{url} answers with more than {_MOST_BYTES} bytes")
        return bytes(body)
