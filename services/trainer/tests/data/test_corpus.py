import re
from pathlib import Path

import pytest

from latentforge.text.held_out import Split, split_of
from latentforge.trainer.data.corpus import SourceFile, source_files, stdlib_root, whole_files

Library = dict[Split, list[SourceFile]]


@pytest.fixture(scope="module")
def library() -> Library:
    return {
        "train": list(source_files(stdlib_root(), "train")),
        "held-out": list(source_files(stdlib_root(), "held-out")),
    }


def test_splits_are_disjoint_and_depend_on_the_name_alone(library: Library, tmp_path: Path) -> None:
    assert not {f.name for f in library["train"]} & {f.name for f in library["held-out"]}
    # Fixed for ever: the shipped teacher was trained on one side of this line.
    assert split_of("ast.py") == "held-out"
    assert split_of("argparse.py") == "train"
    (tmp_path / "ast.py").write_text("x = 1\n")
    assert [f.name for f in source_files(tmp_path, "held-out")] == ["ast.py"]


def test_a_useful_share_is_held_out(library: Library) -> None:
    sizes = {split: sum(len(f.text) for f in files) for split, files in library.items()}
    share = sizes["held-out"] / sum(sizes.values())
    assert 0.02 < share < 0.10


def test_no_file_that_is_trained_on_shares_twelve_words_with_a_held_out_one(library: Library) -> None:
    def runs(text: str) -> set[str]:
        words = re.findall(r"\w+|[^\w\s]", text)
        return {" ".join(words[i : i + 12]) for i in range(len(words) - 11)}

    held_out = set().union(*(runs(f.text) for f in library["held-out"]))
    assert len(held_out) > 50_000
    assert not [f.name for f in library["train"] if not held_out.isdisjoint(runs(f.text))]
    # Little is lost.
    whole = sum(len(f.text) for f in whole_files(stdlib_root(), "train"))
    assert 0.9 * whole < sum(len(f.text) for f in library["train"]) < whole


def test_what_held_out_files_have_too_is_cut_out_of_the_others(tmp_path: Path) -> None:
    known = "def known(first, second):\n    return [first + second, first - second]\n"
    (tmp_path / "ast.py").write_text(known + "a = 1\n")
    (tmp_path / "argparse.py").write_text(known.replace("def", "async def") + "b = 2\n")
    (tmp_path / "base64.py").write_text(known)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "cmd.py").write_text("c = 3\n" + known)

    def texts(tests: bool) -> dict[str, str]:
        return {f.name: f.text for f in source_files(tmp_path, "train", tests=tests)}

    assert texts(tests=False) == {"argparse.py": "b = 2\n"}
    assert texts(tests=True) == {"argparse.py": "b = 2\n", "test/cmd.py": "c = 3\n"}
    assert [f.text for f in source_files(tmp_path, "held-out")] == [known + "a = 1\n"]
    assert {f.name for f in whole_files(tmp_path, "train")} == {"argparse.py", "base64.py"}


def test_leaves_out_packages_tests_tables_and_other_encodings(tmp_path: Path) -> None:
    for name in ("site-packages/a.py", "test/b.py", "encodings/c.py", "d.py", "empty.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if name == "empty.py" else "x = 1\n")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")

    def names(tests: bool) -> set[str]:
        return {f.name for split in ("train", "held-out") for f in source_files(tmp_path, split, tests=tests)}

    assert names(tests=False) == {"d.py"}
    assert names(tests=True) == {"d.py", "test/b.py"}
