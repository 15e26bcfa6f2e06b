"""The gateway's settings: every environment variable that it reads."""

import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from latentforge.core.devices import DeviceName
from latentforge.core.settings import ServiceSettings
from latentforge.teacher_client.access import GatewayKey

BackendName = Literal["embedded", "transformers", "vllm-local", "vllm-remote", "venice", "openai-compatible"]

CACHE_URL_FORMS = (
    "sqlite:///relative/path.sqlite, sqlite:////absolute/path.sqlite, redis://host:6379/0, rediss://host:6379/0, "
    "redis+cluster://host:6379 or rediss+cluster://host:6379 (any node of a Redis Cluster), or none"
)


# A URL that is read in one way only. Where a password holds what ends a host (/ ? #), some part of it would stand where
# the host does, so all that follows is in letters that a password need not be told apart from.
_CLEAR_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://([^\s/?#]*@)?(?P<address>([\w.-]+|\[[0-9A-Fa-f:.]+\])(:\d+)?)"
    r"(?P<path>(/[\w.~-]*)*)(\?(?P<query>[\w.~%&=/:+-]*))?",
    re.ASCII,
)
# With the databases that they may name: a cluster has one.
_REDIS_PATHS = {"redis": r"(/\d*)?", "rediss": r"(/\d*)?", "redis+cluster": "(/0?)?", "rediss+cluster": "(/0?)?"}


def shown_url(url: str) -> str:
    """A URL fit for a log: scheme, host, port and path, and of those only what is certainly no part of a password."""
    if match := _CLEAR_URL.fullmatch(url):
        return f"{match['scheme']}://{match['address']}{match['path']}"
    scheme = re.match(r"(https?|rediss?(\+cluster)?)://", url)
    return f"{scheme[0] if scheme else ''}(hidden)"


