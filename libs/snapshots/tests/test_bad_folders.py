"""Every kind of folder that must not be served: the good checkpoint serves on, and why is told."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentforge.core import checkpoint_files
from latentforge.core.manifest import MANIFEST
from latentforge.snapshots.registry import Registry

from .conftest import served

Publish = Callable[..., Path]
Spoil = Callable[[Path], object]
WEIGHTS = "student/model.safetensors"
CONFIG = "student/config.json"


def manifest_of(place: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((place / MANIFEST).read_text())
    return content


def changed(**changes: Any) -> Spoil:
    """Says something else in the manifest."""

    def spoil(place: Path) -> None:
        (place / MANIFEST).write_text(json.dumps(manifest_of(place) | changes))

    return spoil


def golden(**changes: Any) -> Spoil:
    return lambda place: changed(golden=manifest_of(place)["golden"] | changes)(place)


def vouch(place: Path) -> None:
    """Has the manifest vouch for the files that are there, so that only what is in them can be found."""
    records = {}
    for path in place.rglob("*"):
        if path.is_file() and path.name != MANIFEST:
            content = path.read_bytes()
            name = path.relative_to(place).as_posix()
            records[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    changed(files=records)(place)


def vouched(spoil: Spoil) -> Spoil:
    def spoil_and_vouch(place: Path) -> None:
        spoil(place)
        vouch(place)

    return spoil_and_vouch


def written(name: str, content: bytes) -> Spoil:
    return lambda place: (place / name).write_bytes(content)


def config(**changes: Any) -> Spoil:
    def spoil(place: Path) -> None:
        path = place / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return vouched(spoil)


def tensors(change: Callable[[dict[str, torch.Tensor]], object], name: str = WEIGHTS) -> Spoil:
    def spoil(place: Path) -> None:
        found = load_file(place / name)
        change(found)
        save_file(found, place / name)

    return vouched(spoil)


def zero(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(found: dict[str, torch.Tensor]) -> None:
        names = [name for name in found if name.startswith(part)]
        assert names
        for name in names:
            found[name].zero_()

    return change


def flip_a_bit(place: Path) -> None:
    content = bytearray((place / WEIGHTS).read_bytes())
    content[-3] ^= 4
    (place / WEIGHTS).write_bytes(content)


def replaced(name: str, make: Callable[[Path], object]) -> Spoil:
    def spoil(place: Path) -> None:
        (place / name).unlink()
        make(place / name)

    return spoil


def linked(name: str) -> Spoil:
    def spoil(place: Path) -> None:
        target = place.parents[2] / "elsewhere"
        shutil.move(place / name, target)
        (place / name).symlink_to(target)

    return spoil


def emptied(place: Path) -> None:
    shutil.rmtree(place)
    place.mkdir()


def file_instead(place: Path) -> None:
    shutil.rmtree(place)
    place.write_text("x")


def renamed(name: str) -> Spoil:
    return lambda place: place.rename(place.with_name(name))


# The spoilt checkpoint and what is told of it, in quarantine or as a problem; None where it is passed over in silence.
KINDS: dict[str, tuple[Spoil, str | None]] = {
    "without manifest": (lambda place: (place / MANIFEST).unlink(), None),
    "manifest under a temporary name": (lambda place: (place / MANIFEST).rename(place / ".manifest.json.12"), None),
    "manifest is a folder": (replaced(MANIFEST, Path.mkdir), None),
    "folder is empty": (emptied, None),
    "folder is a file": (file_instead, None),
    "name ends in a newline": (renamed("step-00000002\n"), None),
    "name has other digits": (renamed("step-٠٠٠٠٠٠٠٢"), None),
    "name has a suffix": (renamed("step-00000002.tmp"), None),
    "name has too few zeros": (renamed("step-2"), "is not called step-00000002"),
    "name has too many zeros": (renamed("step-000000002"), "is not called step-00000002"),
    "name of another step": (renamed("step-00000003"), "says step 2, which belongs in step-00000002/"),
    "folder is a link": (linked("."), "is a symbolic link"),
    "manifest empty": (written(MANIFEST, b""), "is not a manifest"),
    "manifest cut short": (lambda p: written(MANIFEST, (p / MANIFEST).read_bytes()[:-9])(p), "is not a manifest"),
    "manifest no text": (written(MANIFEST, b"\xff\xfe\x00"), "is not a manifest"),
    "manifest endless": (written(MANIFEST, b" " * (2**24 + 1)), "has more than 16777216 bytes"),
    "format of before": (changed(format_version=4), "format_version is 4, but this version reads only 5; train and"),
    "format of a later version": (changed(format_version=6), "format_version is 6, but this version reads only 5"),
    "field that nobody knows": (changed(code="x"), "code is not a known field"),
    "copied from another run": (changed(run="other"), "says run 'other', but stands in 'demo'"),
    "run with a newline": (changed(run="de\nmo"), "is no name of a folder"),
    "created at no time": (changed(created="yesterday"), "created is 'yesterday'"),
    "created in no time zone": (changed(created="2026-01-01T00:00:00"), "has no offset from UTC"),
    "metric is NaN": (changed(metrics={"ce": float("nan")}), "metrics.ce"),
    "metric is infinite": (changed(metrics={"ce": float("inf")}), "metrics.ce"),
    "file outside the folder": (changed(files={"../x": {"size": 1, "sha256": "0"}}), "is no name of a file"),
    "names no student": (changed(files={}), "is not in its manifest"),
    "weights cut short": (lambda p: os.truncate(p / WEIGHTS, 1000), "has 1000 bytes, its manifest says"),
    "weights longer": (lambda p: written(WEIGHTS, (p / WEIGHTS).read_bytes() + b"x")(p), "bytes, its manifest says"),
    "weights with a bit flipped": (flip_a_bit, "does not have the sha256"),
    "weights missing": (lambda p: (p / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "weights are a folder": (replaced(WEIGHTS, Path.mkdir), f"{WEIGHTS} is missing"),
    "weights are a pipe": (replaced(WEIGHTS, os.mkfifo), "is not a regular file"),
    "weights are a link": (linked(WEIGHTS), f"{WEIGHTS} is a symbolic link"),
    "part is a link": (linked("student"), "student is a symbolic link"),
    "tokenizer missing": (lambda p: shutil.rmtree(p / "tokenizer"), "tokenizer.json is missing"),
    "file that is not named": (written("student/model.bin", b"x"), "'student/model.bin' is not in its manifest"),
    "pickle for weights": (vouched(written(WEIGHTS, pickle.dumps({"a": 1}))), "header too large"),
    "weights of no tensors": (vouched(written(WEIGHTS, b"\2\0\0\0\0\0\0\0{}")), "has only 0 "),
    "header beyond the file": (
        vouched(written(WEIGHTS, b'\x3c\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}     ')),
        "model.safetensors: ",
    ),
    "config no JSON": (vouched(written(CONFIG, b"{")), "config.json: "),
    "config of another kind": (config(kind="autoencoder"), "kind is 'autoencoder', but 'student' is wanted"),
    "config of other sizes": (config(intermediate_size=48), "the weights do not fit config.json"),
    "config that asks for terabytes": (
        config(hidden_size=10**12),
        "hidden_size is 1000000000000, but model.safetensors",
    ),
    "config of endless layers": (config(num_layers=10**12), "num_layers is 1000000000000, but model.safetensors"),
    "config of another K": (config(chunk_size=8), "the weights do not fit config.json"),
    "manifest of another K": (changed(chunk_size=8), "chunk_size is 8 in the manifest, but 4 in the student"),
    "manifest of another D": (changed(latent_size=8), "latent_size is 8 in the manifest, but 16 in the student"),
    "tensor missing": (tensors(lambda found: found.pop("bias")), "bias is missing"),
    "tensor too many": (tensors(lambda found: found.update(x=torch.zeros(1))), "'x' is no part of the model"),
    "weight is NaN": (tensors(lambda found: found["bias"][5].fill_(torch.nan)), "student.bias are not finite"),
    "logits are infinite": (
        tensors(lambda found: [found["bias"].fill_(3e38), found["chunk_decoder.output.weight"].fill_(3e38)]),
        "logits of a text of",
    ),
    "embeddings zeroed": (tensors(zero("embedding")), "of the golden text"),
    "backbone's input zeroed": (tensors(zero("chunk_down")), "of the golden text"),
    "chunk decoder zeroed": (tensors(zero("chunk_decoder")), "of the golden text"),
    "bias of the next id": (tensors(lambda f: f.update(bias=f["bias"].roll(1))), "of the golden text"),
    "tokenizer no JSON": (vouched(written("tokenizer/tokenizer.json", b"{")), "is not a readable tokenizer.json"),
    "another tokenizer": (changed(tokenizer_fingerprint="0" * 64), "fingerprint is"),
    "another bos": (changed(bos_id=7), "the tokenizer has no bos token"),
    "golden text of other ids": (golden(text="y"), "the golden text has other ids"),
    "golden text without log probabilities": (golden(logprobs=[]), "0 logprobs of"),
    "no golden text": (golden(token_ids=[], logprobs=[], uniforms=[], drawn_ids=[]), "golden.token_ids"),
}


def told(registry: Registry) -> str:
    return "; ".join([*(bad.reason for bad in registry.quarantined), registry.problem or ""])


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_folder_is_never_served_and_the_good_one_serves_on(
    registry: Registry, publish: Publish, kind: str
) -> None:
    spoil, reason = KINDS[kind]
    publish(1)
    assert served(registry) == "demo/step-00000001"
    snapshot = registry.current
    spoil(publish(2))
    for _ in range(2):
        assert served(registry) == "demo/step-00000001"
        assert registry.current is snapshot
        if reason is None:
            assert told(registry) == ""
        else:
            assert reason in told(registry)
    # Nor by whoever starts now, and the next good one is taken by both.
    late = Registry(registry.root, None, torch.device("cpu"))
    assert served(late) == "demo/step-00000001"
    publish(4)
    assert served(registry) == served(late) == "demo/step-00000004"


@pytest.mark.parametrize("name", [".DS_Store", "student/.DS_Store", "tokenizer/Thumbs.db", "student/._model", ".nfs1"])
def test_what_file_managers_leave_in_a_checkpoint_changes_nothing(
    registry: Registry, publish: Publish, name: str
) -> None:
    place = publish(1)
    (place.parent / ".DS_Store").write_text("x")
    (place.parent.parent / ".DS_Store").write_text("x")
    (place / name).write_text("x")
    assert served(registry) == "demo/step-00000001"
    snapshot = registry.current
    (place / name).write_text("y")
    registry.refresh()
    assert registry.current is snapshot
    assert told(registry) == ""


def test_a_run_that_is_a_link_or_has_no_printable_name_is_passed_over_and_told(
    registry: Registry, publish: Publish, checkpoints: Path
) -> None:
    publish(1)
    (checkpoints / "latest").symlink_to(checkpoints / "demo")
    shutil.copytree(checkpoints / "demo", checkpoints / "de\nmo")
    assert served(registry) == "demo/step-00000001"
    assert registry.quarantined == []
    assert registry.problem is not None
    assert f"{checkpoints / 'latest'} is a symbolic link" in registry.problem
    assert r"'de\nmo' in" in registry.problem
    assert "\n" not in registry.problem


def test_a_copy_under_another_name_is_quarantined_and_the_original_serves_on(
    registry: Registry, publish: Publish, checkpoints: Path
) -> None:
    publish(1)
    shutil.copytree(checkpoints / "demo", checkpoints / "copy")
    assert served(registry) == "demo/step-00000001"
    [bad] = registry.quarantined
    assert bad.checkpoint == "copy/step-00000001"
    assert "says run 'demo', but stands in 'copy'" in bad.reason


def test_a_file_that_may_not_be_read_is_a_problem_until_it_may(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(1)
    registry.refresh()
    denied = publish(2) / WEIGHTS
    opened = os.open

    def deny(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(os.fsdecode(path)) == denied:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", deny)
        assert served(registry) == "demo/step-00000001"
        assert registry.problem == f"demo/step-00000002 cannot be read now: [Errno 13] Permission denied: '{denied}'"
        assert registry.quarantined == []
    assert served(registry) == "demo/step-00000002"


@pytest.mark.parametrize("change", ["truncate", "replace", "remove"])
@pytest.mark.parametrize("at", range(0, 12, 2))
def test_a_file_that_changes_while_it_is_read_never_becomes_a_snapshot(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch, change: str, at: int
) -> None:
    publish(1)
    registry.refresh()
    place = publish(2)
    other = (publish(3, run="spare") / WEIGHTS).read_bytes()
    shutil.rmtree(place.parent.parent / "spare")
    monkeypatch.setattr(checkpoint_files, "_PIECE", 10_000)
    hashed = hashlib.sha256
    pieces = 0

    class Watched:
        """Counts the pieces of files that are read, and changes the weights behind the one that is asked for."""

        def __init__(self, content: bytes = b"") -> None:
            self._digest = hashed(content)

        def update(self, piece: bytes) -> None:
            nonlocal pieces
            self._digest.update(piece)
            if pieces == at:
                act()
            pieces += 1

        def hexdigest(self) -> str:
            return self._digest.hexdigest()

    def act() -> None:
        path = place / WEIGHTS
        if change == "truncate":
            os.truncate(path, 5_000)
        elif change == "replace":
            path.write_bytes(other)
        else:
            path.unlink()

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "sha256", Watched)
        registry.refresh()
    assert pieces > 0
    assert registry.current is not None
    if registry.current.id == "demo/step-00000002":
        # It had been read by then: what is served is what was published.
        published = json.loads((place / MANIFEST).read_text())["files"][WEIGHTS]["sha256"]
        assert hashed((publish(2, run="anew") / WEIGHTS).read_bytes()).hexdigest() == published
    else:
        assert registry.current.id == "demo/step-00000001"


def test_a_run_from_the_future_does_not_hide_later_ones(registry: Registry, publish: Publish) -> None:
    ahead = publish(1, run="ahead")
    changed(created="2999-01-01T00:00:00+00:00")(ahead)
    os.utime(ahead / MANIFEST, (10**9, 10**9))
    assert served(registry) == "ahead/step-00000001"
    publish(1, run="later")
    assert served(registry) == "later/step-00000001"
    assert registry.problem is not None
    assert f"{ahead / MANIFEST} says that it was created at a time that is yet to come" in registry.problem
