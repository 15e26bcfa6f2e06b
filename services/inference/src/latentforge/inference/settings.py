"""What the service can be told, from the environment, .env or the command line."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from latentforge.core.settings import ServiceSettings


class Settings(ServiceSettings):
    """Settings of the inference service; the environment names are the fields' in capitals.

    Attributes:
        checkpoints_dir: the folder that holds ``<run>/step-00001200/``.
        checkpoint_run: serves this run only; unset follows the run that published last.
        fallback_run: a run's folder, ``step-00001200/`` in it, that is served while the checkpoints folder has nothing.
        poll_seconds: seconds between two looks at the folder.
        host: address to listen on; 0.0.0.0 for every one.
        port: port to listen on; 0 takes a free one.
        device: where models run; auto takes CUDA where there is some.
        torch_threads: CPU threads of one request; 0 takes as many as there are cores. More than one pays off for wide
            students on idle machines only: threads that wait for a busy core cost far more than they bring.
        max_concurrent: requests that generate at the same time.
        queue_limit: requests that may wait beside those; more are answered 429.
        request_timeout: seconds that one request may take, waiting included.
        shutdown_seconds: seconds that running requests get to end after SIGTERM.
        cors_origins: origins that browsers may call from, separated by commas; * for all.
        log_level: what is logged at least.
    """

    checkpoints_dir: Path = Path("checkpoints")
    checkpoint_run: str | None = None
    fallback_run: Path | None = None
    poll_seconds: float = Field(default=1.0, gt=0, le=3600)
    host: str = "127.0.0.1"
    port: int = Field(default=7860, ge=0, le=65535)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    torch_threads: int = Field(default=1, ge=0, le=1024)
    max_concurrent: int = Field(default=4, ge=1, le=256)
    queue_limit: int = Field(default=32, ge=0, le=100_000)
    request_timeout: float = Field(default=300.0, gt=0)
    shutdown_seconds: int = Field(default=60, ge=1)
    cors_origins: str = "*"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @property
    def origins(self) -> list[str]:
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]
