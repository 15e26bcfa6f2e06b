"""Prompts made of small packages that lie in a folder of their own."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from latentforge.trainer.data.packages import HELD_OUT_PACKAGES, Packages
from latentforge.trainer.data.writing_prompts import KINDS, write_prompts
from latentforge.trainer.errors import TrainerError

MODULE = '''
"""{name} keeps things. {filler}"""


class {name}Shelf:
    """A shelf of {name}, from which things are taken by name. {filler}"""

    def {name}_take(self, name):
        """Takes the thing of that name off the shelf of {name}."""
        if name in self.things:
            return self.things.pop(name)
        raise KeyError("there is no {name} of that name on this shelf")
'''
WORDS = "All that stands here is said so that there is enough to be continued by somebody who writes on. "


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    for name in ("alpha", "beta", *HELD_OUT_PACKAGES):
        folder = tmp_path / "site" / name
        folder.mkdir(parents=True)
        filler = " ".join(f"{name} {i}: {WORDS}" for i in range(6))
        (folder / "shelf.py").write_text(MODULE.format(name=name, filler=filler))
        described = tmp_path / "site" / f"{name}-1.0.dist-info"
        described.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n\n# About {name}\n\n{3 * WORDS}\n"
        (described / "METADATA").write_text(text)
    return Packages([tmp_path / "site"], tmp_path)


def written(packages: Packages, out: Path, num: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    counts = write_prompts(out, packages, num, seed)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert counts == {kind: sum(document["kind"] == kind for document in found) for kind in KINDS}
    return found


def test_all_kinds_take_turns_and_nothing_is_of_a_held_out_package(packages: Packages, tmp_path: Path) -> None:
    found = written(packages, tmp_path / "prompts.jsonl")
    assert [document["kind"] for document in found[:4]] == list(KINDS)
    by_kind = {kind: [d for d in found if d["kind"] == kind] for kind in KINDS}
    for kind in ("everyday", "programming"):
        assert all([m["role"] for m in d["messages"]] == ["user"] for d in by_kind[kind])
    whole = json.dumps(found).lower()
    assert "alpha_take" in whole
    assert "about beta" in whole
    assert not [name for name in HELD_OUT_PACKAGES if name in whole]


def test_code_keeps_its_indents(packages: Packages, tmp_path: Path) -> None:
    code = [d["text"] for d in written(packages, tmp_path / "prompts.jsonl", 400) if d["kind"] == "code"]
    method = next(text for text in code if text.startswith("def alpha_take"))
    source = textwrap.dedent(MODULE.format(name="alpha", filler="").split("    def")[1].join(["    def", ""]))
    assert source.startswith(method)
    assert "\n    " in method


def test_texts_are_beginnings_that_end_with_a_word(packages: Packages, tmp_path: Path) -> None:
    texts = [d["text"] for d in written(packages, tmp_path / "prompts.jsonl", 400) if "text" in d]
    assert len(texts) == len(set(texts)) > 8
    assert all(30 <= len(text) <= 641 for text in texts)
    sources = "".join(path.read_text() for path in tmp_path.rglob("shelf.py"))
    for text in (t for t in texts if "About" not in t):
        assert text.split()[-1] in sources.split()


def test_the_choice_is_a_function_of_the_seed(packages: Packages, tmp_path: Path) -> None:
    first, again, other = (written(packages, tmp_path / "prompts.jsonl", seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_without_packages_there_is_nothing_to_ask_about(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    with pytest.raises(TrainerError, match=r"no Python file of installed packages in .*site"):
        write_prompts(tmp_path / "prompts.jsonl", Packages([tmp_path / "site"], tmp_path), 10, 0)
