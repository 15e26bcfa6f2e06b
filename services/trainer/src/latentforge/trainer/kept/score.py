"""Having a teacher score data into a folder of kept rows: `trainer score`."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.packed import PackedData
from latentforge.trainer.config.sections import TeacherRecipe
from latentforge.trainer.data.sequence_hash import is_chosen, sequence_hash
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.kept.card import begin_folder
from latentforge.trainer.kept.manifest import KeptBy, KeptManifest, KeptSplit, KeptTeacher, SplitFiles
from latentforge.trainer.kept.table import KeptSequence, kept_schema, write_kept
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.teacher.connection import TeacherLink
from latentforge.trainer.teacher.failures import Failures
from latentforge.trainer.teacher.rows import Answer, TeacherRows

# A file is what a kill costs: about a minute of a large teacher, 17 MB.
_POSITIONS_PER_FILE = 2**18
_POSITIONS_PER_REQUEST = 2**13


@dataclass(frozen=True)
class Shard:
    """The ``index``-th of ``count`` equal parts of the files, counted from 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Reads ``i/n``.

        Raises:
            TrainerError: it is no such thing.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
            raise TrainerError(f"{text!r}: give one of n parts as i/n, from 1/n to n/n, like 2/4")
        return cls(int(index), int(count))


@dataclass
class ScoreProgress:
    """How far it is, of this process's shard.

    Attributes:
        total, done, kept: sequences; ``kept`` were there before.
        positions: that were scored by this process.
        failed: sequences that the teacher fails on for good, of those.
        seconds: since scoring began.
    """

    total: int = 0
    done: int = 0
    kept: int = 0
    positions: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def eta(self) -> float | None:
        """Seconds left; None while unknown."""
        fresh = self.done - self.kept
        return (self.total - self.done) * self.seconds / fresh if fresh else None


@dataclass(frozen=True)
class _Text:
    """What the teacher is asked about: a sequence or, with mask_documents, the ``place``-th of its documents."""

    index: int
    place: int
    is_last: bool
    ids: torch.Tensor


@dataclass
class _File:
    """A file whose texts are asked for."""

    split: KeptSplit
    number: int
    texts: Sequence[_Text]
    answers: dict[int, Answer] = field(default_factory=dict)


@dataclass(frozen=True)
class _Request:
    file: _File
    places: range


