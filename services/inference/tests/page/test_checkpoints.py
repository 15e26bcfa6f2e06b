"""GET /checkpoints and pinning: what the folder holds, and what is done with it."""

import errno
from pathlib import Path
from typing import Any

import pytest

from latentforge.core import catalogue
from latentforge.core.manifest import FileRecord
from latentforge.inference.page.checkpoints import has_template


async def listed(client: Any) -> dict[str, Any]:
    return {each["id"]: each for each in (await client.get("/checkpoints")).json()["checkpoints"]}


async def test_every_checkpoint_is_listed_newest_first_with_its_metrics(page_server: Any, publish: Any) -> None:
    publish(1, metrics={"held_out_ce": 3.0, "held_out_kd": 0.5})
    publish(2)
    async with page_server() as (client, _):
        answer = (await client.get("/checkpoints")).json()
        assert [each["id"] for each in answer["checkpoints"]] == ["demo/step-00000002", "demo/step-00000001"]
        newest, oldest = answer["checkpoints"]
        assert (newest["served"], oldest["served"]) == (True, False)
        assert oldest["metrics"] == {"held_out_ce": 3.0, "held_out_kd": 0.5}
        assert (oldest["run"], oldest["step"], oldest["chunk_size"]) == ("demo", 1, 4)
        assert answer["follows"] == "demo"


async def test_a_quarantined_one_has_its_reason(page_server: Any, publish: Any) -> None:
    publish(1)
    weights = publish(2) / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    async with page_server() as (client, _):
        found = await listed(client)
        assert found["demo/step-00000001"]["served"]
        bad = found["demo/step-00000002"]
        assert (bad["quarantined"], bad["served"]) == (True, False)
        assert "bytes" in bad["problem"]


async def test_one_whose_manifest_cannot_be_read_is_listed_with_what_is_wrong(page_server: Any, publish: Any) -> None:
    publish(1)
    (publish(2) / "manifest.json").write_text("{")
    async with page_server() as (client, _):
        bad = (await listed(client))["demo/step-00000002"]
        assert (bad["created"], bad["metrics"]) == (None, {})
        assert "manifest" in bad["problem"]


async def test_the_fallback_is_listed_while_nothing_is_published(
    page_server: Any, publish: Any, checkpoints: Path
) -> None:
    publish(1, run="shipped")
    async with page_server(fallback_run=checkpoints / "shipped", checkpoints_dir=checkpoints / "empty") as (client, _):
        (only,) = (await listed(client)).values()
        assert (only["id"], only["served"], only["shipped"]) == ("shipped/step-00000001", True, True)


async def test_a_pin_is_followed_at_the_next_look_and_an_unpin_too(page_server: Any, publish: Any) -> None:
    publish(1)
    publish(2)
    async with page_server() as (client, registry):
        answer = await client.post("/checkpoints/pin", json={"checkpoint": "demo/step-00000001"})
        assert answer.json() == {"run": "demo", "pinned": "demo/step-00000001", "note": None}
        registry.refresh()
        found = await listed(client)
        assert found["demo/step-00000001"]["served"]
        assert [each["pinned"] for each in found.values()] == [False, True]

        answer = await client.post("/checkpoints/unpin", json={"run": "demo"})
        assert answer.json() == {"run": "demo", "pinned": None, "note": None}
        registry.refresh()
        assert (await listed(client))["demo/step-00000002"]["served"]


async def test_a_pin_in_another_run_says_what_is_followed(page_server: Any, publish: Any) -> None:
    publish(1, run="old")
    publish(1, run="new")
    async with page_server(checkpoint_run="new") as (client, _):
        answer = await client.post("/checkpoints/pin", json={"checkpoint": "old/step-00000001"})
        assert "CHECKPOINT_RUN=old" in answer.json()["note"]


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("pin", {"checkpoint": "demo/step-00000009"}, "checkpoint_not_found"),
        ("pin", {"checkpoint": "../demo/step-00000001"}, "checkpoint_not_found"),
        ("pin", {"checkpoint": "nothing"}, "checkpoint_not_found"),
        ("unpin", {"run": "other"}, "run_not_found"),
        ("unpin", {"run": "../demo"}, "run_not_found"),
    ],
)
async def test_what_is_not_there_is_said_so(page_server: Any, publish: Any, path: str, body: Any, code: str) -> None:
    publish(1)
    async with page_server() as (client, _):
        answer = await client.post(f"/checkpoints/{path}", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, code)


async def test_a_folder_that_cannot_be_written_is_409_in_words(
    page_server: Any, publish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(1)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    # Tests run as root, whom no permission keeps from writing.
    monkeypatch.setattr(catalogue, "write_pin", refuse)
    async with page_server() as (client, _):
        answer = await client.post("/checkpoints/pin", json={"checkpoint": "demo/step-00000001"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "read_only")
        assert "Read-only file system" in answer.json()["error"]["message"]


async def test_wrong_bodies_name_the_field(page_server: Any, publish: Any) -> None:
    publish(1)
    async with page_server() as (client, _):
        for body, field in (({}, "checkpoint"), ({"checkpoint": 1}, "checkpoint"), ({"checkpoint": "a", "b": 1}, "b")):
            answer = await client.post("/checkpoints/pin", json=body)
            assert answer.status_code == 422
            assert answer.json()["error"]["param"] == field


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("chat_template.jinja", "{{ messages }}", True),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"chat_template": null}', False),
        ("tokenizer_config.json", "{", False),
    ],
)
def test_it_says_which_can_chat(name: str, content: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / name).write_text(content)
    record = FileRecord(size=len(content), sha256=f"{content}-{name}")
    assert has_template(tmp_path, {f"tokenizer/{name}": record}) is expected


async def test_it_says_which_a_request_may_name_and_which_are_in_memory(page_server: Any, publish: Any) -> None:
    publish(1, run="other")
    publish(1)
    publish(2)
    async with page_server(checkpoint_run="demo") as (client, registry):
        registry.snapshot_for("demo/step-00000001")
        found = await listed(client)
        assert {name for name, each in found.items() if each["usable"]} == {"demo/step-00000001", "demo/step-00000002"}
        assert [name for name, each in found.items() if each["loaded"]] == ["demo/step-00000001"]
    async with page_server() as (client, _):
        assert all(each["usable"] for each in (await listed(client)).values())
