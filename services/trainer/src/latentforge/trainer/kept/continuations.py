"""Text that a teacher wrote, with its rows, to and from a folder of kept rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from latentforge.teacher_client.sparse_rows import LogprobDtype
from latentforge.trainer.config.sections import TeacherRecipe
from latentforge.trainer.kept.card import begin_folder
from latentforge.trainer.kept.folder import KeptFolder
from latentforge.trainer.kept.manifest import KeptBy, KeptManifest, KeptSplit, KeptTeacher, SplitFiles
from latentforge.trainer.kept.rows import as_asked
from latentforge.trainer.kept.table import KeptSequence, kept_schema, write_kept
from latentforge.trainer.teacher.continuations import Continuation, GeneratedStore, Record

_CONTINUATIONS_PER_FILE = 512


def export_continuations(
    store: GeneratedStore,
    prompts: Mapping[KeptSplit, Sequence[int]],
    out: Path,
    teacher: KeptTeacher,
    recipe: TeacherRecipe,
    made: KeptBy,
) -> KeptManifest:
    """Writes the usable continuations of a collection into a folder; files that are there are kept.

    Args:
        store: the collection, of all prompts.
        prompts: numbers of each split's prompts.
        out: the folder.
        teacher: who wrote them.
        recipe: what was asked.
        made: how, for manifest and card.

    Raises:
        TrainerError: the folder holds something else.
    """
    records = {split: store.records(numbers) for split, numbers in prompts.items()}
    asked = recipe.generate.model_dump(mode="json") | {"source": f"{store.folder.parent.name}, generated"}
    manifest = KeptManifest(
        kind="generate",
        teacher=teacher,
        top_k=recipe.top_k,
        logprob_dtype=recipe.logprob_dtype,
        share=1.0,
        splits={
            split: SplitFiles(
                num_sequences=len(found),
                per_file=_CONTINUATIONS_PER_FILE,
                data=asked | {"generated_sha256": store.digest(prompts[split])},
            )
            for split, found in records.items()
        },
        made=made,
    )
    begin_folder(out, manifest)
    schema = kept_schema(teacher.vocab_size, recipe.logprob_dtype)
    for split, number in manifest.files():
        path = manifest.path(out, split, number)
        if not path.is_file():
            held = manifest.splits[split].sequences(number)
            write_kept(path, [_kept(store, r) for r in records[split][held.start : held.stop]], schema)
    return manifest


def _kept(store: GeneratedStore, record: Record) -> KeptSequence:
    found = store.read(record)
    ids = np.concatenate([found.prompt_ids, found.token_ids]).astype(np.uint32)
    return KeptSequence(record.prompt, ids, found.rows, None, record.place, found.stopped)


class KeptContinuations:
    """The continuations of a folder, as a collection that is finished.

    Args:
        folder: of kept rows, of kind ``generate``.
        top_k: entries per row; what the folder holds beyond goes to the tail.
        dtype: that log-probabilities are rounded to, where the folder has them finer.

    Attributes:
        num_usable: continuations.
        num_dropped: none, since only usable ones are kept.
    """

    def __init__(self, folder: KeptFolder, top_k: int, dtype: LogprobDtype) -> None:
        self.folder, self.num_dropped = folder.folder, 0
        self._kept, self._top_k, self._dtype = folder, top_k, dtype
        self._places: dict[tuple[int, int], tuple[int, int]] = {}
        self._records: dict[KeptSplit, list[Record]] = {split: [] for split in folder.manifest.splits}
        for file, (split, _) in enumerate(folder.manifest.files()):
            for line, (prompt, place, num_prompt_ids, num_ids) in enumerate(folder.lines(file)):
                self._places[prompt, place] = file, line
                self._records[split].append(Record(prompt, place, num_prompt_ids, num_ids - num_prompt_ids))
        self.num_usable = len(self._places)

    def prompts(self, split: KeptSplit) -> list[int]:
        """Numbers of a split's prompts that have continuations, in order."""
        return list(dict.fromkeys(record.prompt for record in self._records[split]))

    def records(self, prompts: Sequence[int]) -> list[Record]:
        """The continuations of prompts, in the prompts' order."""
        found: dict[int, list[Record]] = {}
        for record in (r for records in self._records.values() for r in records):
            found.setdefault(record.prompt, []).append(record)
        return [record for prompt in prompts for record in found.get(prompt, ())]

    def read(self, record: Record) -> Continuation:
        """A continuation."""
        kept = self._kept.at(*self._places[record.prompt, record.place])
        prompt_ids, token_ids = np.split(kept.ids, [record.num_prompt_ids])
        return Continuation(prompt_ids, token_ids, as_asked(kept.rows, self._top_k, self._dtype), kept.stopped)

    def num_tokens(self) -> int:
        """Tokens of the continuations."""
        return sum(record.num_token_ids for records in self._records.values() for record in records)

    def digest(self, prompts: Sequence[int]) -> str:
        """Tells these continuations from others."""
        return self._kept.digest()
