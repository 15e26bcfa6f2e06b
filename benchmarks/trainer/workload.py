"""What is learnt: text of the standard library with the shipped teacher's rows."""

import asyncio
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.gateway.workload import held_out_sequences
from latentforge.gateway.backends.local.backend import TransformersBackend
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.trainer.targets.kd_targets import kd_targets

TEACHER = Path("models/stdlib-teacher")


def write_batches(path: Path, num_batches: int, batch_size: int, length: int, top_k: int) -> None:
    """Writes a file of batches with the teacher's rows: int64 tokens [n, b, L] and the fields of KdTargets [n, b, L].

    Raises:
        ValueError: the library has less text than that.
    """
    sequences = held_out_sequences(num_batches * batch_size, length, TEACHER)
    rows = asyncio.run(_scored([np.array(ids, dtype=np.uint32) for ids in sequences], top_k))
    kd = kd_targets(rows, length, [0] * len(rows))
    tensors = {"tokens": torch.tensor(sequences)} | vars(kd)
    save_file({name: value.unflatten(0, (num_batches, batch_size)) for name, value in tensors.items()}, path)


async def _scored(sequences: list[np.ndarray], top_k: int) -> list[SparseRows]:
    settings = GatewaySettings(teacher_device="cpu", teacher_dtype="float32")
    backend = TransformersBackend(settings, str(TEACHER), "EMBEDDED_TEACHER_PATH", hub=False)
    await backend.load()
    try:
        return [rows for ids in sequences for rows in await backend.score([ids], top_k)]
    finally:
        await backend.close()
