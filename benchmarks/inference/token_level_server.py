"""python -m benchmarks.inference.token_level_server: inference, serving the token-level twin of what it would serve."""

from dataclasses import replace
from typing import Any

import torch

from benchmarks.inference.models import twin_of
from latentforge.core.devices import choose_device
from latentforge.core.logs import configure_logging
from latentforge.core.settings import load_settings
from latentforge.inference.main import serve
from latentforge.inference.settings import InferenceSettings
from latentforge.model.decoding.build import batch_decoding
from latentforge.snapshots.registry import Registry
from latentforge.snapshots.snapshot import DecodingMemory, Snapshot


class TokenLevelRegistry(Registry):
    """Gives in a student's place its twin, with random weights: the rest of a snapshot is the student's."""

    _student: Snapshot | None = None
    _twin: Snapshot | None = None

    @property
    def current(self) -> Snapshot | None:
        """The twin's snapshot; made when the student's is first loaded, which is in a thread of its own."""
        student = super().current
        if student is not None and student is not self._student:
            model: Any = twin_of(student.model, self.device)
            decoding = batch_decoding(model, student.decoding.num_slots)
            manifest = student.manifest.model_copy(update={"chunk_size": 1})
            self._twin = replace(student, manifest=manifest, model=model, decoding=decoding)
            self._student = student
        return self._twin


def main() -> None:
    """Serves with the settings of the environment."""
    settings = load_settings(InferenceSettings)
    configure_logging("inference", level=settings.log_level)
    torch.set_num_threads(settings.torch_threads or torch.get_num_threads())
    device = torch.device(choose_device("INFERENCE_DEVICE", settings.inference_device, torch.cuda.device_count()))
    memory = DecodingMemory(settings.inference_slots, settings.inference_exact)
    registry = TokenLevelRegistry(
        settings.checkpoints_dir, settings.checkpoint_run, device, settings.fallback_run, memory
    )
    registry.refresh()
    serve(settings, registry)


if __name__ == "__main__":
    main()
