"""Whether the disks have room for all that a run will keep, looked at before it begins."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from latentforge.core.disk import check_room, existing, free_bytes
from latentforge.model.config import AutoencoderConfig
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.run.overview import bytes_on_disk
from latentforge.trainer.training.estimates.dry_run import StageName, saved_bytes
from latentforge.trainer.training.publish import publish_steps
from latentforge.trainer.training.state import has_state


def check_disks(run: RunContext, stages: Sequence[StageName], autoencoder: AutoencoderConfig | None = None) -> None:
    """Warns where a run's states and checkpoints, besides those that are there, are more than is free.

    Checkpoints count whole, though they share an autoencoder's file; data, generated text and metrics do not count.

    Args:
        run: the run.
        stages: that are to be trained.
        autoencoder: the student's, where it is there already; None takes the recipe's.

    Raises:
        OSError: there is not even room for the first state of one of them.
    """
    if not run.ranks.is_main:
        return
    recipe, checkpoints = run.recipe, run.settings.checkpoints_dir / run.name
    # By the device that a folder is on.
    needed: defaultdict[int, int] = defaultdict(int)
    places: dict[int, Path] = {}
    parts = []

    def need(folder: Path, num_bytes: int) -> None:
        device = existing(folder).stat().st_dev
        needed[device] += max(0, num_bytes - bytes_on_disk(folder))
        places[device] = folder

    for stage in stages:
        state, checkpoint = saved_bytes(recipe, stage, run.tokenizer, autoencoder)
        states = run.folder / "state" / stage
        if not has_state(states):
            check_room(states, state)
        # A new one is whole before the oldest goes.
        num_states = 1 + (recipe.autoencoder if stage == "autoencoder" else recipe.student).keep_states
        need(states, num_states * state)
        parts.append(f"{num_states} states of {state / 1e6:,.1f} MB of the {stage}")
        if stage == "student":
            keep, num = recipe.student.keep_checkpoints, len(publish_steps(recipe.student))
            # Besides the newest the best, and the one that is written.
            num = num if keep is None else min(num, keep + 2)
            need(checkpoints, num * checkpoint)
            parts.append(f"{num} checkpoints of {checkpoint / 1e6:,.1f} MB")
        else:
            need(run.folder / stage, checkpoint)
    for device, num_bytes in needed.items():
        if (free := free_bytes(places[device])) < num_bytes:
            run.say(
                f"warning: the run will write about {num_bytes / 1e6:,.1f} MB more to the disk of {places[device]} "
                f"({', '.join(parts)}), and {free / 1e6:,.1f} MB are free; make room, or lower keep_states or "
                "student.keep_checkpoints"
            )
