import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from latentforge.core.manifest import MANIFEST
from latentforge.inference.cli.main import app

Publish = Callable[..., Path]


@pytest.fixture
def run(checkpoints: Path) -> Callable[..., Any]:
    def invoke(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, "--checkpoints", str(checkpoints)])

    return invoke


def test_what_is_published_is_listed_with_what_is_served(run: Callable[..., Any], publish: Publish) -> None:
    publish(1, metrics={"held_out_ce": 2.75})
    publish(2, metrics={"held_out_ce": 2.5})
    listed = json.loads(run("list", "--json").stdout)
    assert [one["id"] for one in listed] == ["demo/step-00000002", "demo/step-00000001"]
    assert [(one["run"], one["step"], one["metrics"]) for one in listed] == [
        ("demo", 2, {"held_out_ce": 2.5}),
        ("demo", 1, {"held_out_ce": 2.75}),
    ]
    assert [(one["wanted"], one["pinned"]) for one in listed] == [(True, False), (False, False)]
    table = run("list").stdout.splitlines()
    assert "held_out_ce 2.5" in table[1]
    assert table[1].rstrip().endswith("served")
    assert "served" not in table[2]


def test_a_step_is_pinned_and_unpinned(run: Callable[..., Any], publish: Publish, checkpoints: Path) -> None:
    publish(1)
    publish(2)
    assert run("pin", "demo/1").stdout == "run demo is pinned to step-00000001\n"
    assert (checkpoints / "demo" / "pinned").read_text() == "step-00000001\n"
    assert [(one["wanted"], one["pinned"]) for one in json.loads(run("list", "--json").stdout)] == [
        (False, False),
        (True, True),
    ]
    assert "served pinned" in run("list").stdout
    assert run("unpin", "demo").stdout == "run demo is pinned no longer\n"
    assert run("unpin", "demo").stdout == "run demo was not pinned\n"


def test_what_is_not_there_is_an_error_that_says_what_is(run: Callable[..., Any], publish: Publish) -> None:
    assert run("list").stdout.startswith("nothing is published in ")
    assert json.loads(run("list", "--json").stdout) == []
    publish(1)
    done = run("pin", "demo/9")
    assert done.exit_code == 1
    assert done.stderr == "error: run 'demo' has no 'step-00000009'; it has step-00000001\n"
    done = run("unpin", "nobody")
    assert done.exit_code == 1
    assert done.stderr == "error: there is no run 'nobody'; there are demo\n"


def test_what_is_wrong_with_a_checkpoint_is_listed_and_what_is_passed_over_told(
    run: Callable[..., Any], publish: Publish, checkpoints: Path
) -> None:
    (publish(1) / MANIFEST).write_text("{")
    (checkpoints / "link").symlink_to(checkpoints / "demo")
    done = run("list", "--json")
    [one] = json.loads(done.stdout)
    assert (one["id"], one["step"], one["metrics"]) == ("demo/step-00000001", None, None)
    assert "is not a manifest" in one["problem"]
    assert f"passed over: {checkpoints / 'link'} is a symbolic link" in done.stderr
    assert run("list").exit_code == 0
