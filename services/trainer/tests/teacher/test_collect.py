import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.targets.choose import met_teacher, target_source
from latentforge.trainer.targets.generated import GeneratedTargets
from latentforge.trainer.teacher.connection import TeacherChangedError, TeacherLostError
from latentforge.trainer.teacher.continuations import GeneratedStore

# Room for a byte-level chat.
GENERATE = {"teacher.targets": "generate", "data.sequence_length": 64}


@pytest.fixture
def gather(known_teacher: Any, make_run: Any, packed: PackedData) -> Any:
    """Collects, and gives what was collected."""

    def collected(
        name: str = "run", *, fresh: bool = False, stop: Any = lambda: False, patience: float = 5.0, **overrides: Any
    ) -> dict[str, Any]:
        changes = {f"teacher.generate.{k}": v for k, v in overrides.items()}
        run = make_run(name, port=known_teacher.port, overrides=GENERATE | changes, patience=patience)
        run = replace(run, stop=stop)
        data = split_tail(packed, 30)
        with met_teacher(run) as teacher, target_source(run, teacher, *data, fresh=fresh) as source:
            assert isinstance(source, GeneratedTargets)
            assert known_teacher.requests == []
            source.prepare()
            found: dict[str, Any] = source.report().model_dump()
            return found | source.identity() | {"folder": run.folder / "generated"}

    return collected


def asked(teacher: Any) -> list[tuple[str, int]]:
    return sorted((r.chat.messages[0].content, r.seed) for r in teacher.generated)


def test_every_prompt_is_asked_once_with_what_the_recipe_says(known_teacher: Any, gather: Any) -> None:
    report = gather(temperature=0.5, top_p=0.9, n=2)
    assert (report["prompts"], report["continuations"], report["dropped"]) == (15, 30, 0)
    assert report["held_out_continuations"] == 6
    requests = known_teacher.generated
    assert len(set(asked(known_teacher))) == len(requests) == 15
    assert {(r.max_tokens, r.n, r.top_k, r.temperature, round(r.top_p, 3)) for r in requests} == {(10, 2, 4, 0.5, 0.9)}
    assert all(r.chat.messages[0].content.startswith("Go\n\n") for r in requests)


def test_a_share_of_the_prompts_is_answered_greedily_and_once(known_teacher: Any, gather: Any) -> None:
    report = gather("run", n=3, temperature=0.5, top_p=0.9, greedy_share=0.5)
    asked_for = {(r.n, r.temperature, round(r.top_p, 3)) for r in known_teacher.generated}
    assert asked_for == {(1, 0.0, 1.0), (3, 0.5, 0.9)}
    num_greedy = sum(not r.temperature for r in known_teacher.generated)
    assert 2 < num_greedy < 13
    assert report["continuations"] == num_greedy + 3 * (15 - num_greedy)
    known_teacher.generated.clear()
    assert gather("run", n=3, temperature=0.5, top_p=0.9, greedy_share=0.5) == report
    assert known_teacher.generated == []
    with pytest.raises(TrainerError, match=r"begun with generate\.greedy_share = 0\.5"):
        gather("run", n=3, temperature=0.5, top_p=0.9)


def test_a_text_is_continued_without_a_chat_template(known_teacher: Any, gather: Any, make_run: Any) -> None:
    report = gather(text_prompts="continued")
    assert report["continuations"] == 15
    assert {r.WhichOneof("prompt") for r in known_teacher.generated} == {"text"}
    with closing(GeneratedStore(report["folder"], "float32")) as store:
        prompts = sorted(store.read(record).prompt_ids.tolist() for record in store.records(range(15)))
    tokenizer = make_run.tokenizer
    assert prompts == sorted(tokenizer.encode_texts([r.text for r in known_teacher.generated]))


def test_continuations_of_several_messages_are_put_together(known_teacher: Any, gather: Any) -> None:
    in_three = gather("three")
    known_teacher.piece = 100
    assert gather("whole")["generated_sha256"] == in_three["generated_sha256"]
    with closing(GeneratedStore(in_three["folder"], "float32")) as store:
        for record in store.records(range(15)):
            each = store.read(record)
            ids = [*each.prompt_ids.tolist(), *each.token_ids.tolist()]
            whole: SparseRows = known_teacher.rows(ids, 4)
            assert each.rows.first_position == len(each.prompt_ids)
            assert (each.rows.ids == whole.ids[len(each.prompt_ids) - 1 :]).all()
            assert each.stopped == (each.token_ids[-1] == 3)


def test_an_interrupted_collection_goes_on_and_ends_the_same(known_teacher: Any, gather: Any) -> None:
    whole = gather("whole")
    everything = asked(known_teacher)
    known_teacher.generated.clear()
    with pytest.raises(Interrupted):
        gather("cut", stop=lambda: len(known_teacher.generated) >= 3)
    before = len(known_teacher.generated)
    assert before > 0
    cut = gather("cut")
    assert cut["generated_sha256"] == whole["generated_sha256"]
    assert set(asked(known_teacher)) == set(everything)
    # A whole collection asks for nothing.
    known_teacher.generated.clear()
    assert gather("cut") == cut
    assert known_teacher.generated == []


def test_no_prompt_costs_a_look_at_everything_collected(known_teacher: Any, gather: Any, monkeypatch: Any) -> None:
    connect, looks = sqlite3.connect, list[str]()

    def traced(path: Path) -> sqlite3.Connection:
        database = connect(path)
        database.set_trace_callback(looks.append)
        return database

    def scans() -> list[str]:
        found = [look for look in looks if "from continuations" in look and "where prompt = " not in look]
        looks.clear()
        return found

    monkeypatch.setattr(sqlite3, "connect", traced)
    known_teacher.drop = lambda messages, index: "bytes differ" if index == 1 else ""
    gather(n=3)
    for_fifteen = scans()
    gather(n=3)
    assert for_fifteen == scans() != []


