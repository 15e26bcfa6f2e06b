import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentforge.text import packing
from latentforge.text.documents import Document
from latentforge.text.encoding_process import EncodingProcess
from latentforge.text.errors import PackingStoppedError, TextError
from latentforge.text.held_out import SplitSource, held_out_below
from latentforge.text.packed import DOCUMENTS, META, TOKENS, PackedData
from latentforge.text.packing import pack
from latentforge.text.text_source import TextSource
from latentforge.text.tokenizer import TextTokenizer
from tests.tokenizer_kinds import write_tokenizer

SHIPPED = Path(__file__).parents[3] / "models" / "stdlib-teacher"
Pack = Callable[..., Any]


def write_documents(path: Path, count: int = 400, seed: int = 0) -> Path:
    choose = random.Random(seed)
    lines = []
    for i in range(count):
        text = " ".join(
            choose.choice(["def", "return x", "\n", "東京", "if (y):", "é"]) for _ in range(choose.randrange(60))
        )
        chat = {"messages": [{"role": "user", "content": f"{i} a"}, {"role": "assistant", "content": text}]}
        lines.append(json.dumps(chat if i % 5 == 0 else {"text": f"{i} {text}" if i % 11 else ""}))
    path.write_text("\n".join(lines) + "\n")
    return path


