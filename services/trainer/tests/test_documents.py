import json
from pathlib import Path

import pytest

from latentforge.core.packages import HELD_OUT_PACKAGES, Packages
from latentforge.trainer.documents import read_documents, split_held_out, write_packages, write_stdlib
from latentforge.trainer.errors import TrainerError


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"text": "a"', "not JSON"),
        ("[1]", "a JSON list, not an object"),
        ('{"txt": "a"}', 'neither "text" nor "messages"'),
        ('{"text": "a", "messages": []}', 'both "text" and "messages"'),
        ('{"text": 3}', '"text" is a JSON int'),
        ('{"messages": []}', "at least one message"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "'robot', not one of system, user, assistant"),
        ('{"messages": [{"role": "user"}]}', 'a message without a string "content"'),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_what_is_expected(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(TrainerError) as caught:
        list(read_documents(path))
    assert f"{path}, line 3: " in str(caught.value)
    assert what in str(caught.value)
    assert '{"text": "..."}' in str(caught.value)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(TrainerError, match="line 1: not UTF-8"):
        list(read_documents(path))


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"nothing\.jsonl cannot be read"):
        list(read_documents(tmp_path / "nothing.jsonl"))


def test_held_out_documents_are_chosen_by_content_alone(tmp_path: Path) -> None:
    texts = [f"document number {i} " * 5 for i in range(200)]
    sides = []
    for name, order in (("a", texts), ("b", [*reversed(texts), texts[3]])):
        source, train, held_out = (tmp_path / f"{name}-{part}.jsonl" for part in ("source", "train", "held"))
        source.write_text("".join(json.dumps({"text": t}) + "\n" for t in order))
        num_train, num_held_out = split_held_out(source, train, held_out, min_characters=100)
        assert num_train + num_held_out == len(order)
        sides.append({json.loads(line)["text"] for line in held_out.read_text().splitlines()})
        assert not sides[-1] & {json.loads(line)["text"] for line in train.read_text().splitlines()}
    assert sides[0] == sides[1]
    assert 2 <= len(sides[0]) <= 25


def test_too_small_a_file_is_not_divided(tmp_path: Path) -> None:
    source = tmp_path / "one.jsonl"
    source.write_text('{"text": "only one"}\n')
    with pytest.raises(TrainerError, match="too small to hold documents out"):
        split_held_out(source, tmp_path / "t", tmp_path / "h", min_characters=4)
    assert not (tmp_path / "t").exists()


def test_the_standard_library_is_written_by_split(tmp_path: Path) -> None:
    count = write_stdlib(tmp_path / "held.jsonl", "held-out")
    documents = list(read_documents(tmp_path / "held.jsonl"))
    assert len(documents) == count > 5


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    """Sixty packages of one file of 100 bytes each and the held-out ones, beside an empty standard library."""
    names = [*HELD_OUT_PACKAGES, *(f"package{i}" for i in range(60))]
    for name in names:
        path = tmp_path / "site" / name / "a.py"
        path.parent.mkdir(parents=True)
        path.write_text(f"{name} = value\n".ljust(99, "x") + "\n")
    (tmp_path / "lib").mkdir()
    return Packages([tmp_path / "site"], tmp_path / "lib")


def test_a_smaller_choice_of_packages_is_the_beginning_of_a_larger_one(tmp_path: Path, packages: Packages) -> None:
    candidates = packages.candidates("train", 0)
    lines = {}
    for size in (1_000, 2_050, None):
        written = write_packages(tmp_path / f"{size}", packages, "train", candidates, max_bytes=size)
        lines[size] = (tmp_path / f"{size}").read_text().splitlines()
        assert written.num_documents == len(lines[size])
        assert written.num_bytes == 100 * len(lines[size])
        assert written.cut == (size is not None)
    assert [len(found) for found in lines.values()] == [10, 20, 60]
    assert lines[2_050][:10] == lines[1_000]
    assert lines[None][:20] == lines[2_050]
    assert json.loads(lines[None][0])["name"] == candidates[0].name
    whole = write_packages(tmp_path / "whole", packages, "train", candidates, max_bytes=6_000)
    assert (whole.num_documents, whole.cut) == (60, False)


def test_no_packages_is_an_error_and_leaves_no_file(tmp_path: Path, packages: Packages) -> None:
    candidates = packages.candidates("train", 0)
    with pytest.raises(TrainerError, match=r"no Python file of the train split within 5e-05 MB in .*site"):
        write_packages(tmp_path / "out" / "a", packages, "train", candidates, max_bytes=50)
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_adds_up_to_what_was_there(tmp_path: Path, packages: Packages) -> None:
    (tmp_path / "site" / "package3" / "a.py").write_text("# generated by a program\n")
    candidates = packages.candidates("train", 0)
    told: list[int] = []
    written = write_packages(tmp_path / "a", packages, "train", candidates, on_bytes=told.append)
    assert written.num_documents == 59
    assert sum(told) == sum(c.num_bytes for c in candidates)