class Scoring:
    """One shard of a folder, over one or more gateways.

    Args:
        folder: of kept rows; begun here, or by an earlier process with the same data, teacher and settings.
        data: the packed data of each split.
        links: to the gateways, of one teacher.
        recipe: k, precision and share.
        made: how, for manifest and card.
        texts: gives the texts of a sequence that are scored by themselves.
        mask_documents: whether those are its documents.
        shard: which of the files are this process's.
        in_flight: requests open at once, of each gateway.

    Raises:
        TrainerError: the folder was begun otherwise.
    """

    def __init__(
        self,
        folder: Path,
        data: Mapping[KeptSplit, PackedData],
        links: Sequence[TeacherLink],
        teacher: KeptTeacher,
        recipe: TeacherRecipe,
        made: KeptBy,
        texts: Callable[[PackedData, int], list[torch.Tensor]],
        *,
        mask_documents: bool,
        shard: Shard,
        in_flight: int,
    ) -> None:
        self._folder, self._data, self._links, self._recipe = folder, data, links, recipe
        self._texts, self._in_flight = texts, in_flight
        self._indices = {
            split: _chosen(part, recipe.share if split == "train" else 1.0) for split, part in data.items()
        }
        self.manifest = KeptManifest(
            kind="score",
            teacher=teacher,
            top_k=recipe.top_k,
            logprob_dtype=recipe.logprob_dtype,
            share=recipe.share,
            mask_documents=mask_documents,
            splits={
                split: SplitFiles(
                    num_sequences=len(self._indices[split]),
                    per_file=max(1, _POSITIONS_PER_FILE // part.meta.sequence_length),
                    data=part.identity() | {"source": part.meta.source},
                )
                for split, part in data.items()
            },
            made=made,
        )
        begin_folder(folder, self.manifest)
        self._schema: pa.Schema = kept_schema(teacher.vocab_size, recipe.logprob_dtype)
        # Every n-th file, not one stretch: shards then have like shares of both splits.
        self._files = self.manifest.files()[shard.index - 1 :: shard.count]
        self._failures = Failures(recipe)
        self.progress = ScoreProgress()

    def run(self, stop: Callable[[], bool], on_progress: Callable[[ScoreProgress], None]) -> ScoreProgress:
        """Asks for every file that is missing and writes it as soon as it is complete.

        Raises:
            TrainerError: the teacher refused, or fails on too many sequences.
            TeacherLostError: a gateway stayed away longer than the patience; whole files stay.
            Interrupted: ``stop`` said so; whole files stay.
        """
        recipe, most = self._recipe, self._in_flight
        sources = [TeacherRows(link, recipe.top_k, recipe.logprob_dtype, most) for link in self._links]
        progress = self.progress
        progress.total = sum(len(self._indices_of(*file)) for file in self._files)
        requests = self._requests()
        pending: dict[Future[list[Answer]], tuple[int, _Request]] = {}
        load = [0] * len(sources)
        try:
            while True:
                # One more than may be open, so that a gateway never waits for this thread.
                while min(load) <= most and (request := next(requests, None)) is not None:
                    gateway = load.index(min(load))
                    texts = [request.file.texts[place].ids for place in request.places]
                    pending[sources[gateway].ask(texts)] = gateway, request
                    load[gateway] += 1
                on_progress(progress)
                if not pending:
                    return progress
                if stop():
                    raise Interrupted
                for future in wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)[0]:
                    gateway, request = pending.pop(future)
                    load[gateway] -= 1
                    self._take(request, future.result())
        finally:
            for future in pending:
                future.cancel()

    def _indices_of(self, split: KeptSplit, number: int) -> Sequence[int]:
        held = self.manifest.splits[split].sequences(number)
        return self._indices[split][held.start : held.stop]

    def _texts_of(self, split: KeptSplit, indices: Sequence[int]) -> Iterator[_Text]:
        for index in indices:
            texts = self._texts(self._data[split], index)
            for place, ids in enumerate(texts):
                yield _Text(index, place, place == len(texts) - 1, ids)

    def _requests(self) -> Iterator[_Request]:
        for split, number in self._files:
            indices = self._indices_of(split, number)
            if self.manifest.path(self._folder, split, number).is_file():
                self.progress.done += len(indices)
                self.progress.kept += len(indices)
                continue
            file = _File(split, number, list(self._texts_of(split, indices)))
            first = positions = 0
            for place, text in enumerate(file.texts):
                if place > first and positions + len(text.ids) > _POSITIONS_PER_REQUEST:
                    yield _Request(file, range(first, place))
                    first, positions = place, 0
                positions += len(text.ids)
            yield _Request(file, range(first, len(file.texts)))

    def _take(self, request: _Request, answers: Sequence[Answer]) -> None:
        file, progress = request.file, self.progress
        texts = [file.texts[place] for place in request.places]
        rows = self._failures.rows_of(answers, [f"{file.split} sequence {text.index}" for text in texts])
        file.answers |= zip(request.places, answers, strict=True)
        progress.done += sum(text.is_last for text in texts)
        progress.positions += sum(map(len, rows))
        progress.failed = self._failures.count.failed
        if len(file.answers) == len(file.texts):
            path = self.manifest.path(self._folder, file.split, file.number)
            kept = [self._kept(text, file.answers[place]) for place, text in enumerate(file.texts)]
            write_kept(path, kept, self._schema)

    def _kept(self, text: _Text, answer: Answer) -> KeptSequence:
        ids = text.ids.numpy().astype(np.uint32)
        if isinstance(answer, SparseRows):
            return KeptSequence(text.index, ids, answer, place=text.place)
        return KeptSequence(text.index, ids, SparseRows.none(self._recipe.top_k), str(answer), text.place)


def _chosen(data: PackedData, share: float) -> Sequence[int]:
    if share == 1.0:
        return range(len(data))
    return [i for i in range(len(data)) if is_chosen(sequence_hash(data.sequence(i)), share)]
