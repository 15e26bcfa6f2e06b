"""What a demo run can be told, from the environment (make demo VARIABLE=value)."""

import shlex
from datetime import datetime
from pathlib import Path

from pydantic import Field

from latentforge.core.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]
TEACHER = ROOT / "models" / "stdlib-teacher"


class DemoSettings(ServiceSettings):
    """Every service runs in ``folder``, so that caches, runs, checkpoints and results land there."""

    prefixes = ("DEMO_",)

    recipe: str = Field("demo", description="The trainer's recipe: demo, or smoke for seconds instead of minutes.")
    data: Path | None = Field(None, description="JSONL to train on; unset is the standard library of this Python.")
    serve: bool = Field(False, description="Leave inference running when all is done.")
    prompts_file: Path = Field(ROOT / "prompts.txt", description="One prompt per line.")

    gateway_port: int = Field(50051, ge=1, le=65535, description="Port of the teacher-gateway.")
    inference_port: int = Field(7860, ge=1, le=65535, description="Port of inference.")
    status_port: int = Field(7861, ge=1, le=65535, description="Port of the trainer's status.")

    demo_folder: Path = Field(ROOT, description="Where cache/, checkpoints/, data/, runs/ and results/ go.")
    demo_min_free_gb: float = Field(3.0, ge=0, description="Free disk space below which the demo refuses to start.")
    demo_poll_seconds: float = Field(3.0, gt=0, description="Time between two requests to inference while training.")
    demo_bench_repeats: int = Field(5, ge=1, description="Times that the benchmark runs every prompt.")
    demo_seed: int = Field(0, ge=0, description="Seed of the samples.")

    @property
    def command(self) -> str:
        """What to type for the same again."""
        chosen = self.model_dump(include=self.model_fields_set, exclude_none=True)
        return shlex.join(["make", "demo", *(f"{name.upper()}={value}" for name, value in chosen.items())])

    @property
    def ports(self) -> dict[str, int]:
        """By the variable that sets it."""
        return {
            "GATEWAY_PORT": self.gateway_port,
            "INFERENCE_PORT": self.inference_port,
            "STATUS_PORT": self.status_port,
        }


def fresh_run_name(recipe: str, now: datetime) -> str:
    """Every demo trains anew, so every demo has a run of its own."""
    return f"{recipe}-{now:%Y%m%d-%H%M%S}"
