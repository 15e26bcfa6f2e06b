"""The gateway's settings: every environment variable that it reads."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr, field_validator

from latentforge.core.settings import ServiceSettings

BackendName = Literal["embedded", "transformers", "vllm-local", "vllm-remote", "venice"]

CACHE_URL_FORMS = (
    "sqlite:///relative/path.sqlite, sqlite:////absolute/path.sqlite, redis://host:6379/0, rediss://host:6379/0 or none"
)


def without_password(url: str) -> str:
    """A URL fit for a log: whatever stands before the @ of its host is left out."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class GatewaySettings(ServiceSettings):
    """Read from the environment, over ``.env``, over these defaults. Names are upper-case in the environment."""

    teacher_backend: BackendName = Field("embedded", description="Which teacher answers.")
    embedded_teacher_path: Path = Field(
        Path("models/stdlib-teacher"), description="embedded: folder of the shipped teacher."
    )
    teacher_model: str | None = Field(None, description="transformers: a folder or a hub id such as Qwen/Qwen3-0.6B.")
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="What the teacher computes in; auto is float32 on a CPU and bfloat16 on a GPU."
    )
    teacher_device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto, cpu, cuda or cuda:N; auto takes a GPU if present.",
    )
    teacher_quantization: Literal["none"] = Field("none", description="Quantisation of the weights.")
    max_sequence_length: int | None = Field(
        None, ge=2, description="Longest sequence in tokens; unset is what the model was made for."
    )
    max_top_k: int = Field(64, ge=1, le=1024, description="Most entries that a row may have.")

    gateway_host: str = Field("127.0.0.1", description="Address to listen on.")
    gateway_port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    shutdown_grace_seconds: float = Field(
        20.0, ge=0, description="After SIGTERM, the longest wait for calls that are being answered."
    )

    cache_url: SecretStr = Field(SecretStr("sqlite:///cache/kd_cache.sqlite"), description=f"One of {CACHE_URL_FORMS}.")
    cache_ttl_seconds: int = Field(7 * 24 * 3600, ge=1, description="redis: how long an entry lives.")

    max_tokens_in_flight: int = Field(16384, ge=1, description="Tokens that the backend is given at one time.")
    max_batch_tokens: int = Field(2048, ge=1, description="Tokens of one forward pass, padding included.")
    torch_threads: int = Field(0, ge=0, description="CPU threads of a forward pass; 0 leaves it to torch.")

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is logged.")
    log_json: bool | None = Field(None, description="JSON lines; unset is JSON when stderr is not a terminal.")

    venice_base_url: str = Field("https://api.venice.ai/api/v1", description="venice: base URL of the API.")
    venice_api_key: SecretStr | None = Field(None, description="venice: the key.")
    venice_model: str = Field("qwen3-5-9b", description="venice: which of the listed models.")
    vllm_local_url: str = Field("http://localhost:8000", description="vllm-local: base URL of the server.")
    vllm_remote_url: str | None = Field(None, description="vllm-remote: base URL of the server.")
    vllm_remote_api_key: SecretStr | None = Field(None, description="vllm-remote: the key, if the server wants one.")

    @field_validator("cache_url")
    @classmethod
    def _known_store(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        parts = urlsplit(url)
        stored = parts.scheme == "sqlite" and url.startswith("sqlite:///") and len(url) > len("sqlite:///")
        served = parts.scheme in ("redis", "rediss") and bool(parts.hostname)
        if not (stored or served or url == "none"):
            raise ValueError(f"{without_password(url)!r} is not a store; use {CACHE_URL_FORMS}")
        return value
