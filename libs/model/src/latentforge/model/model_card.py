"""The model card of a checkpoint: README.md with the front matter that the Hugging Face hub reads."""

import math
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from latentforge.core.manifest import Manifest, ManifestDraft
from latentforge.model.latent_model import LatentModel

CARD = "README.md"
LIBRARY = "latentforge"
PIPELINE = "text-generation"
TAGS = ("chunk-level", "knowledge-distillation", "latentforge")
# As the hub says of weights whose maker has not chosen one.
NO_LICENSE = "unknown"

TEMPLATE = """\
---
{{ card_data }}
---

# {{ id }}

A student of LatentForge: a language model that writes {{ k }} tokens per autoregressive step, distilled from a teacher
that writes one.

| | |
| --- | --- |
| teacher | {{ teacher.model }} ({{ teacher.backend }}, {{ teacher.revision }}) |
| K, tokens of a step | {{ k }} |
| D, dimensions of a latent | {{ d }} |
| vocabulary | {{ vocab_size }} ids, tokenizer {{ fingerprint }} |
| context | {{ max_tokens }} tokens |
| student | {{ layers }} layers of width {{ hidden }}; {{ student }} parameters |
| autoencoder | {{ autoencoder }} parameters |
{% if ema %}| student's weights | moving average over the training's steps, decay {{ ema }} |
{% endif %}| license of the weights | {{ license }} |

## Use

```python
from latentforge.model import LatentStudent

student = LatentStudent.from_pretrained("folder or hub id")
print(student.generate("def main():", max_new_tokens=64, seed=1))
```

To serve it, put this folder's files into `checkpoints/{{ id }}/` and run `make serve`. `manifest.json` lists size and
sha256 of every file, this card's too: a server refuses a folder of which a file was changed.

## Measured

As training measured it on text that it did not learn from; cross-entropy and divergence are in nats per token. The
divergence from the teacher, `held_out_kd`, is a lower bound: a row of the teacher has its likeliest tokens alone.
{% if has_parts %}`held_out_worth_…` is how many nats per token that text costs more without the part: the backbone's
state or the latent at its mean, no copying by induction heads, no earlier chunks before the chunk decoder.
{% endif %}
{% if metrics %}| metric | value |
| --- | --- |
{% for name, value in metrics.items() %}| `{{ name }}` | {{ "%.4g" | format(value) }} |
{% endfor %}{% else %}Nothing.
{% endif %}{% if samples %}
## Samples

Drawn at temperature 1 when it was published, none chosen.
{% for sample in samples %}
Prompt:

{{ sample.prompt }}

What it writes:

{{ sample.text }}
{% endfor %}{% endif %}
## Limits

It knows what its teacher's distributions on one data set taught it, and nothing was done against false, offensive or
memorised text. Small students repeat themselves. A text longer than the context is refused, not cut.
"""


def model_card(model: LatentModel, manifest: Manifest | ManifestDraft, checkpoint: str, license_name: str) -> str:
    """The text of a checkpoint's README.md.

    Args:
        model: its autoencoder and student.
        manifest: what is known of it.
        checkpoint: its id, ``<run>/step-00001200``.
        license_name: of the weights, as the hub names it; NO_LICENSE where nobody has chosen one.
    """
    values = card_values(model, manifest, checkpoint, license_name)
    return str(ModelCard.from_template(_card_data(license_name), template_str=TEMPLATE, **values)) + "\n"


def front_matter(license_name: str) -> str:
    """What the hub reads at the beginning of a card: YAML between two lines of ``---``."""
    yaml: str = _card_data(license_name).to_yaml()
    return f"---\n{yaml}\n---"


def card_values(
    model: LatentModel, manifest: Manifest | ManifestDraft, checkpoint: str, license_name: str
) -> dict[str, Any]:
    """What :data:`TEMPLATE` has to be filled with besides the front matter."""
    config = model.student.config
    return {
        "id": checkpoint,
        "teacher": manifest.teacher,
        "k": manifest.chunk_size,
        "d": manifest.latent_size,
        "vocab_size": f"{config.vocab_size:,}",
        "fingerprint": manifest.tokenizer_fingerprint[:12],
        "max_tokens": f"{model.max_tokens:,}",
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "student": f"{_num_parameters(model.student):,}",
        "autoencoder": f"{_num_parameters(model.autoencoder):,}",
        "ema": manifest.ema,
        "license": "none chosen yet" if license_name == NO_LICENSE else license_name,
        "samples": [{name: _block(text) for name, text in sample} for sample in manifest.samples],
        "has_parts": any(name.startswith("held_out_worth_") for name in manifest.metrics),
        "metrics": {name: value for name, value in manifest.metrics.items() if math.isfinite(value)},
    }


def _card_data(license_name: str) -> ModelCardData:
    return ModelCardData(license=license_name, library_name=LIBRARY, pipeline_tag=PIPELINE, tags=list(TAGS))


def _block(text: str) -> str:
    """A text that Markdown shows as it is, whatever is in it."""
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    "


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