class GatewaySettings(ServiceSettings):
    """Read from the environment, over ``.env``, over these defaults. Names are upper-case in the environment."""

    # Not VLLM_, with which vLLM's own variables begin.
    prefixes = ("GATEWAY_", "TEACHER_", "CACHE_", "VENICE_", "VLLM_LOCAL_", "VLLM_REMOTE_", "OPENAI_COMPATIBLE_")
    others = frozenset({"GATEWAY_BIND_ADDRESS", "GATEWAY_TARGET"})

    teacher_backend: BackendName = Field("embedded", description="Which teacher answers.")
    embedded_teacher_path: Path = Field(
        Path("models/stdlib-teacher"), description="embedded: folder of the shipped teacher."
    )
    teacher_model: str | None = Field(None, description="transformers: a folder or a hub id such as Qwen/Qwen3-0.6B.")
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="What the teacher computes in; auto is float32 on a CPU and bfloat16 on a GPU."
    )
    teacher_device: DeviceName = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU if present.")
    teacher_quantization: Literal["none"] = Field("none", description="Quantisation of the weights.")
    max_sequence_length: int | None = Field(
        None, ge=2, description="Longest sequence in tokens; unset is what the model was made for, where it says."
    )
    # A row says in 16 bits how many entries it has.
    max_top_k: int = Field(
        64, ge=1, le=2**16 - 1, description="Most entries that a row may have; with the vocabulary's size it is whole."
    )

    gateway_host: str = Field("127.0.0.1", description="Address to listen on.")
    gateway_port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    gateway_api_key: GatewayKey | None = Field(
        None, description="Callers must send it as a bearer token; unset lets everybody in."
    )
    gateway_keys_file: Path | None = Field(
        None,
        description="TOML file of the clients' own keys, which have names, and may have shares and quotas; such as "
        "/run/secrets/gateway_keys.toml.",
    )
    gateway_tls_cert: Path | None = Field(None, description="PEM file of the certificate chain; set makes it TLS.")
    gateway_tls_key: Path | None = Field(None, description="PEM file of the certificate's key.")
    gateway_tls_ca: Path | None = Field(
        None, description="cache --target: PEM file of the root certificate of a gateway with TLS."
    )
    gateway_http_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the HTTP API (vLLM's and TRL's protocols); 0 takes a free one, unset has none.",
    )
    gateway_http_max_body_bytes: int = Field(
        8 * 2**20, ge=1024, description="HTTP: longest body of a request; a million token ids have some 6 MB."
    )
    gateway_http_body_seconds: float = Field(
        20.0,
        gt=0,
        description="HTTP: within which a request's headers have to come, and then its body; a client that takes "
        "nothing of its answer for as long is let go.",
    )
    gateway_http_max_connections: int = Field(
        512, ge=1, description="HTTP: connections that may be open at one time; more are answered 503."
    )
    gateway_metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port of Prometheus metrics over HTTP; 0 takes a free one, unset has none."
    )
    gateway_health_seconds: float = Field(
        2.0, gt=0, description="Between two checks of whether the teacher answers and the cache takes rows."
    )
    otel_exporter_otlp_endpoint: str | None = Field(
        None, pattern=r"^https?://\S+$", description="Where traces go, as http://localhost:4317; unset makes none."
    )
    shutdown_grace_seconds: float = Field(
        20.0,
        ge=0,
        description="After SIGTERM, the longest wait for calls that are being answered, and for HTTP clients to read.",
    )

    cache_url: SecretStr = Field(SecretStr("sqlite:///cache/kd_cache.sqlite"), description=f"One of {CACHE_URL_FORMS}.")
    cache_ttl_seconds: int = Field(7 * 24 * 3600, ge=1, description="redis: how long an entry lives.")

    cache_max_mb: int = Field(
        20_000, ge=0, description="sqlite: size of the file, in MB; entries not asked for longest go. 0 keeps all."
    )
    cache_connect_seconds: float = Field(0.1, gt=0, description="redis: longest wait for a connection.")
    cache_answer_seconds: float = Field(
        0.25, gt=0, description="redis: longest wait for an answer; a lookup that goes on longer blocks the next ones."
    )
    cache_lookup_seconds: float = Field(
        0.1,
        gt=0,
        description="redis: longest wait of a call for a lookup; a tenth of a batch's time if that is less.",
    )

    cache_memory_mb: int = Field(
        64, ge=0, description="Rows asked for last that are kept in memory too, in MB; 0 keeps none."
    )
    cache_write_queue_mb: int = Field(
        64, ge=1, description="Rows that may be queued to be written to the cache, in MB; more are not kept."
    )

    max_tokens_in_flight: int = Field(16384, ge=1, description="Tokens that the backend is given at one time.")
    max_queued_tokens: int = Field(
        1_000_000, ge=1, description="Tokens that may be queued for the backend; more are refused for now."
    )
    max_queued_sequences: int = Field(
        10_000, ge=1, description="Sequences that may be queued or running; more are refused for now."
    )
    max_batch_tokens: int = Field(2048, ge=1, description="Tokens of one forward pass, padding included.")
    max_text_bytes: int | None = Field(
        None,
        ge=1,
        description="Bytes of a text or a chat; more are refused before they are tokenised. Unset is 16 for each token "
        "of the longest sequence.",
    )
    max_request_mb: int = Field(
        16, ge=1, le=64, description="Size of a gRPC request, in MB; more are refused before they are read."
    )
    torch_threads: int = Field(0, ge=0, description="CPU threads of a forward pass; 0 leaves it to torch.")

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is logged.")
    log_json: bool | None = Field(None, description="JSON lines; unset is JSON when stderr is not a terminal.")

    venice_base_url: str = Field("https://api.venice.ai/api/v1", description="venice: base URL of the API.")
    venice_api_key: SecretStr | None = Field(None, description="venice: the key.")
    venice_model: str = Field("qwen3-5-9b", description="venice: which of the listed models.")
    venice_max_requests: int = Field(8, ge=1, le=16, description="venice: requests open at one time.")
    venice_max_queued: int = Field(256, ge=0, description="venice: requests that may be queued beside those.")
    venice_top_logprobs: int = Field(
        20, ge=2, le=64, description="venice: most entries of a row; half of it while requests are refused with 429."
    )
    venice_attempts: int = Field(6, ge=1, le=20, description="venice: tries of one request.")
    venice_max_usd: float | None = Field(
        None,
        gt=0,
        description="venice: what answers may cost since the gateway started, in USD at list price; then it refuses.",
    )
    venice_timeout_seconds: float = Field(180.0, gt=0, description="venice: longest wait for one answer.")
    venice_check_prompt: bool = Field(
        True,
        description="venice: drop answers whose prompt Venice counts as other tokens than the chat template gives.",
    )
    tokenizer_path: Path | None = Field(
        None,
        description="Teachers that run elsewhere: folder with tokenizer.json and config.json; weights are not needed.",
    )
    vllm_local_mode: Literal["server", "in-process"] = Field(
        "server", description="vllm-local: ask the server at VLLM_LOCAL_URL, or run vLLM's engine in the gateway."
    )
    vllm_local_url: str = Field("http://localhost:8000", description="vllm-local: base URL of the server.")
    vllm_local_model: str | None = Field(
        None, description="vllm-local: the folder or hub id that serve-vllm and the in-process mode load."
    )
    vllm_quantization: Literal["none", "gptq", "awq"] = Field("none", description="vllm-*: how the weights are kept.")
    vllm_max_model_len: int | None = Field(
        None, ge=3, description="vllm-local: longest sequence, a generated token included; unset is the model's own."
    )
    vllm_gpu_memory_util: float = Field(
        0.9, gt=0, le=1, description="vllm-local: share of a GPU's memory that vLLM takes."
    )
    vllm_moe_backend: str = Field(
        "auto",
        description="vLLM's kernels for mixtures of experts: auto leaves it to vLLM; on a GB10 marlin or "
        "flashinfer_cutlass may be faster.",
    )
    vllm_load_format: str = Field(
        "auto",
        description="How vLLM reads the weights: auto, or fastsafetensors, which is faster and has frozen GB10s.",
    )
    vllm_python: Path | None = Field(
        None, description="serve-vllm: a Python with vLLM; unset is .venv-vllm's, else that of vllm on the PATH."
    )
    vllm_remote_url: str | None = Field(None, description="vllm-remote: base URL of the server.")
    vllm_remote_api_key: SecretStr | None = Field(None, description="vllm-remote: the key, if the server wants one.")
    vllm_served_model: str | None = Field(
        None, description="vllm-*: which of the models that the server lists; unset is its first."
    )
    vllm_revision: str = Field(
        "", description="vllm-*: part of the cache's keys; change it when the weights change and their path does not."
    )
    vllm_max_requests: int = Field(16, ge=1, description="vllm-*: requests open at one time.")
    vllm_start_seconds: float = Field(
        600, ge=0, description="vllm-*, openai-compatible: how long a server that is starting is waited for."
    )

    openai_compatible_url: str | None = Field(None, description="openai-compatible: base URL of the server.")
    openai_compatible_api_key: SecretStr | None = Field(
        None, description="openai-compatible: the key, if the server wants one."
    )
    openai_compatible_model: str | None = Field(
        None, description="openai-compatible: which of the models that the server lists; unset is its first."
    )
    openai_compatible_revision: str = Field(
        "", description="openai-compatible: part of the cache's keys; change it when the weights change."
    )
    openai_compatible_max_requests: int = Field(16, ge=1, description="openai-compatible: requests open at one time.")

    @field_validator("cache_url")
    @classmethod
    def _known_store(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        stored = url.startswith("sqlite:///") and len(url) > len("sqlite:///")
        if not (stored or url == "none" or _is_redis_url(url)):
            raise ValueError(
                f"not a store's URL; use {CACHE_URL_FORMS}; an IPv6 address stands in brackets; in a password write "
                "/ ? # as %2F %3F %23"
            )
        return value


def _is_redis_url(url: str) -> bool:
    match = _CLEAR_URL.fullmatch(url)
    if match is None or not re.fullmatch(_REDIS_PATHS.get(match["scheme"], "(?!)"), match["path"]):
        return False
    try:
        urlsplit(url).port  # noqa: B018  is it one?
    except ValueError:
        return False
    return True
