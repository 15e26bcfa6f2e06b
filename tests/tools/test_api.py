import json
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from latentforge.teacher.v1 import teacher_pb2
from tools import api

MESSAGE = "latentforge.teacher.v1.ScoreRequest"


@pytest.fixture
def file() -> FileDescriptorProto:
    """The API as it is, to be changed."""
    found = FileDescriptorProto()
    teacher_pb2.DESCRIPTOR.CopyToProto(found)
    return found


@pytest.fixture
def request_fields(file: FileDescriptorProto) -> dict[str, FieldDescriptorProto]:
    (message,) = (m for m in file.message_type if m.name == "ScoreRequest")
    return {field.name: field for field in message.field}


def found(file: FileDescriptorProto) -> list[str]:
    return api.breaks(api.described(released()), api.described(file), api.reserved(file))


def released() -> FileDescriptorProto:
    whole = FileDescriptorProto()
    teacher_pb2.DESCRIPTOR.CopyToProto(whole)
    return whole


def test_the_api_is_as_released(capsys: pytest.CaptureFixture[str]) -> None:
    assert api.main(check=True) == 0, capsys.readouterr().err


def test_what_is_new_breaks_nothing(file: FileDescriptorProto) -> None:
    file.message_type[0].field.add(name="new", number=99, type=FieldDescriptorProto.TYPE_BOOL)
    file.enum_type[0].value.add(name="ID_FIDELITY_NEW", number=99)
    assert found(file) == []


def test_a_field_of_another_type_number_name_label_or_oneof_is_refused(
    file: FileDescriptorProto, request_fields: dict[str, FieldDescriptorProto]
) -> None:
    request_fields["tokenizer_fingerprint"].type = FieldDescriptorProto.TYPE_BYTES
    request_fields["token_ids"].label = FieldDescriptorProto.LABEL_OPTIONAL
    request_fields["top_k"].number = 50
    request_fields["expected_revision"].name = "revision"
    request_fields["text"].ClearField("oneof_index")
    request_fields["logprob_dtype"].type_name = ".latentforge.teacher.v1.RowEncoding"
    problems = found(file)
    assert [problem.split(" ")[1] for problem in problems] == ["1", "2", "3", "4", "6", "8"]
    assert "'tokenizer_fingerprint string' and is 'tokenizer_fingerprint bytes' now" in problems[0]
    assert f"{MESSAGE} 3 (top_k uint32) was released and is missing" in problems[2]


def test_what_is_removed_needs_its_number_and_its_name_reserved(file: FileDescriptorProto) -> None:
    (message,) = (m for m in file.message_type if m.name == "ScoreRequest")
    (enum,) = (e for e in file.enum_type if e.name == "FinishReason")
    del message.field[-1]
    del enum.value[-1]
    assert len(found(file)) == 2
    message.reserved_range.add(start=11, end=12)
    enum.reserved_range.add(start=3, end=3)
    assert len(found(file)) == 2
    message.reserved_name.append("token_strings")
    enum.reserved_name.append("FINISH_REASON_DROPPED")
    assert found(file) == []


def test_a_method_or_a_message_that_is_gone_or_streams_no_more_is_refused(file: FileDescriptorProto) -> None:
    methods = {method.name: method for method in file.service[0].method}
    methods["ScoreBatch"].server_streaming = False
    methods["Tokenize"].name = "Encode"
    file.message_type.remove(next(m for m in file.message_type if m.name == "Chat"))
    assert {problem.split(" ")[0].rpartition(".")[2] for problem in found(file)} == {
        "Chat",
        "TeacherService/ScoreBatch",
        "TeacherService/Tokenize",
    }


def test_names_that_are_not_protobufs_are_found(file: FileDescriptorProto) -> None:
    assert api.misnamed(file) == []
    file.message_type[1].field[0].name = "backEnd"
    file.enum_type[0].value[1].name = "EXACT"
    file.enum_type[1].value[0].name = "LOGPROBS_MODE_NONE"
    file.service[0].method[0].input_type = ".latentforge.teacher.v1.Chat"
    words = ("backEnd", "IdFidelity.EXACT", "LOGPROBS_MODE_UNSPECIFIED", "GetTeacherRequest")
    assert all(word in problem for word, problem in zip(words, api.misnamed(file), strict=True))


def test_a_breaking_change_is_not_written_over_what_was_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.loads(api.RELEASED.read_text(encoding="utf-8"))
    kept = tmp_path / "released.json"
    monkeypatch.setattr(api, "RELEASED", kept)
    kept.write_text(json.dumps({**whole, f"{MESSAGE} 98": "old string"}))
    before = kept.read_text()
    assert api.main(check=False) == 1
    assert "old string" in capsys.readouterr().err
    assert kept.read_text() == before
    # What is new is written, once it is asked for.
    kept.write_text(json.dumps({place: what for place, what in whole.items() if place != f"{MESSAGE} 8"}))
    assert api.main(check=True) == 1
    assert "make stubs" in capsys.readouterr().err
    assert api.main(check=False) == api.main(check=True) == 0
    assert json.loads(kept.read_text()) == whole
