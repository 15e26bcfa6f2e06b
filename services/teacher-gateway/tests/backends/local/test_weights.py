"""A model's files that are written to, cut short or not whole: what is served is what was read at the start."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM

from latentforge.gateway.backends import build_backend
from latentforge.gateway.backends.base import BackendError
from latentforge.gateway.metrics import Metrics
from latentforge.teacher_client.client import TeacherClient


@asynccontextmanager
async def gateway_process(folder: Path, tmp_path: Path) -> AsyncIterator[tuple[Any, TeacherClient]]:
    """The real command as a process of its own, and a client of it."""
    environment = os.environ | {
        "EMBEDDED_TEACHER_PATH": str(folder),
        "CACHE_URL": f"sqlite:///{tmp_path}/cache.sqlite",
        # What is read from the files would else be hidden by what is kept in memory.
        "CACHE_MEMORY_MB": "0",
        "GATEWAY_PORT": "0",
        "OMP_NUM_THREADS": "1",
        "LOG_JSON": "true",
    }
    command = str(Path(sys.executable).with_name("teacher-gateway"))
    process = await asyncio.create_subprocess_exec(
        command, "serve", cwd=tmp_path, env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        messages: list[str] = []
        async with asyncio.timeout(150):
            while not any(m.startswith("serving ") for m in messages):
                messages.append(json.loads(await process.stderr.readline())["message"])
        async with TeacherClient("127.0.0.1:" + messages[0].rpartition(":")[2], timeout=60) as client:
            yield process, client
    finally:
        if process.returncode is None:
            # Ended, not killed: what it has scored is in the cache then.
            process.terminate()
        await process.communicate()


@pytest.mark.slow
async def test_files_that_are_written_to_and_cut_short_change_no_row_of_a_gateway_that_serves(
    random_teacher: Path, tmp_path: Path, reference: Any
) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(random_teacher, folder)
    weights = folder / "model.safetensors"
    # Small tensors that float32 holds as they are: the ones that loaders like to map.
    other = {name: tensor.flip(0).contiguous() for name, tensor in load_file(weights).items()}
    save_file(other, tmp_path / "other.safetensors", {"format": "pt"})
    assert (tmp_path / "other.safetensors").stat().st_size == weights.stat().st_size
    sequences = [np.random.default_rng(seed).integers(0, 300, 40).tolist() for seed in range(4)]

    async def check(client: TeacherClient, sequence: list[int], revision: str) -> None:
        rows = await client.score(sequence, 5, "float32", "arrays", revision)
        expected = reference(random_teacher, sequence)
        realised = expected[np.arange(39), sequence[1:]]
        np.testing.assert_allclose(rows.realised_logprobs, realised, atol=2e-4)
        np.testing.assert_array_equal(rows.ids[:, 0], expected.argmax(1))

    async with gateway_process(folder, tmp_path) as (process, client):
        revision = (await client.teacher()).revision
        await check(client, sequences[0], revision)
        # As cp does: the same file, other bytes.
        with weights.open("r+b") as file:
            file.write((tmp_path / "other.safetensors").read_bytes())
        await check(client, sequences[1], revision)
        (folder / "config.json").write_text("{}")
        os.truncate(weights, 0)
        await check(client, sequences[2], revision)
        assert (await client.teacher()).revision == revision
        assert process.returncode is None
    # What it left in the cache is the first teacher's.
    for path in folder.iterdir():
        path.unlink()
    shutil.copytree(random_teacher, folder, dirs_exist_ok=True)
    async with gateway_process(folder, tmp_path) as (_, client):
        for sequence in sequences:
            await check(client, sequence, revision)
        assert (await client.cache_stats()).hits == 3


async def load(make_settings: Callable[..., Any], folder: Path) -> Any:
    teacher = build_backend(make_settings(embedded_teacher_path=folder), Metrics())
    try:
        await teacher.load()
    except BaseException:
        await teacher.close()
        raise
    return teacher


async def test_the_revision_is_that_of_the_bytes_that_are_loaded(
    make_settings: Callable[..., Any], random_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is another one by the second time that anybody looks at it."""
    folder = tmp_path / "teacher"
    shutil.copytree(random_teacher, folder)
    right = await load(make_settings, random_teacher)
    read, reads = Path.read_bytes, []

    def once(path: Path) -> bytes:
        data = read(path)
        if path.suffix == ".safetensors":
            reads.append(path)
            path.write_bytes(data[:1000])
        return data

    monkeypatch.setattr(Path, "read_bytes", once)
    teacher = await load(make_settings, folder)
    monkeypatch.undo()
    assert len(reads) == 1
    assert teacher.description.revision == right.description.revision
    ids = np.arange(20, dtype=np.uint32)
    ((rows,), (expected,)) = [await t.score([ids], 4) for t in (teacher, right)]
    assert rows.logprobs.tolist() == expected.logprobs.tolist()
    for t in (teacher, right):
        await t.close()


async def test_a_model_in_several_files_is_the_one_that_its_index_names(
    make_settings: Callable[..., Any], random_teacher: Path, tmp_path: Path
) -> None:
    whole = await load(make_settings, random_teacher)
    folder = tmp_path / "sharded"
    shutil.copytree(random_teacher, folder)
    (folder / "model.safetensors").unlink()
    Qwen3ForCausalLM.from_pretrained(random_teacher).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    # The same weights in another form, as some models bring along.
    save_file({"anything": torch.zeros(2)}, folder / "consolidated.safetensors")
    sharded = await load(make_settings, folder)
    ids = np.arange(20, dtype=np.uint32)
    ((rows,), (expected,)) = [await t.score([ids], 4) for t in (sharded, whole)]
    assert rows.logprobs.tolist() == expected.logprobs.tolist()
    for t in (sharded, whole):
        await t.close()
    missing = sorted(folder.glob("model-*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(BackendError, match=f"EMBEDDED_TEACHER_PATH=.*has no {missing.name}, which .* names"):
        await load(make_settings, folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "lack 1 of the parameters .* model.norm.weight"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), "model.norm.weight"),
    ],
)
async def test_parameters_that_are_missing_are_an_error_and_not_random_numbers(
    make_settings: Callable[..., Any],
    random_teacher: Path,
    tmp_path: Path,
    damage: Callable[[Any], Any],
    message: str,
) -> None:
    shutil.copytree(random_teacher, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackendError, match=f"EMBEDDED_TEACHER_PATH=.*{message}"):
        await load(make_settings, tmp_path)


async def test_a_file_that_is_cut_short_is_an_error_that_names_the_setting(
    make_settings: Callable[..., Any], random_teacher: Path, tmp_path: Path
) -> None:
    shutil.copytree(random_teacher, tmp_path, dirs_exist_ok=True)
    os.truncate(tmp_path / "model.safetensors", 5000)
    with pytest.raises(BackendError, match=r"EMBEDDED_TEACHER_PATH=.* cannot be loaded"):
        await load(make_settings, tmp_path)
