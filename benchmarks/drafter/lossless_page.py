"""The lossless demo's texts as a page: accepted drafts in one colour, the teacher's own tokens in another."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from benchmarks.drafter.lossless_run import DemoText
from benchmarks.drafter.origins import accepted_tokens, stretches
from latentforge.text.tokenizer import TextTokenizer

_TEMPLATE = Path(__file__).with_name("lossless_page.html.jinja")


def write_page(path: Path, texts: Sequence[DemoText], name: str, tokenizer: TextTokenizer) -> Path:
    """Writes the texts of one way to write, and gives the page's place."""
    shown = []
    for text in texts:
        written = text.ways[name]
        [ids] = written.token_ids
        accepted = accepted_tokens(written.passes, len(ids))
        parts = stretches(ids, accepted, tokenizer.token_bytes)
        shown.append({"prompt": text.prompt, "parts": parts, "accepted": sum(accepted), "tokens": len(ids)})
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        _TEMPLATE.read_text(encoding="utf-8")
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template.render(texts=shown), encoding="utf-8")
    return path
