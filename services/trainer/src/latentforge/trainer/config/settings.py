"""What the environment decides; everything that changes a result is in the recipe instead."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from latentforge.teacher_client.access import GatewayAccess


class TrainerSettings(GatewayAccess):
    """Read from the environment, over ``.env``, over these defaults. Names are upper-case in the environment."""

    prefixes = ("TRAINER_", "GATEWAY_")
    others = frozenset(
        {
            "GATEWAY_BIND_ADDRESS",
            "GATEWAY_HEALTH_SECONDS",
            "GATEWAY_HOST",
            "GATEWAY_HTTP_BODY_SECONDS",
            "GATEWAY_HTTP_MAX_BODY_BYTES",
            "GATEWAY_HTTP_MAX_CONNECTIONS",
            "GATEWAY_HTTP_PORT",
            "GATEWAY_KEYS_FILE",
            "GATEWAY_METRICS_PORT",
            "GATEWAY_PORT",
            "GATEWAY_TLS_CERT",
            "GATEWAY_TLS_KEY",
        }
    )

    gateway_target: str = Field(
        "localhost:50051", pattern=r"^\S+:\d+$", description="host:port of the teacher-gateway."
    )
    checkpoints_dir: Path = Field(Path("checkpoints"), description="Folder that students are published in.")
    fallback_run: Path | None = Field(
        None, description="A run's folder, step-00001200/ in it, that is evaluated while nothing is published."
    )
    runs_dir: Path = Field(Path("runs"), description="Where a run keeps its data, state, metrics and autoencoder.")
    tokenizer_path: Path = Field(Path("models/stdlib-teacher"), description="Folder of the teacher's tokenizer.")
    recipes_dir: Path = Field(Path(__file__).parents[4] / "recipes", description="Where recipes are looked up by name.")
    trainer_threads: int = Field(
        0,
        ge=0,
        description="torch threads; 0 takes all cores, and leaves one to the gateway while the student trains.",
    )
    trainer_prefetch_batches: int = Field(
        6, ge=1, description="Batches whose teacher rows are asked for ahead of the step."
    )
    trainer_prefetch_in_flight: int = Field(2, ge=1, description="Of those, requests that may be open at once.")
    trainer_generate_in_flight: int = Field(
        8, ge=1, description="Requests for text that the teacher writes, open at once."
    )
    # Where CPU and GPU share one memory, running out of it freezes everything.
    trainer_cuda_memory_fraction: float = Field(
        1.0, gt=0, le=1, description="The most of a GPU's memory that training may take."
    )
    trainer_tracker: Literal["none", "trackio", "wandb"] = Field(
        "none", description="Experiment tracker that runs are logged to; its package has to be installed."
    )
    trainer_tracker_project: str = Field("latentforge", description="What the tracker calls the project.")
    # What docker-compose.gb10.yml gives a teacher to start, and some minutes for a container's restart before that.
    trainer_gateway_patience_seconds: float = Field(
        2400.0, ge=0, description="How long a lost gateway is waited for; no less than a teacher may take to start."
    )
