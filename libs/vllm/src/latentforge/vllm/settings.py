"""What the drafter can be told, from the environment of vLLM's process or .env."""

from pathlib import Path

from pydantic import Field

from latentforge.core.devices import DeviceName
from latentforge.core.settings import ServiceSettings
from latentforge.drafter.drafter import DraftsFrom


class DrafterSettings(ServiceSettings):
    """Read from the environment, over ``.env``, over these defaults. Names are upper-case in the environment."""

    prefixes = ("LATENTFORGE_",)

    latentforge_checkpoints: Path = Field(
        Path("checkpoints"),
        description="Folder that holds <run>/step-00001200/ of the students that draft for vLLM; newer ones are taken "
        "while it serves.",
    )
    latentforge_run: str | None = Field(
        None, description="Draft with this run's checkpoints only; unset follows the run that published last."
    )
    latentforge_fallback_run: Path | None = Field(
        None, description="A run's folder that drafts while LATENTFORGE_CHECKPOINTS has nothing; such as a shipped one."
    )
    latentforge_poll_seconds: float = Field(
        2.0, gt=0, le=3600, description="Seconds between two looks at LATENTFORGE_CHECKPOINTS."
    )
    latentforge_drafter_slots: int = Field(
        16, ge=1, le=1024, description="Texts that are drafted for at the same time; memory for so many is taken."
    )
    latentforge_drafter_device: DeviceName = Field(
        "auto", description="Where the student runs: auto, cpu, cuda or cuda:N; auto is the device of vLLM's model."
    )
    latentforge_least_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="A draft ends before the token with which the product of its tokens' chances falls below; unset is "
        "chosen by what passes and drafts are measured to take.",
    )
    latentforge_drafts_from: DraftsFrom = Field(
        "both",
        description="Who drafts: both is what came the last time where a text repeats itself, and the student "
        "elsewhere, where that pays; student or lookups is one of them alone.",
    )
    latentforge_acceptance_window: int = Field(
        1000,
        ge=0,
        le=1_000_000,
        description="Drafts over which a version's acceptance is taken, before it is compared with the last version's; "
        "0 never goes back to that.",
    )
    latentforge_drafter_metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port for the drafter's own metrics, on every address of the machine; 0 for none, where "
        "PROMETHEUS_MULTIPROC_DIR brings them to vLLM's own page.",
    )
