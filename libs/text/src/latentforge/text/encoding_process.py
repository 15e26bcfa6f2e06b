"""A process that encodes blocks: ``python -m latentforge.text.encoding_process``, and the side that asks it.

Both ends speak in frames on standard input and output: the length of a header, the header in JSON, and as many bytes
as it says. The first frame says which tokenizer and rules; each one after it is a block and is answered by its ids.
"""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from latentforge.text.encoding import EncodedBlock, EncodingRules, encode_block
from latentforge.text.errors import TextError
from latentforge.text.line_blocks import RawBlock
from latentforge.text.text_source import Block, Position
from latentforge.text.tokenizer import TextTokenizer

_LENGTH = struct.Struct("<I")
_COLUMNS = {"ids": "<u4", "lengths": "<i8", "held_out": "|b1", "forced": "<i8"}


class EncodingProcess:
    """Another process that encodes; it ends with this one.

    Raises:
        TextError: it has another tokenizer than this process, because the files changed.
    """

    def __init__(self, tokenizer: TextTokenizer, rules: EncodingRules) -> None:
        # One thread each: processes are as many as cores. A session of its own: Ctrl-C is for the one who asks.
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "latentforge.text.encoding_process"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        self._send({"tokenizer": tokenizer.spec(), "rules": asdict(rules)})

    def encode(self, block: Block) -> EncodedBlock:
        """
        Raises:
            TextError: as :func:`encode_block`, or the process died.
        """
        raw = block.raw
        self._send({"name": block.name, "first": raw.first, "records": raw.records, "fault": raw.fault}, raw.data)
        header, data = next(_frames(self._stdout), (None, b""))
        if header is None:
            code = self._process.wait()
            why = f"signal {-code}; is there enough memory?" if code < 0 else f"exit code {code}"
            raise TextError(f"{block.name}:{raw.first}: a packing process died ({why}); run the same command to resume")
        if header["error"] is not None:
            raise TextError(header["error"])
        arrays, start = {}, 0
        for name, dtype in _COLUMNS.items():
            stop = start + header["sizes"][name]
            arrays[name], start = np.frombuffer(data, np.uint8)[start:stop].view(dtype), stop
        return EncodedBlock(**arrays, bad=header["bad"])

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            # What was not sent is not wanted any more.
            with suppress(BrokenPipeError):
                pipe.close()

    @property
    def _stdout(self) -> BinaryIO:
        assert self._process.stdout is not None
        return self._process.stdout  # type: ignore[return-value]

    def _send(self, header: dict[str, Any], data: bytes = b"") -> None:
        assert self._process.stdin is not None
        # Of a dead process no answer comes, which says so.
        with suppress(BrokenPipeError):
            _write(self._process.stdin, header, data)  # type: ignore[arg-type]


def _write(file: BinaryIO, header: dict[str, Any], *parts: bytes | memoryview) -> None:
    text = json.dumps({**header, "size": sum(map(len, parts))}).encode()
    file.write(_LENGTH.pack(len(text)) + text)
    file.writelines(parts)
    file.flush()


def _frames(file: BinaryIO) -> Iterator[tuple[dict[str, Any], bytes]]:
    while length := file.read(_LENGTH.size):
        header = json.loads(file.read(_LENGTH.unpack(length)[0]))
        data = file.read(header["size"])
        if len(data) < header["size"]:
            return
        yield header, data


def _answer(block: Block, tokenizer: TextTokenizer, rules: EncodingRules) -> tuple[dict[str, Any], list[memoryview]]:
    try:
        encoded = encode_block(block, tokenizer, rules)
    except TextError as error:
        return {"error": str(error)}, []
    columns = {
        name: getattr(encoded, name).astype(dtype, copy=False).view(np.uint8) for name, dtype in _COLUMNS.items()
    }
    sizes = {name: len(column) for name, column in columns.items()}
    return {"error": None, "bad": encoded.bad, "sizes": sizes}, [column.data for column in columns.values()]


def main() -> None:
    frames = _frames(sys.stdin.buffer)
    # Nothing that is printed may come between the frames.
    out, sys.stdout = sys.stdout.buffer, sys.stderr
    setup, _ = next(frames)
    spec, rules = setup["tokenizer"], EncodingRules(**setup["rules"])
    tokenizer = TextTokenizer(Path(spec["folder"]), **spec["arguments"])
    changed = tokenizer.fingerprint != spec["fingerprint"]
    for header, data in frames:
        if changed:
            _write(out, {"error": f"{tokenizer.folder} has changed while it was used; start anew"})
            continue
        raw = RawBlock(header["first"], data, header["records"], 0, 0, header["fault"])
        answer, parts = _answer(Block(header["name"], raw, Position(), 0), tokenizer, rules)
        _write(out, answer, *parts)


if __name__ == "__main__":
    # Who asked may have been killed.
    with suppress(BrokenPipeError):
        main()
