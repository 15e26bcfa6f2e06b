"""What the lossless demo says: texts in colours, a table, results."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.drafter.differences import Difference
from benchmarks.drafter.engines import WrittenTexts
from benchmarks.drafter.lossless_run import DemoText, TakenSwap
from benchmarks.drafter.origins import accepted_tokens, stretches
from latentforge.core.results import Result, ResultsFile
from latentforge.text.tokenizer import TextTokenizer

_SHOWN_CHARACTERS = 300


class LosslessResults(ResultsFile):
    """``demo_lossless_<time>.json``.

    Attributes:
        teacher, checkpoint: of teacher and student.
        dtype: that the teacher computed in.
        texts: how many.
        parted: by the method, where its texts part from the teacher's, and what the teacher finds likeliest there.
        machine: the load before, and versions.
        seconds: that it took.
    """

    teacher: str
    checkpoint: str
    dtype: str
    texts: int
    parted: dict[str, list[dict[str, Any]]]
    machine: dict[str, Any]
    seconds: float


def coloured(text: DemoText, written: WrittenTexts, tokenizer: TextTokenizer) -> RenderableType:
    """A text for a terminal: accepted drafts green, what the teacher wrote itself plain and underlined."""
    [ids] = written.token_ids
    out = Text()
    for part in stretches(ids, accepted_tokens(written.passes, len(ids)), tokenizer.token_bytes):
        out.append(part.text, style="green" if part.is_accepted else "underline")
    head = Text(f"\n{text.prompt.domain}: … {text.prompt.text[-_SHOWN_CHARACTERS:]}", style="dim")
    pace = ", ".join(f"{name} {one.tokens / one.seconds:.1f}" for name, one in text.ways.items())
    same = ", ".join(f"{name} {_same(text, name)}" for name in text.parted)
    return Group(head, out, Text(f"tokens/s: {pace}; beside the teacher alone: {same}", style="dim"))


def summary(texts: Sequence[DemoText], swap: TakenSwap, names: Sequence[str]) -> Table:
    """One line for each way to write."""
    told = "the texts were the teacher's all the while" if swap.parted is None else f"a text parted: {swap.parted.kind}"
    caption = (
        "green in the texts: drafted and accepted; underlined: the teacher's own\n"
        f"swapped while it wrote: {swap.before} -> {swap.after}; {told}"
    )
    out = Table(title="the same texts, by a teacher alone and with drafts", caption=caption, caption_justify="left")
    for column in ("", "tokens/s", "times alone", "tokens a pass", "texts that are the teacher's"):
        out.add_column(column, justify="left" if not column else "right")
    alone = _pace(texts, names[0])
    for name in names:
        same = [text.parted.get(name) is None for text in texts]
        ties = sum(one is not None and one.kind == "tie" for one in (text.parted.get(name) for text in texts))
        said = f"{sum(same)} of {len(same)}" + (f", {ties} parted at a tie" if ties else "")
        pace = _pace(texts, name)
        out.add_row(name, f"{pace:.1f}", f"{pace / alone:.2f}", f"{_per_pass(texts, name):.2f}", said)
    return out


def as_results(texts: Sequence[DemoText], swap: TakenSwap, names: Sequence[str]) -> tuple[Result, ...]:
    """The table's figures."""
    alone, *drafting = names
    found = []
    for name in drafting:
        each = [
            text.ways[name].tokens / text.ways[name].seconds * text.ways[alone].seconds / text.ways[alone].tokens
            for text in texts
        ]
        found += [
            Result(
                id=f"speed_{name}",
                value=_pace(texts, name),
                unit="tokens/s",
                baseline="the teacher alone",
                baseline_value=_pace(texts, alone),
                ratio=statistics.median(each),
                low=min(each),
                high=max(each),
            ),
            Result(id=f"tokens_per_pass_{name}", value=_per_pass(texts, name), unit="tokens"),
            Result(
                id=f"not_identical_{name}",
                value=sum(is_wrong(text.parted[name]) for text in texts),
                unit=f"of {len(texts)} texts, ties apart",
            ),
        ]
    unit = "wrong texts while a newer checkpoint was taken"
    return (*found, Result(id="swap", value=int(is_wrong(swap.parted)), unit=unit))


def differences_of(texts: Sequence[DemoText], swap: TakenSwap) -> dict[str, list[dict[str, Any]]]:
    """By the method, where its texts part; ``prompt`` is the text's number, of the swap's that within its batch."""
    found: dict[str, list[dict[str, Any]]] = {}
    for number, text in enumerate(texts):
        for name, parted in text.parted.items():
            if parted is not None:
                found.setdefault(name, []).append(asdict(replace(parted, prompt=number)))
    if swap.parted is not None:
        found["swap"] = [asdict(swap.parted)]
    return found


def is_wrong(parted: Difference | None) -> bool:
    """Whether a text is not the teacher's own, ties apart."""
    return parted is not None and parted.kind != "tie"


def _pace(texts: Sequence[DemoText], name: str) -> float:
    written = [text.ways[name] for text in texts]
    return sum(one.tokens for one in written) / sum(one.seconds for one in written)


def _per_pass(texts: Sequence[DemoText], name: str) -> float:
    """Behind the prompt."""
    written = [text.ways[name] for text in texts]
    passes = sum(drafted is not None for one in written for each in one.passes for drafted, _ in each.requests)
    return sum(one.tokens - 1 for one in written) / max(1, passes)


def _same(text: DemoText, name: str) -> str:
    parted = text.parted[name]
    if parted is None:
        return "the same"
    tie = "a tie" if parted.kind == "tie" else "no tie"
    gap = "not both the likeliest" if parted.gap is None else f"{parted.gap:.3f} nats apart"
    return f"parts at token {parted.position}, {tie}, {parted.drafted} for {parted.plain}, {gap}"
