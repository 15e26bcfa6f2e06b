import json
from pathlib import Path
from typing import Any

import pytest

from latentforge.text.errors import TextError
from latentforge.text.tokenizer_files import TokenizerFiles, read_tokenizer_files


def read(folder: Path, **files: Any) -> TokenizerFiles:
    for name, content in ({"tokenizer": {"model": {}}} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return read_tokenizer_files(folder)


def test_a_tokenizer_alone_names_nothing(tmp_path: Path) -> None:
    files = read(tmp_path)
    assert files == TokenizerFiles({"model": {}}, {}, None, None, ())


def test_tokens_are_named_by_either_file_and_the_configuration_goes_first(tmp_path: Path) -> None:
    config = {"eos_token": {"content": "<e>", "lstrip": False}, "pad_token": None, "add_eos_token": False}
    files = read(tmp_path, special_tokens_map={"eos_token": "<x>", "bos_token": "<b>"}, tokenizer_config=config)
    assert files.named == {"eos_token": "<e>", "bos_token": "<b>"}


def test_the_default_template_is_taken_and_a_file_goes_first(tmp_path: Path) -> None:
    assert read(tmp_path, tokenizer_config={"chat_template": "one"}).chat_template == "one"
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert read(tmp_path, tokenizer_config={"chat_template": several}).chat_template == "plain"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert read(tmp_path, tokenizer_config={"chat_template": several}).chat_template == "file"


@pytest.mark.parametrize(
    ("config", "adds"),
    [
        ({"bos_token": "<s>"}, None),
        ({"bos_token": "<s>", "add_eos_token": False}, None),
        ({"bos_token": "<s>", "add_bos_token": None}, None),
        ({"bos_token": "<s>", "add_bos_token": True}, True),
        ({"bos_token": "<s>", "add_bos_token": False}, False),
        ({"add_bos_token": True}, False),
    ],
)
def test_a_flag_says_whether_texts_begin_with_bos_and_no_flag_leaves_it_to_the_post_processor(
    tmp_path: Path, config: dict[str, Any], adds: bool | None
) -> None:
    assert read(tmp_path, tokenizer={"model": {}}, tokenizer_config=config).adds_bos is adds


def test_the_models_ends_of_text_are_its_generations_else_its_own(tmp_path: Path) -> None:
    assert read(tmp_path, config={"eos_token_id": 2}).model_eos_ids == (2,)
    assert read(tmp_path, config={"text_config": {"eos_token_id": 4}}).model_eos_ids == (4,)
    assert read(tmp_path, generation_config={"eos_token_id": [1, 106]}).model_eos_ids == (1, 106)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    read(tmp_path)
    for content in (b"{", b"[]", b"\xff", b"[" * 100_000):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TextError, match=f"{name} is not a readable {name}"):
            read_tokenizer_files(tmp_path)


def test_what_has_been_read_already_is_not_read_again(tmp_path: Path) -> None:
    contents = {"tokenizer.json": b'{"model": {}}', "tokenizer_config.json": b'{"eos_token": "</s>"}'}
    files = read_tokenizer_files(tmp_path / "absent", contents)
    assert files == TokenizerFiles({"model": {}}, {"eos_token": "</s>"}, None, None, ())
    with pytest.raises(TextError, match=r"absent has no tokenizer\.json"):
        read_tokenizer_files(tmp_path / "absent", {})
    with pytest.raises(TextError, match=r"absent/tokenizer_config\.json is not a readable"):
        read_tokenizer_files(tmp_path / "absent", contents | {"tokenizer_config.json": b"\xff"})