def contents(*folders: Path) -> dict[str, bytes]:
    return {f"{f.name}/{p.name}": p.read_bytes() for f in folders for p in f.iterdir()}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few documents, so that small files have many."""
    monkeypatch.setattr(TextSource.blocks, "__defaults__", (None, 500))


@pytest.fixture(params=["shipped", "metaspace"])
def any_tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> TextTokenizer:
    """Without bos, and with one."""
    return TextTokenizer(
        SHIPPED if request.param == "shipped" else write_tokenizer("metaspace", tmp_path / "tokenizer")
    )


def packed_into(folder: Path, source: TextSource, tokenizer: TextTokenizer, **options: Any) -> tuple[Path, Path]:
    outs = {"train": folder / "train", "held-out": folder / "held-out"}
    below = held_out_below(source.documents(), 200)
    pack(source, outs, tokenizer, sequence_length=32, chunk_size=4, held_out_below=below, **options)
    return outs["train"], outs["held-out"]


@pytest.mark.usefixtures("small_blocks")
def test_both_sides_are_what_their_documents_alone_give(tmp_path: Path, any_tokenizer: TextTokenizer) -> None:
    source = TextSource.of(write_documents(tmp_path / "d.jsonl"))
    below = held_out_below(source.documents(), 200)
    for folder in packed_into(tmp_path, source, any_tokenizer):
        data = PackedData(folder)
        documents: list[Document] = list(SplitSource(source, data.meta.split, below).documents())  # type: ignore[arg-type]
        lines = [json.dumps({"text": d.text} if d.text is not None else {"messages": d.messages}) for d in documents]
        alone = tmp_path / f"{folder.name}.jsonl"
        alone.write_text("\n".join(lines))
        meta = pack(TextSource.of(alone), {"x": tmp_path / "x"}, any_tokenizer, sequence_length=32, chunk_size=4)["x"]
        for name in (TOKENS, DOCUMENTS):
            assert (tmp_path / "x" / name).read_bytes() == (folder / name).read_bytes()
        assert (meta.num_documents, meta.num_empty_documents) == (
            data.meta.num_documents,
            data.meta.num_empty_documents,
        )
        assert data.meta.held_out_below == below
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) in (
        ["held-out", "train", "x"],
        ["held-out", "tokenizer", "train", "x"],
    )


@pytest.mark.usefixtures("small_blocks")
def test_processes_give_the_same_bytes(tmp_path: Path, any_tokenizer: TextTokenizer) -> None:
    source = TextSource.of(write_documents(tmp_path / "d.jsonl"))
    alone = contents(*packed_into(tmp_path / "a", source, any_tokenizer, processes=0))
    assert contents(*packed_into(tmp_path / "b", source, any_tokenizer, processes=2)) == alone


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_wherever_it_ends_the_next_call_resumes_to_the_same_bytes(
    tmp_path: Path, any_tokenizer: TextTokenizer, suffix: str
) -> None:
    plain = write_documents(tmp_path / "d.jsonl")
    path = tmp_path / f"e{suffix}"
    path.write_bytes(plain.read_bytes() if suffix == ".jsonl" else __import__("gzip").compress(plain.read_bytes()))
    source = TextSource.of(path)
    whole = contents(*packed_into(tmp_path / "whole", source, any_tokenizer))
    choose = random.Random(1)
    encoded: list[int] = []
    attempts = 0
    while True:
        attempts += 1
        encoded.clear()

        def fail(read: int, after: int = choose.randrange(1, 9)) -> None:
            encoded.append(read)
            if len(encoded) >= after:
                raise KeyboardInterrupt

        # Saved now after every block, now hardly ever: what was written behind a save is cut off.
        every = choose.choice([0.0, 1e-3, 3600.0])
        try:
            packed_into(tmp_path / "torn", source, any_tokenizer, on_read=fail, save_seconds=every)
            break
        except KeyboardInterrupt:
            pass
    assert attempts > 4
    assert contents(tmp_path / "torn" / "train", tmp_path / "torn" / "held-out") == whole
    assert sorted(p.name for p in (tmp_path / "torn").iterdir()) == ["held-out", "train"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("processes", [0, 2])
def test_a_stop_saves_and_the_next_call_resumes(tmp_path: Path, any_tokenizer: TextTokenizer, processes: int) -> None:
    source = TextSource.of(write_documents(tmp_path / "d.jsonl"))
    whole = contents(*packed_into(tmp_path / "whole", source, any_tokenizer))
    seen: list[int] = []
    with pytest.raises(PackingStoppedError):
        packed_into(
            tmp_path / "s", source, any_tokenizer, on_read=seen.append, stop=lambda: len(seen) > 5, processes=processes
        )
    rest: list[int] = []
    assert contents(*packed_into(tmp_path / "s", source, any_tokenizer, on_read=rest.append)) == whole
    # It did not begin anew.
    assert rest[0] > seen[4]


@pytest.mark.usefixtures("small_blocks")
def test_a_kill_while_folders_are_put_in_their_places_is_made_good(
    tmp_path: Path, any_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TextSource.of(write_documents(tmp_path / "d.jsonl"))
    whole = contents(*packed_into(tmp_path / "whole", source, any_tokenizer))
    real = Path.replace

    def killed(self: Path, target: Any) -> Any:
        if self.name == "train" and self.is_dir():
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            packed_into(tmp_path / "k", source, any_tokenizer)
    assert (tmp_path / "k" / "held-out" / META).is_file()
    assert not (tmp_path / "k" / "train").exists()
    read: list[int] = []
    assert contents(*packed_into(tmp_path / "k", source, any_tokenizer, on_read=read.append)) == whole
    assert not read


def test_other_data_or_options_begin_anew(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write_documents(tmp_path / "d.jsonl")
    outs = {"train": tmp_path / "out"}

    def interrupted(read: int) -> None:
        raise KeyboardInterrupt

    for change in (lambda: None, lambda: write_documents(path, seed=1)):
        with pytest.raises(KeyboardInterrupt):
            pack(TextSource.of(path), outs, tokenizer, sequence_length=64, chunk_size=4, on_read=interrupted)
        change()
        meta = pack(TextSource.of(path), outs, tokenizer, sequence_length=32, chunk_size=4)["train"]
        assert meta.sequence_length == 32
        fresh = pack(TextSource.of(path), {"train": tmp_path / "fresh"}, tokenizer, sequence_length=32, chunk_size=4)
        assert fresh["train"] == meta
        assert contents(tmp_path / "fresh").keys() == {f"fresh/{n}" for n in (META, TOKENS, DOCUMENTS, "sources.json")}
        assert (tmp_path / "fresh" / TOKENS).read_bytes() == (tmp_path / "out" / TOKENS).read_bytes()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("processes", [0, 2])
def test_bad_lines_are_named_or_skipped_and_counted(tmp_path: Path, tokenizer: TextTokenizer, processes: int) -> None:
    path = write_documents(tmp_path / "d.jsonl", 40)
    good = path.read_text().splitlines()
    bad = [
        '{"text": "a\\ud83d b"}',
        '{"text": "a", "id": ' + "9" * 5000 + "}",
        "{",
        '{"messages": [{"role": "x"}]}',
        "[]",
    ]
    lines = [*good[:20], *bad, "", *good[20:]]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join(lines))
    options: dict[str, Any] = {"sequence_length": 32, "chunk_size": 4, "processes": processes}
    with pytest.raises(TextError, match=r"mixed\.jsonl:21: \"text\" is no text: .*; expected one JSON object per line"):
        pack(TextSource.of(mixed), {"train": tmp_path / "out"}, tokenizer, **options)
    meta = pack(TextSource.of(mixed), {"train": tmp_path / "out"}, tokenizer, skip_bad=True, **options)["train"]
    assert meta.num_bad_lines == 5
    clean = pack(TextSource.of(path), {"train": tmp_path / "clean"}, tokenizer, **options)["train"]
    assert (tmp_path / "out" / TOKENS).read_bytes() == (tmp_path / "clean" / TOKENS).read_bytes()
    assert clean.num_bad_lines == 0
    # What was skipped then is an error for who does not want it skipped.
    with pytest.raises(TextError, match=r"mixed\.jsonl:21"):
        pack(TextSource.of(mixed), {"train": tmp_path / "out"}, tokenizer, **options)
    assert len(PackedData(tmp_path / "out")) == meta.num_sequences


@pytest.mark.usefixtures("small_blocks")
def test_what_was_packed_before_a_bad_line_is_kept_for_a_call_that_skips_it(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    path = write_documents(tmp_path / "d.jsonl", 100)
    path.write_text(path.read_text() + "{\n")
    out = {"train": tmp_path / "out"}
    options: dict[str, Any] = {"sequence_length": 32, "chunk_size": 4, "save_seconds": 0}
    with pytest.raises(TextError, match=r"d\.jsonl:101: not JSON"):
        pack(TextSource.of(path), out, tokenizer, **options)
    read: list[int] = []
    meta = pack(TextSource.of(path), out, tokenizer, skip_bad=True, on_read=read.append, **options)["train"]
    assert (len(read), meta.num_bad_lines) == (1, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.jsonl", "out"]


def test_a_document_with_the_pad_id_is_named(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "abc"}\n{"text": "xyz"}\n')
    tokenizer = TextTokenizer(tokenizer_folder)
    pad = tokenizer.encode("x")[0]
    with pytest.raises(TextError, match=rf"d\.jsonl:2: the document has the pad id {pad}; give --pad-id"):
        pack(
            TextSource.of(path),
            {"train": tmp_path / "out"},
            TextTokenizer(tokenizer_folder, pad_id=pad),
            sequence_length=4,
            chunk_size=2,
        )


def test_two_at_once_are_refused(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    source = TextSource.of(write_documents(tmp_path / "d.jsonl"))
    work = tmp_path / ".out.packing"
    work.mkdir()
    held = os.open(work, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(TextError, match="is being packed into by another process"):
        pack(source, {"train": tmp_path / "out"}, tokenizer, sequence_length=32, chunk_size=4)
    os.close(held)
    pack(source, {"train": tmp_path / "out"}, tokenizer, sequence_length=32, chunk_size=4)


def test_a_process_that_dies_is_an_error_that_says_so(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TextSource.of(write_documents(tmp_path / "d.jsonl"))
    real = EncodingProcess.encode

    def killed(self: EncodingProcess, block: Any) -> Any:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        return real(self, block)

    monkeypatch.setattr(EncodingProcess, "encode", killed)
    with pytest.raises(TextError, match=r"d\.jsonl:1: a packing process died \(signal 9; is there enough memory\?\)"):
        pack(source, {"train": tmp_path / "out"}, tokenizer, sequence_length=32, chunk_size=4, processes=1)


_SCRIPT = """
import sys
from pathlib import Path
from latentforge.text.packing import pack
from latentforge.text.text_source import TextSource
from latentforge.text.tokenizer import TextTokenizer

