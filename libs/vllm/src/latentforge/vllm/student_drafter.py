"""The drafter that vLLM makes: its ``custom_class``, as ``vllm/v1/spec_decode/custom_class_proposer.py`` calls it."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from prometheus_client import REGISTRY, CollectorRegistry

from latentforge.core.devices import choose_device
from latentforge.core.manifest import CheckpointError
from latentforge.core.settings import load_settings
from latentforge.drafter.drafter import DraftRule
from latentforge.snapshots.registry import Registry
from latentforge.snapshots.snapshot import DecodingMemory, Snapshot
from latentforge.vllm.cpu_sampling import mend_sampling
from latentforge.vllm.drafted_teacher import EngineError, read_drafted_teacher
from latentforge.vllm.left import why_left
from latentforge.vllm.metrics import DrafterMetrics, publish
from latentforge.vllm.pending import PendingDrafts, TextIds
from latentforge.vllm.refresher import Refresher
from latentforge.vllm.settings import DrafterSettings
from latentforge.vllm.versions import Version, Versions

# It may go wrong at every step.
_SILENT_SECONDS = 60.0

logger = logging.getLogger(__name__)


class StudentDrafter:
    """Drafts for the model that vLLM serves, with the newest checkpoint of a student.

    The teacher verifies every token, so what this drafts changes how soon a text is there and never what it says.
    vLLM calls it in one thread, after every step; a thread of its own looks for checkpoints.

    Args:
        config: the ``VllmConfig``.
        settings: from the environment by default.
        registry: where its metrics are; vLLM's own by default.

    Raises:
        EngineError: this vLLM, or how it was started, is none that it knows.
        SettingsError: a setting is wrong.
    """

    def __init__(
        self, config: Any, settings: DrafterSettings | None = None, registry: CollectorRegistry = REGISTRY
    ) -> None:
        _log_beside_vllm()
        self._settings = settings or load_settings(DrafterSettings)
        self._served = read_drafted_teacher(config)
        self._metrics = DrafterMetrics(registry)
        self._misfit: str | None = None
        self._registry = Registry(
            self._settings.latentforge_checkpoints,
            self._settings.latentforge_run,
            self._device(),
            self._settings.latentforge_fallback_run,
            DecodingMemory(self._settings.latentforge_drafter_slots, slots_setting="LATENTFORGE_DRAFTER_SLOTS"),
            num_extra=0,
            check=self._check_fits,
        )
        rule = DraftRule(
            self._served.num_draft_tokens,
            self._settings.latentforge_least_confidence,
            self._settings.latentforge_drafts_from,
        )
        self._versions = Versions(self._registry, rule, self._settings.latentforge_acceptance_window, self._metrics)
        self._pending = PendingDrafts()
        self._refresher = Refresher(self._refresh, self._settings.latentforge_poll_seconds)
        self._failed: Version | None = None
        self._silent_until = 0.0
        self._drafting: Version | None = None

    def load_model(self, *_: object, **__: object) -> None:
        """Loads the newest checkpoint; vLLM calls it once its own model is loaded. Newer ones are taken from the first
        step on.

        Raises:
            EngineError: there are checkpoints, and they are of students of another tokenizer or vocabulary.
            OSError: LATENTFORGE_DRAFTER_METRICS_PORT is taken.
        """
        if self._served.device == "cpu":
            mend_sampling()
        publish(self._metrics, self._settings.latentforge_drafter_metrics_port)
        self._refresher.start()
        if self._registry.current is not None:
            return
        if self._misfit is not None:
            raise EngineError(self._misfit)
        logger.warning("no drafts yet: the drafter waits for %s", self._registry.waiting_for)

    def dummy_run(self, *_: object, **__: object) -> None:
        """vLLM's warm-up, of which nothing is needed."""

    def close(self) -> None:
        """Ends the thread that looks for checkpoints."""
        self._refresher.close()

    @property
    def checkpoint(self) -> str | None:
        """The one that drafted last, as ``run/step-00001200``; None before."""
        return None if self._drafting is None else self._drafting.id

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: NDArray[np.int32],
        token_ids_cpu: NDArray[np.int32],
        slot_mappings: object = None,
    ) -> list[list[int]]:
        """Drafts behind every text of a step; never fails, for serving goes on without drafts too.

        Args:
            sampled_token_ids: the newest tokens of each row; none for a row whose prompt is still being read.
            num_tokens_no_spec: [rows or more], lengths of the texts, newest tokens included.
            token_ids_cpu: [rows or more, longest], their ids. Which text a row has may change between steps.
            slot_mappings: vLLM's; not read.

        Returns:
            A draft for each row, of at most num_speculative_tokens; [] where there is none.
        """
        self._refresher.go_on()
        try:
            return self._drafts_of_step(sampled_token_ids, num_tokens_no_spec, token_ids_cpu)
        except Exception:
            # Whatever it is, as a full disk where the figures are: what is raised here would end vLLM.
            if time.monotonic() >= self._silent_until:
                self._silent_until = time.monotonic() + _SILENT_SECONDS
                logger.exception("a step got no drafts; the teacher writes on without")
            return [[] for _ in sampled_token_ids]

    def _drafts_of_step(
        self, sampled_token_ids: Sequence[Sequence[int]], lengths: NDArray[np.int32], token_ids_cpu: NDArray[np.int32]
    ) -> list[list[int]]:
        start = time.perf_counter()
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        rows = [row for row, sampled in enumerate(sampled_token_ids) if sampled]
        if not rows:
            return drafts
        texts = [token_ids_cpu[row, : lengths[row]] for row in rows]
        self._count_verified(texts, [len(sampled_token_ids[row]) for row in rows])
        version = self._versions.current()
        if version is None:
            return drafts
        self._drafting = version
        drafted = self._draft(version, texts)
        for row, draft in zip(rows, drafted, strict=True):
            drafts[row] = draft
        self._metrics.count_drafts(drafted, time.perf_counter() - start)
        return drafts

    def _count_verified(self, texts: Sequence[TextIds], num_new: Sequence[int]) -> None:
        found = [self._pending.verify(text, new) for text, new in zip(texts, num_new, strict=True)]
        verified = [draft for draft in found if draft is not None]
        self._metrics.count_verified(verified)
        for draft in verified:
            self._versions.count(draft)

    def _draft(self, version: Version, texts: Sequence[TextIds]) -> list[list[int]]:
        """Drafts for the texts that the student can read; a failure is as good as drafts that nobody takes."""
        longest = version.snapshot.max_prompt_tokens
        fits = [i for i, text in enumerate(texts) if len(text) <= longest and text.max() < self._vocab_size(version)]
        chosen = [texts[i] for i in fits]
        most = [min(self._served.num_draft_tokens, self._served.max_tokens - len(text) - 1) for text in chosen]
        # Where it fails it is judged by all of them.
        judged: Sequence[bool] = [True] * len(chosen)
        try:
            drafter = self._versions.drafter_of(version)
            drafted = drafter.draft(chosen, most)
            _check_drafts(drafted, most, self._served.vocab_size)
            # What was looked up says nothing of the student, nor does a step in which to ask it did not pay.
            judged = drafter.by_student
            self._metrics.looked_up.inc(sum(bool(ids) and not its for ids, its in zip(drafted, judged, strict=True)))
        except Exception:
            # Whatever it is: the teacher writes on alone.
            self._tell_failure(version)
            version.forget_texts()
            drafted = [[] for _ in chosen]
        # Nor does a text beyond its context.
        self._pending.replace([version if its else None for its in judged], chosen, drafted)
        drafts: list[list[int]] = [[] for _ in texts]
        for i, draft in zip(fits, drafted, strict=True):
            drafts[i] = draft
        return drafts

    def _tell_failure(self, version: Version) -> None:
        self._metrics.failures.inc()
        # Once for a version, since it may fail at every step.
        if self._failed is not version:
            self._failed = version
            logger.exception("%s failed to draft; the teacher writes on without", version.id)

    @staticmethod
    def _vocab_size(version: Version) -> int:
        return version.snapshot.decoding.vocab_size

    def _refresh(self) -> None:
        self._registry.refresh()
        self._metrics.show_quarantines(self._registry.counts.quarantines)

    def _check_fits(self, snapshot: Snapshot) -> None:
        """Refuses a student that reads or writes other ids than the teacher."""
        served = self._served
        fingerprint, vocab_size = snapshot.manifest.tokenizer_fingerprint, snapshot.decoding.vocab_size
        if fingerprint != served.fingerprint:
            self._misfit = (
                f"{snapshot.id} was trained with another tokenizer (fingerprint {fingerprint[:16]}) than the model "
                f"that vLLM serves has ({served.fingerprint[:16]}, {served.tokenizer}): set LATENTFORGE_CHECKPOINTS "
                "and LATENTFORGE_RUN to a student of this teacher, or serve the student's"
            )
        elif vocab_size > served.vocab_size:
            self._misfit = (
                f"{snapshot.id} writes {vocab_size} ids, and the model that vLLM serves takes {served.vocab_size}: "
                "train the student with this teacher's vocabulary"
            )
        else:
            if self._settings.latentforge_acceptance_window and (reason := why_left(snapshot)) is not None:
                raise CheckpointError(f"{snapshot.id} was left before: {reason}")
            return
        raise CheckpointError(self._misfit)

    def _device(self) -> torch.device:
        name = self._settings.latentforge_drafter_device
        if name == "auto":
            # By its number: which one is meant without depends on the thread.
            name = f"cuda:{torch.cuda.current_device()}" if self._served.device == "cuda" else "cpu"
        return torch.device(choose_device("LATENTFORGE_DRAFTER_DEVICE", name, torch.cuda.device_count()))


def _check_drafts(drafts: Sequence[Sequence[int]], most: Sequence[int], vocab_size: int) -> None:
    """An id that the engine does not have, or a token too many, would end vLLM.

    Raises:
        ValueError: a draft is none that vLLM takes.
    """
    if len(drafts) != len(most):
        raise ValueError(f"{len(drafts)} drafts for {len(most)} texts")
    for draft, longest in zip(drafts, most, strict=True):
        if len(draft) > max(0, longest):
            raise ValueError(f"a draft of {len(draft)} tokens where {longest} were asked for")
        if any(not 0 <= token_id < vocab_size for token_id in draft):
            raise ValueError(f"a draft of ids that are not in a vocabulary of {vocab_size}: {draft}")


def _log_beside_vllm() -> None:
    """Sends what we log to where vLLM logs: it configures its own loggers alone, and ours would say errors only."""
    ours, theirs = logging.getLogger("latentforge"), logging.getLogger("vllm")
    if theirs.handlers and not ours.handlers:
        ours.handlers = list(theirs.handlers)
        ours.setLevel(theirs.level or logging.INFO)
        ours.propagate = False
