"""Which version drafts: the newest that passed its checks, until its acceptance shows that the last one was better."""

import logging
from dataclasses import dataclass

from latentforge.drafter.drafter import Drafter, DraftRule
from latentforge.snapshots.registry import Registry
from latentforge.snapshots.snapshot import Snapshot
from latentforge.vllm.acceptance import AcceptanceWindows, is_clearly_worse, overall
from latentforge.vllm.left import write_left
from latentforge.vllm.metrics import DrafterMetrics
from latentforge.vllm.pending import Verified

# A new version is compared with the last one over so many windows. Later on the traffic has changed as well, and what
# the last one did with other texts says nothing.
TRIAL_WINDOWS = 4

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Version:
    """A snapshot that drafts or did.

    Attributes:
        snapshot: the student.
        windows: its acceptance.
        num_judged: windows that were compared with another version's.
        drafter: its state of the texts that are written; None where there is none, as after a failure.
    """

    snapshot: Snapshot
    windows: AcceptanceWindows
    num_judged: int = 0
    drafter: Drafter | None = None

    @property
    def id(self) -> str:
        return self.snapshot.id

    def forget_texts(self) -> None:
        """Frees its slots; it begins anew should it draft again."""
        if self.drafter is not None:
            self.drafter.close()
            self.drafter = None


class Versions:
    """Follows a registry, between two steps; used by the thread that drafts, and by no other.

    Args:
        registry: which something else refreshes.
        rule: when drafts end.
        window: drafts of a window; 0 never goes back.
        metrics: of the drafter.
    """

    def __init__(self, registry: Registry, rule: DraftRule, window: int, metrics: DrafterMetrics) -> None:
        self._registry, self._rule, self._window, self._metrics = registry, rule, window, metrics
        self._active: Version | None = None
        # The last version that has a full window, to go back to while the active one is on trial.
        self._before: Version | None = None

    def current(self) -> Version | None:
        """The version that drafts this step; None while no checkpoint can be used."""
        snapshot = self._registry.current
        if snapshot is not None and (self._active is None or self._active.snapshot is not snapshot):
            self._take(snapshot)
        return self._active

    def drafter_of(self, version: Version) -> Drafter:
        """The drafter of a version, made where there is none."""
        if version.drafter is None:
            version.drafter = Drafter(version.snapshot.decoding, self._rule)
        return version.drafter

    def count(self, verified: Verified) -> None:
        """Counts a draft that the teacher has read; a version that is found out by it is left for the last one."""
        active = self._active
        # What a version drafted before it was left says nothing of the one that drafts now.
        if active is None or verified.version is not active or not self._window:
            return
        if active.windows.add(verified.num_accepted, verified.num_texts):
            self._judge(active)

    def _take(self, snapshot: Snapshot) -> None:
        active = self._active
        if active is not None:
            active.forget_texts()
            if active.windows.num_full:
                self._before = active
        self._active = Version(snapshot, AcceptanceWindows(max(1, self._window)))
        self._registry.way_back = self._before.snapshot if self._before else None
        self._metrics.show_version(snapshot.manifest.run, snapshot.manifest.step)

    def _judge(self, active: Version) -> None:
        last, before = active.windows.last, self._before
        mean = overall(last).mean
        self._metrics.acceptance.set(mean)
        if before is None:
            return
        worse = is_clearly_worse(last, before.windows.recent)
        active.num_judged += worse is not None
        if worse:
            self._go_back(active, before, mean)
        elif active.num_judged >= TRIAL_WINDOWS:
            logger.info("%s stays: %.2f tokens of a draft are taken", active.id, mean)
            self._before = self._registry.way_back = None

    def _go_back(self, bad: Version, good: Version, mean: float) -> None:
        was = overall(good.windows.recent)
        reason = (
            f"of its drafts the teacher takes {mean:.2f} tokens (over {self._window}), and of {good.id}'s it took "
            f"{was.mean:.2f} (over {was.num_drafts}); publish another step, or set LATENTFORGE_ACCEPTANCE_WINDOW=0 to "
            "draft with it all the same"
        )
        self._metrics.rollbacks.inc()
        write_left(bad.snapshot, reason)
        bad.forget_texts()
        self._registry.go_back(bad.snapshot, good.snapshot, reason)
        if self._registry.current is not good.snapshot:
            # A newer one has been loaded in the meantime: it drafts next, with the same way back.
            self._active = None
            return
        logger.warning("drafting with %s again instead of %s", good.id, bad.id)
        self._active, self._before, self._registry.way_back = good, None, None
        self._metrics.show_version(good.snapshot.manifest.run, good.snapshot.manifest.step)
