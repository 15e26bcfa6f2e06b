"""What the service can be told, from the environment, .env or the command line."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator

from latentforge.core.devices import DeviceName
from latentforge.teacher_client.access import GatewayAccess

_KEY = re.compile(r"[!-~]+")
# As in https://a.example:8443; extensions of browsers have schemes of their own.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\sA-Z]+")


class InferenceSettings(GatewayAccess):
    """Read from the environment, over ``.env``, over these defaults. Names are upper-case in the environment."""

    prefixes = ("INFERENCE_",)

    checkpoints_dir: Path = Field(Path("checkpoints"), description="Folder that holds <run>/step-00001200/.")
    checkpoint_run: str | None = Field(
        None, description="Serve this run only; unset follows the run that published last."
    )
    fallback_run: Path | None = Field(
        None, description="A run's folder, step-00001200/ in it, that is served while CHECKPOINTS_DIR has nothing."
    )
    inference_extra_checkpoints: int = Field(
        1,
        ge=0,
        le=64,
        description="Checkpoints that are kept in memory beside the one that is served, for requests that name them.",
    )
    inference_poll_seconds: float = Field(
        1.0, gt=0, le=3600, description="Seconds between two looks at the checkpoints folder."
    )
    inference_host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every one.")
    inference_port: int = Field(7860, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    inference_device: DeviceName = Field(
        "auto", description="Where models run: auto, cpu, cuda or cuda:N; auto takes CUDA where there is some."
    )
    # More than one pays off for wide students on idle machines only: threads that wait for a busy core cost far more
    # than they bring.
    torch_threads: int = Field(
        1, ge=0, le=1024, description="CPU threads that write texts; 0 takes as many as there are cores."
    )
    inference_slots: int = Field(
        16, ge=1, le=1024, description="Texts that are written at the same time; memory for so many is taken."
    )
    inference_queue_limit: int = Field(
        32, ge=0, le=100_000, description="Requests that may be queued beside those; more are answered 429."
    )
    inference_queue_tokens: int = Field(
        262_144,
        ge=1,
        description="Tokens, of prompts and max_tokens together, that queued requests may come to; more is answered "
        "429.",
    )
    inference_prefill_tokens: int = Field(
        512,
        ge=1,
        description="Tokens of prompts that are read between two steps: how long a long prompt holds others up.",
    )
    inference_exact: bool = Field(
        False,
        description="The same seed gives the same text to the last bit whatever is written beside it; as slow as one "
        "text after the other.",
    )
    inference_request_timeout: float = Field(
        300.0, gt=0, description="Seconds that one request may take, time in the queue included."
    )
    inference_max_choices: int = Field(
        64,
        ge=1,
        le=4096,
        description="Texts that one request may ask for: its prompts times n; fewer where slots and queue hold fewer.",
    )
    inference_heartbeat_seconds: float = Field(
        10.0, gt=0, le=3600, description="Seconds of silence after which a stream says that it is still there."
    )
    inference_shutdown_seconds: int = Field(
        60, ge=1, description="Seconds that running requests get to end after SIGTERM."
    )
    inference_max_body_bytes: int = Field(
        4 * 2**20, ge=1024, description="Bytes that the body of a request may have; a longer one is answered 413."
    )
    inference_body_seconds: float = Field(
        20.0,
        gt=0,
        le=3600,
        description="Seconds that a request's headers may take to arrive, and its body then; it is answered 408. A "
        "client that takes nothing of its answer for as long is let go.",
    )
    inference_max_connections: int = Field(
        1000, ge=1, description="Connections that may be open at one time; more are answered 503."
    )
    inference_api_key: SecretStr | None = Field(
        None,
        description="Callers must send it, or one of several with commas between them, as a bearer token; unset lets "
        "everybody in.",
    )
    inference_cors_origins: str = Field(
        "",
        description="Origins whose pages may call, as https://a.example with commas between them; * for all, unset "
        "for none but the server's own.",
    )
    otel_exporter_otlp_endpoint: str | None = Field(
        None, pattern=r"^https?://\S+$", description="Where traces go, as http://localhost:4317; unset makes none."
    )
    gateway_target: str | None = Field(
        None,
        pattern=r"^\S+:\d+$",
        description="host:port of a teacher-gateway; the page shows its teacher beside a student. Unset shows none.",
    )
    inference_trainer_status_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="Where a trainer serves its status, as http://localhost:7861: the page's curves while it trains.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is logged.")
    log_json: bool | None = Field(None, description="JSON lines; unset is JSON when stderr is not a terminal.")

    @field_validator("inference_api_key")
    @classmethod
    def _keys_that_a_header_can_hold(cls, value: SecretStr | None) -> SecretStr | None:
        keys = _listed(value.get_secret_value()) if value else []
        if value and value.get_secret_value() and not keys:
            raise ValueError("there is no key in it, which would let everybody in; write one, or unset it")
        for key in keys:
            if not _KEY.fullmatch(key):
                raise ValueError("a key is letters, digits and punctuation of ASCII, without spaces; make another")
        return value

    @field_validator("inference_cors_origins")
    @classmethod
    def _origins_as_browsers_send_them(cls, value: str) -> str:
        for origin in _listed(value):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin} is no origin: write https://a.example, in lower case and without a path")
        return value

    @property
    def api_keys(self) -> list[str]:
        """Keys that let a caller in; none lets everybody in."""
        return _listed(self.inference_api_key.get_secret_value()) if self.inference_api_key else []

    @property
    def origins(self) -> list[str]:
        return _listed(self.inference_cors_origins)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
