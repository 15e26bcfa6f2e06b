from pathlib import Path

from latentforge.text.held_out import split_of
from latentforge.trainer.data.corpus import source_files, stdlib_root


def test_splits_are_disjoint_and_depend_on_the_name_alone(tmp_path: Path) -> None:
    names = {split: {f.name for f in source_files(stdlib_root(), split)} for split in ("train", "held-out")}
    assert not names["train"] & names["held-out"]
    # Fixed for ever: the shipped teacher was trained on one side of this line.
    assert split_of("ast.py") == "held-out"
    assert split_of("argparse.py") == "train"
    (tmp_path / "ast.py").write_text("x = 1\n")
    assert [f.name for f in source_files(tmp_path, "held-out")] == ["ast.py"]


def test_a_useful_share_is_held_out() -> None:
    sizes = {split: sum(len(f.text) for f in source_files(stdlib_root(), split)) for split in ("train", "held-out")}
    share = sizes["held-out"] / sum(sizes.values())
    assert 0.02 < share < 0.10


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
