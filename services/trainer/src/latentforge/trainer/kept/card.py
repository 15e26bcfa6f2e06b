"""The data card of a folder of kept rows: README.md with the front matter of the Hugging Face hub."""

from pathlib import Path

from latentforge.core.files import write_atomically
from latentforge.trainer.kept.manifest import CARD, DATA, KeptManifest

_CARD = """\
---
pretty_name: Rows of {model}
tags: [distillation, logprobs, latentforge]
task_categories: [text-generation]
configs:
- config_name: default
  data_files:
{data_files}
---

# Rows of {model}

What {model} finds probable at every token of {text}: for each position its {top_k} likeliest next tokens with their
log-probabilities, and how probable it finds the token that is really there. A student learns from these rows without
asking the teacher again.

| split | sequences | of |
| --- | --- | --- |
{splits}

- made by `{command}`, LatentForge {version}, {created}
- backend {backend}, {engine}; revision `{revision}`, quantisation {quantization}
- tokenizer `{fingerprint}`, {vocab_size} ids
- {share}

## Reading it

```python
import pyarrow.parquet as pq
row = pq.read_table("FOLDER/{DATA}").slice(0, 1).to_pylist()[0]
print(row["ids"][:4], row["top_ids"][0], row["top_logprobs"][0])
```

```python
from datasets import load_dataset
rows = load_dataset("FOLDER", split="train")
print(rows[0]["ids"][:4], rows[0]["top_ids"][0], rows[0]["top_logprobs"][0])
```

| column | is |
| --- | --- |
| `ids` | the sequence's token ids, L of them |
| `first_position` | row r is the distribution FOR token `ids[first_position + r]`, given the tokens before it |
| `top_ids`, `top_logprobs` | of each row the likeliest tokens, most probable first; their log-probabilities, {dtype} |
| `realised_logprobs`, `realised_ranks` | of the token that is really there; rank 1 is the most probable, 0 is unknown |
| `tail_mass` | 1 minus the sum of the row's probabilities, taken before they were rounded |
| `unmapped_mass` | the mass of entries that no id could be found for; null where ids are the teacher's own |
| `error` | why the teacher failed on the sequence, which then has no rows; null otherwise |
| `sequence` | where the sequence stands in its data; or the prompt's number |
| `place` | which of the sequence's documents, where each is scored by itself; or which of the prompt's continuations |
| `stopped` | whether the teacher ended a continuation itself |
| `hash` | blake2b-128 of the ids as little-endian uint32: what a sequence is found by |

`manifest.json` says all of this to a program. `trainer run --targets-from FOLDER` learns from it.
"""


_GIVEN = {False: "given text", True: "given text, each document by itself: a line is a part of one"}


def begin_folder(folder: Path, manifest: KeptManifest) -> None:
    """Claims a folder for what the manifest says, and gives it a card; one that is there may have been written in.

    Raises:
        TrainerError: the folder holds something else.
    """
    manifest.claim(folder)
    if not (folder / CARD).is_file():
        write_atomically(folder / CARD, data_card(KeptManifest.read(folder)))


def data_card(manifest: KeptManifest) -> str:
    teacher, made = manifest.teacher, manifest.made
    scored = manifest.kind == "score"
    return _CARD.format(
        DATA=DATA,
        data_files="\n".join(f"  - split: {s}\n    path: {DATA}/{s}-*.parquet" for s in manifest.splits),
        splits="\n".join(
            f"| {split} | {part.num_sequences:,} | {part.data.get('source', 'text of the teacher')} |"
            for split, part in manifest.splits.items()
        ),
        text="text that it wrote itself" if not scored else _GIVEN[manifest.mask_documents],
        share="every sequence was asked about"
        if manifest.share == 1
        else f"of the training sequences, a share of {manifest.share:g} was asked about, chosen by content",
        model=teacher.model,
        backend=teacher.backend,
        engine=teacher.engine,
        revision=teacher.revision,
        quantization=teacher.quantization or "none",
        fingerprint=teacher.tokenizer_fingerprint,
        vocab_size=f"{teacher.vocab_size:,}",
        top_k=manifest.top_k,
        dtype=manifest.logprob_dtype,
        command=made.command,
        version=made.version,
        created=made.created,
    )
