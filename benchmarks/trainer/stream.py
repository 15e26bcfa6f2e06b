"""Packing a corpus that fits no memory: what it takes of it, and how fast it is beside the tokenizer alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.trainer.bench import BenchError, TrainerBench
from latentforge.core.results import Result
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.data.corpus import source_files, stdlib_root

_LOOK_SECONDS = 0.05
_LONG_LINE_BYTES = 60_000_000
_DOCUMENTS_AT_ONCE = 512
# What the tokenizer alone is given: enough for a steady speed, and little enough to be held.
_BASELINE_BYTES = 100_000_000


def stream(bench: TrainerBench) -> list[Result]:
    """`trainer pack` of JSONL, made of the standard library's files over and over, each copy begun with a number of its
    own, and in the middle one line of 60 MB. Value: the most resident memory of it and its processes together, summed
    every 50 ms (pages that they share count twice). stream_throughput: bytes of text a second, start and hashing
    included, beside the tokenizer's own encode_batch on documents of the same file, held in memory, on all cores.
    """
    size = int((0.003 if bench.quick else bench.stream_gb) * 1e9)
    source, out = bench.scratch / "stream.jsonl", bench.scratch / "packed"
    num_bytes = _write(source, size, _LONG_LINE_BYTES // (60 if bench.quick else 1))
    seconds, peak = _packed(source, out, bench)
    bench.report.figure(f"stream: {peak / 1e6:,.0f} MB, {num_bytes / seconds / 1e6:.2f} MB/s")
    alone = _tokenizer_alone(source, 1_000_000 if bench.quick else _BASELINE_BYTES)
    bench.report.figure(f"stream: encode_batch alone {alone / 1e6:.2f} MB/s")
    bench.measured["stream"] = {"bytes_of_text": num_bytes, "seconds": seconds, "peak_rss_bytes": peak}
    source.unlink()
    name = f"encode_batch of tokenizers, {len(os.sched_getaffinity(0))} cores"
    throughput = Result.compared(
        "stream_throughput", num_bytes / seconds / 1e6, "MB/s", baseline=name, baseline_value=alone / 1e6
    )
    return [Result(id="stream", value=peak / 1e6, unit="MB"), throughput]


def _texts() -> Iterator[str]:
    files = [file.text for file in source_files(stdlib_root(), "train")]
    copy = 0
    while True:
        for text in files:
            copy += 1
            yield f"# {copy}\n{text}"


def _write(path: Path, size: int, long_line: int) -> int:
    """Writes the corpus; gives the bytes of its texts."""
    num_bytes = 0
    has_long_line = False
    texts = _texts()
    with path.open("w", encoding="utf-8") as file:
        while num_bytes < size:
            text = next(texts)
            if not has_long_line and num_bytes >= size // 3:
                has_long_line = True
                parts = []
                while long_line > 0:
                    parts.append(next(texts))
                    long_line -= len(parts[-1])
                text = "".join(parts)
            num_bytes += len(text.encode())
            file.write(json.dumps({"text": text}) + "\n")
    return num_bytes


def _packed(source: Path, out: Path, bench: TrainerBench) -> tuple[float, int]:
    """Seconds and peak memory in bytes of packing."""
    log = bench.scratch / "stream.log"
    command = [sys.executable, "-m", "latentforge.trainer", "pack", str(source), "--out", str(out)]
    started, peak = time.monotonic(), 0
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            while process.poll() is None:
                peak = max(peak, _resident(process.pid))
                time.sleep(_LOOK_SECONDS)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise BenchError(f"trainer pack ended with exit code {process.returncode}: {log.read_text()[-500:]}")
    return time.monotonic() - started, peak


def _resident(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    folder = Path(f"/proc/{pid}")
    try:
        size = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        children = [c for task in (folder / "task").iterdir() for c in (task / "children").read_text().split()]
    except (OSError, ValueError, IndexError):
        # It has just ended.
        return 0
    return size + sum(_resident(int(child)) for child in children)


def _tokenizer_alone(source: Path, num_bytes: int) -> float:
    """Bytes of text that encode_batch takes a second, of documents that are at hand."""
    tokenizer = Tokenizer.from_file(str(TrainerSettings().tokenizer_path / "tokenizer.json"))
    texts: list[str] = []
    size = 0
    with source.open(encoding="utf-8") as file:
        for line in file:
            if size >= num_bytes:
                break
            text = json.loads(line)["text"]
            # One of megabytes would take gigabytes.
            if len(text) < 2**20:
                texts.append(text)
                size += len(text.encode())
    started = time.monotonic()
    for first in range(0, len(texts), _DOCUMENTS_AT_ONCE):
        tokenizer.encode_batch(texts[first : first + _DOCUMENTS_AT_ONCE])
    return size / (time.monotonic() - started)