@pytest.mark.parametrize("kept", [0, 1, 7, 14])
def test_what_a_kill_left_out_is_asked_again_and_no_more(known_teacher: Any, gather: Any, kept: int) -> None:
    whole = gather("a")
    with closing(sqlite3.connect(whole["folder"] / "continuations.sqlite")) as database, database:
        # As they had come by then.
        last = "select prompt from continuations group by prompt order by min(rowid) limit -1 offset ?"
        database.execute(f"delete from continuations where prompt in ({last})", (kept,))
    known_teacher.generated.clear()
    assert gather("a")["generated_sha256"] == whole["generated_sha256"]
    assert len(known_teacher.generated) == 15 - kept


def test_a_torn_collection_is_refused_or_begun_anew(known_teacher: Any, gather: Any) -> None:
    whole = gather("a")
    path = whole["folder"] / "continuations.sqlite"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(TrainerError, match=rf"{path} cannot be used .*--fresh \(FRESH=1\)"):
        gather("a")
    assert gather("a", fresh=True)["generated_sha256"] == whole["generated_sha256"]


def test_dropped_continuations_are_counted_and_not_used(known_teacher: Any, gather: Any) -> None:
    known_teacher.drop = lambda messages, index: "bytes differ" if index == 1 else ""
    report = gather(n=3)
    assert (report["continuations"], report["dropped"]) == (30, 15)
    known_teacher.generated.clear()
    assert gather(n=3) == report
    assert known_teacher.generated == []


def test_too_many_dropped_is_an_error_that_says_where_to_look(known_teacher: Any, gather: Any) -> None:
    known_teacher.drop = lambda messages, index: "bytes differ" if index else ""
    with pytest.raises(TrainerError, match=r"of .* continuations cannot be used, .* bytes differ\. Look at .*FRESH=1"):
        gather(n=3)
    # Seen before everything was paid for.
    assert len(known_teacher.generated) < 15
    known_teacher.drop = lambda messages, index: ""
    assert gather(n=3, fresh=True)["dropped"] == 0


def test_another_teacher_or_setting_is_refused_with_both_values_or_starts_anew(known_teacher: Any, gather: Any) -> None:
    first = gather()
    with pytest.raises(TrainerError, match=r"generate\.max_tokens = 10, now it is 8; .*FRESH=1"):
        gather(max_tokens=8)
    known_teacher.revision = "2"
    with pytest.raises(TrainerError, match=r"teacher\.revision = '1', now it is '2'"):
        gather()
    known_teacher.generated.clear()
    assert gather(fresh=True)["generated_sha256"] == first["generated_sha256"]
    assert len(known_teacher.generated) == 15
    # What is whole and fits is worth keeping.
    gather(fresh=True)
    assert len(known_teacher.generated) == 15


def test_a_refused_prompt_is_dropped_and_a_refusing_teacher_ends_the_collection(
    known_teacher: Any, gather: Any
) -> None:
    known_teacher.fail_with = grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(TrainerError, match=r"15 of 15 continuations cannot be used.* INVALID_ARGUMENT: refused"):
        gather()
    known_teacher.fail_with = grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(TrainerError, match=r"refused: FAILED_PRECONDITION"):
        gather(fresh=True)


def test_a_lost_teacher_leaves_what_had_arrived(known_teacher: Any, gather: Any, monkeypatch: Any) -> None:
    original = known_teacher.rows

    def rows(ids: list[int], k: int) -> Any:
        if len(known_teacher.generated) >= 10:
            known_teacher.fail_with = grpc.StatusCode.UNAVAILABLE
        return original(ids, k)

    monkeypatch.setattr(known_teacher, "rows", rows)
    with pytest.raises(TeacherLostError, match="run the same command to resume"):
        gather("lost", patience=0.1)
    monkeypatch.undo()
    known_teacher.fail_with = None
    known_teacher.generated.clear()
    lost = gather("lost")
    assert 0 < len(known_teacher.generated) < 15
    assert lost["generated_sha256"] == gather("whole")["generated_sha256"]


def test_a_teacher_that_changes_ends_the_collection_and_its_text_is_not_kept(
    known_teacher: Any, gather: Any, monkeypatch: Any
) -> None:
    draw = known_teacher.rows

    def changing(ids: list[int], k: int) -> Any:
        if len(known_teacher.generated) >= 4:
            known_teacher.revision = "2"
        return draw(ids, k)

    monkeypatch.setattr(known_teacher, "rows", changing)
    with pytest.raises(TeacherChangedError, match=r"expected_revision is '1', .*'2'"):
        gather("changed")
    assert known_teacher.generated[-1].expected_revision == "1"
    monkeypatch.undo()
    known_teacher.revision = "1"
    assert gather("changed")["generated_sha256"] == gather("whole")["generated_sha256"]


def test_rows_that_are_not_the_continuations_are_dropped(known_teacher: Any, gather: Any) -> None:
    known_teacher.misplaced = 1
    with pytest.raises(TrainerError, match=r"tokens after a prompt of \d+ came with \d+ rows from position"):
        gather()


def test_a_missing_folder_is_no_collection(known_teacher: Any, gather: Any) -> None:
    first = gather()
    shutil.rmtree(Path(first["folder"]))
    assert gather()["generated_sha256"] == first["generated_sha256"]
