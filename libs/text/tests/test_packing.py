import fcntl
import gzip
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
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentforge.core.files import write_atomically
from latentforge.text import encoding_pool, packing, packing_folder
from latentforge.text.documents import Document
from latentforge.text.encoding_process import EncodingProcess
from latentforge.text.errors import PackingStoppedError, TextError
from latentforge.text.held_out import SplitSource, held_out_below
from latentforge.text.packed import DOCUMENTS, META, TOKENS, PackedData
from latentforge.text.packed_writer import cut_to_sequences
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
    path.write_bytes(plain.read_bytes() if suffix == ".jsonl" else gzip.compress(plain.read_bytes()))
    source = TextSource.of(path)
    whole = contents(*packed_into(tmp_path / "whole", source, any_tokenizer))
    choose = random.Random(1)
    encoded: list[int] = []
    for attempts in range(1, 200):  # noqa: B007 - looked at behind the loop
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
    assert 4 < attempts < 199
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


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("text", ['"finished"', None])
def test_a_kill_while_it_finishes_loses_and_adds_nothing(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    # Several documents begin in the last sequence, which is not filled.
    source = TextSource.of(write_documents(tmp_path / "d.jsonl", 57))
    options: dict[str, Any] = {"sequence_length": 512, "chunk_size": 4, "save_seconds": 0}
    whole = pack(source, {"x": tmp_path / "whole" / "x"}, tokenizer, **options)["x"]

    def killed(path: Path, content: str) -> None:
        if text is not None and text in content:
            raise KeyboardInterrupt
        write_atomically(path, content)

    def killed_behind(folder: Path) -> None:
        cut_to_sequences(folder)
        if text is None:
            raise KeyboardInterrupt

    out = {"x": tmp_path / "k" / "x"}
    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_atomically", killed)
        patch.setattr(packing_folder, "cut_to_sequences", killed_behind)
        with pytest.raises(KeyboardInterrupt):
            pack(source, out, tokenizer, **options)
    assert not out["x"].exists()
    assert pack(source, out, tokenizer, **options)["x"] == whole
    assert contents(out["x"]) == contents(tmp_path / "whole" / "x")


@pytest.mark.usefixtures("small_blocks")
def test_data_that_changes_while_it_is_packed_is_an_error(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write_documents(tmp_path / "d.jsonl", 40)
    options: dict[str, Any] = {"sequence_length": 32, "chunk_size": 4, "save_seconds": 0}
    grown: list[int] = []

    def grow(read: int) -> None:
        if not grown:
            with path.open("a") as file:
                file.write('{"text": "more"}\n')
        grown.append(read)

    with pytest.raises(TextError, match=r"d\.jsonl has changed while it was packed"):
        pack(TextSource.of(path), {"x": tmp_path / "out"}, tokenizer, on_read=grow, **options)
    assert not (tmp_path / "out").exists()
    meta = pack(TextSource.of(path), {"x": tmp_path / "out"}, tokenizer, **options)["x"]
    assert meta == pack(TextSource.of(path), {"x": tmp_path / "fresh"}, tokenizer, **options)["x"]


@pytest.mark.usefixtures("small_blocks")
def test_bad_lines_of_many_files_are_named_and_skipped_alike(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    good = write_documents(tmp_path / "good.jsonl", 40).read_text().splitlines()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_text("\n".join(["{", *good]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"[]\n"))
    # The second row is no text, the third no UTF-8.
    cells = pa.array([b"first", None, b"\xff\xfe", b"last"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), len(cells), cells.buffers())
    pq.write_table(pa.table({"text": texts}), folder / "c.parquet")
    with (tmp_path / "good.jsonl").open("a") as file:
        file.write('{"text": "first"}\n{"text": "last"}\n')
    options: dict[str, Any] = {"sequence_length": 32, "chunk_size": 4}
    clean = pack(TextSource.of(tmp_path / "good.jsonl"), {"x": tmp_path / "clean"}, tokenizer, **options)["x"]
    for number, name in enumerate((folder, folder / "*.*")):
        out = tmp_path / f"out{number}"
        meta = pack(TextSource.of(name), {"x": out}, tokenizer, skip_bad=True, **options)["x"]
        assert (meta.num_bad_lines, meta.num_documents) == (4, clean.num_documents)
        assert (out / TOKENS).read_bytes() == (tmp_path / "clean" / TOKENS).read_bytes()
    (folder / "a.jsonl").unlink()
    (folder / "b.jsonl.gz").unlink()
    with pytest.raises(TextError, match=r"c\.parquet:2: neither"):
        pack(TextSource.of(folder), {"x": tmp_path / "none"}, tokenizer, **options)
    found: list[str] = []
    list(TextSource.of(folder).documents(lambda error: found.append(str(error))))
    assert "c.parquet:3: not UTF-8" in found[1]


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
    path = write_documents(tmp_path / "d.jsonl", 10_000)
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
    monkeypatch.setattr(encoding_pool, "EncodingProcess", None)
    source = TextSource.of(write_documents(tmp_path / "d.jsonl"))
    pack(source, {"train": tmp_path / "out"}, tokenizer, sequence_length=32, chunk_size=4)
