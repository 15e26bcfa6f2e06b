"""What the environment decides; everything that changes a result is in the recipe instead."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from latentforge.core.settings import ServiceSettings


class TrainerSettings(ServiceSettings):
    """Each field is the environment variable of the same name in capitals.

    Attributes:
        gateway_target: host:port of the teacher-gateway.
        gateway_api_key: its key, if it has one.
        gateway_tls_ca: PEM file of the root certificate of a gateway with TLS.
        checkpoints_dir: where students are published.
        fallback_run: a run's folder, ``step-00001200/`` in it, that is evaluated while nothing is published.
        runs_dir: where a run keeps its data, state, metrics and autoencoder.
        tokenizer_path: folder of the teacher's tokenizer.
        recipes_dir: where recipes are looked up by name.
        trainer_threads: torch threads; 0 takes all cores, and leaves one to the gateway while the student trains.
        prefetch_batches: batches whose teacher rows are asked for ahead of the step.
        prefetch_in_flight: of those, how many requests may be open at once.
        generate_in_flight: requests for the teacher's own text that may be open at once.
        cuda_memory_fraction: the most of a GPU's memory that training may take; where CPU and GPU share one memory,
            running out of it freezes everything.
        teacher_patience_seconds: how long a lost gateway is waited for.
    """

    gateway_target: Annotated[str, Field(pattern=r"^\S+:\d+$")] = "localhost:50051"
    gateway_api_key: SecretStr | None = None
    gateway_tls_ca: Path | None = None
    checkpoints_dir: Path = Path("checkpoints")
    fallback_run: Path | None = None
    runs_dir: Path = Path("runs")
    tokenizer_path: Path = Path("models/stdlib-teacher")
    recipes_dir: Path = Path(__file__).parents[4] / "recipes"
    trainer_threads: Annotated[int, Field(ge=0)] = 0
    prefetch_batches: Annotated[int, Field(ge=1)] = 6
    prefetch_in_flight: Annotated[int, Field(ge=1)] = 2
    generate_in_flight: Annotated[int, Field(ge=1)] = 8
    cuda_memory_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    teacher_patience_seconds: Annotated[float, Field(ge=0)] = 300.0
