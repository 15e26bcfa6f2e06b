"""Checks that the teacher API stays one that its callers know: its names, and nothing taken from what was released.

Usage: python -m tools.api [--check]

proto/released.json says what callers may use. Without --check what is new in the .proto is added to it; what was
removed, renumbered or changed is refused either way. A field or an enum's value may go when its number and its name
are reserved.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from latentforge.teacher.v1 import teacher_pb2
from tools.stubs import PROTO

RELEASED = PROTO / "released.json"
_SNAKE, _CAMEL = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*"), re.compile(r"([A-Z][a-z0-9]*)+")


def described(file: FileDescriptorProto) -> dict[str, str]:
    """What callers use, by where it is: fields and values by their numbers, methods by name."""
    entries: dict[str, str] = {}
    for name, message in _messages(file):
        entries[name] = "message"
        entries.update({f"{name} {field.number}": _field(message, field) for field in message.field})
    for name, enum in _enums(file):
        entries[name] = "enum"
        entries.update({f"{name} {value.number}": value.name for value in enum.value})
    for service in file.service:
        for method in service.method:
            streams = ("stream " * method.client_streaming, "stream " * method.server_streaming)
            text = f"({streams[0]}{method.input_type}) returns ({streams[1]}{method.output_type})"
            entries[f"{file.package}.{service.name}/{method.name}"] = text
    return entries


def reserved(file: FileDescriptorProto) -> set[str]:
    """What may be missing, as "message number" and "message name"."""
    found: set[str] = set()
    for name, message in _messages(file):
        # A message's ranges end before their end, an enum's with it.
        numbers = [n for r in message.reserved_range for n in range(r.start, r.end)]
        found.update(f"{name} {each}" for each in (*numbers, *message.reserved_name))
    for name, enum in _enums(file):
        numbers = [n for r in enum.reserved_range for n in range(r.start, r.end + 1)]
        found.update(f"{name} {each}" for each in (*numbers, *enum.reserved_name))
    return found


def breaks(released: Mapping[str, str], now: Mapping[str, str], kept_free: set[str]) -> list[str]:
    """A sentence for each thing that a caller of ``released`` would miss."""
    problems: list[str] = []
    for place, what in released.items():
        if place in now:
            if now[place] != what:
                problems.append(
                    f"{place} was released as {what!r} and is {now[place]!r} now; give what is new a number"
                )
            continue
        owner, name = place.rpartition(" ")[0], what.split(" ")[0]
        if not (owner and {place, f"{owner} {name}"} <= kept_free):
            problems.append(
                f"{place} ({what}) was released and is missing; keep it, or reserve its number and its name"
            )
    return problems


def misnamed(file: FileDescriptorProto) -> list[str]:
    """A sentence for each name that is not as protobuf's style guide and buf's standard rules have it."""
    problems: list[str] = []
    for name, message in _messages(file):
        if not _CAMEL.fullmatch(message.name):
            problems.append(f"{name}: write messages in UpperCamelCase")
        problems += [
            f"{name}.{field.name}: write fields in lower_snake_case"
            for field in message.field
            if not _SNAKE.fullmatch(field.name)
        ]
    for name, enum in _enums(file):
        prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
        if enum.value[0].number != 0 or enum.value[0].name != f"{prefix}UNSPECIFIED":
            problems.append(f"{name}: begin with {prefix}UNSPECIFIED = 0")
        problems += [f"{name}.{v.name}: begin with {prefix}" for v in enum.value if not v.name.startswith(prefix)]
    for service in file.service:
        for method in service.method:
            types = (method.input_type.rpartition(".")[2], method.output_type.rpartition(".")[2])
            if types != (f"{method.name}Request", f"{method.name}Response"):
                problems.append(f"{service.name}.{method.name}: name its messages {method.name}Request and …Response")
    return problems


def _messages(file: FileDescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    """Messages with those inside them, without the entries of maps."""
    waiting = [(f"{file.package}.{message.name}", message) for message in reversed(file.message_type)]
    while waiting:
        name, message = waiting.pop()
        yield name, message
        waiting += [(f"{name}.{m.name}", m) for m in reversed(message.nested_type)]


def _enums(file: FileDescriptorProto) -> Iterator[tuple[str, EnumDescriptorProto]]:
    yield from ((f"{file.package}.{enum.name}", enum) for enum in file.enum_type)
    for name, message in _messages(file):
        yield from ((f"{name}.{enum.name}", enum) for enum in message.enum_type)


def _field(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    kind = field.type_name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    words = [field.name, kind]
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        words.append("repeated")
    if field.proto3_optional:
        words.append("optional")
    elif field.HasField("oneof_index"):
        words.append(f"oneof={message.oneof_decl[field.oneof_index].name}")
    return " ".join(words)


def main(check: bool) -> int:
    file = FileDescriptorProto()
    teacher_pb2.DESCRIPTOR.CopyToProto(file)
    now = described(file)
    released: dict[str, str] = json.loads(RELEASED.read_text(encoding="utf-8")) if RELEASED.is_file() else {}
    problems = misnamed(file) + breaks(released, now, reserved(file))
    for problem in problems:
        sys.stderr.write(f"error: {file.name}: {problem}\n")
    if problems:
        return 1
    if now != released:
        if check:
            sys.stderr.write(f"error: proto/{RELEASED.name} does not hold all of {file.name}; run: make stubs\n")
            return 1
        RELEASED.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write("teacher API: as released, and named as it should be\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