source, out, length, processes = sys.argv[1:]
pack(
    TextSource.of(source), {"train": Path(out)}, TextTokenizer(Path("models/stdlib-teacher")),
    sequence_length=int(length), chunk_size=8, processes=int(processes), save_seconds=0.01,
)
"""


def _started(*arguments: object) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[3]
    return subprocess.Popen([sys.executable, "-c", _SCRIPT, *map(str, arguments)], cwd=root)


@pytest.mark.slow
def test_kills_at_random_moments_leave_the_same_bytes_and_nothing_else(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "d.jsonl", 30_000)
    began = time.monotonic()
    assert _started(path, tmp_path / "whole", 256, 2).wait() == 0
    took = time.monotonic() - began
    choose = random.Random(0)
    for _ in range(4):
        process = _started(path, tmp_path / "torn", 256, 2)
        time.sleep(choose.uniform(0.3, 1.0) * took)
        process.kill()
        process.wait()
    assert _started(path, tmp_path / "torn", 256, 2).wait() == 0
    for name in (META, TOKENS, DOCUMENTS):
        assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.jsonl", "torn", "whole"]


@pytest.mark.slow
def test_a_line_of_megabytes_takes_a_few_times_its_size(tmp_path: Path) -> None:
    megabytes = 16
    path = tmp_path / "d.jsonl"
    line = json.dumps({"text": "def f(x):\n    return x + 1  # of many\n\n" * (megabytes * 25_000)})
    path.write_text(line + "\n")
    # Not getrusage's: that counts what the process was forked from too.
    script = _SCRIPT + "\nprint(*[s.split()[1] for s in open('/proc/self/status') if s.startswith('VmHWM')])\n"
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "out"), "2048", "0"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    # Encoded at once it takes over 2,000.
    assert int(run.stdout) / 1000 < 450
    data = PackedData(tmp_path / "out")
    assert data.meta.num_forced_cuts == 0
    [text] = [d.text for d in TextSource.of(path).documents()]
    ids = TextTokenizer(SHIPPED).encode(text[:200_000])  # type: ignore[index]
    assert np.array_equal(data.tokens[: len(ids) - 10], ids[: len(ids) - 10])


def test_small_data_starts_no_process(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "EncodingProcess", None)
    source = TextSource.of(write_documents(tmp_path / "d.jsonl"))
    pack(source, {"train": tmp_path / "out"}, tokenizer, sequence_length=32, chunk_size=4)
