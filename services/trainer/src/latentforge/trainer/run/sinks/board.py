"""TensorBoard: curves of all figures, and samples as text."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from latentforge.core.manifest import TextSample
from latentforge.trainer.run.events import Event


class Board:
    """Event files of one stage; steps of an earlier process from ``first`` on are taken back."""

    def __init__(self, folder: Path, first: int) -> None:
        self._writer = SummaryWriter(folder, purge_step=first)

    def take(self, event: Event) -> None:
        pace = event.pace.figures if event.pace else {}
        for name, value in {**event.figures, **pace}.items():
            self._writer.add_scalar(f"{event.kind}/{name}", value, event.step)
        for i, sample in enumerate(event.samples):
            self._writer.add_text(f"samples/{i}", _markdown(sample), event.step)

    def close(self) -> None:
        self._writer.close()


def _markdown(sample: TextSample) -> str:
    """Prompt and text as two blocks that Markdown leaves as they are."""
    blocks = (f"**{name}**\n\n" + "\n".join(f"    {line}" for line in text.splitlines()) for name, text in sample)
    return "\n\n".join(blocks)
