from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from latentforge.core.errors import describe_error, describe_errors


class _Optim(BaseModel):
    model_config = ConfigDict(extra="forbid")

    lr: float = Field(gt=0)
    steps: int = 1

    @field_validator("steps")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2 and value > 1:
            raise ValueError("use an even number")
        return value

    @model_validator(mode="after")
    def _not_too_long(self) -> "_Optim":
        if self.steps > 100:
            raise ValueError("too long")
        return self


class _Recipe(BaseModel):
    optim: _Optim
    key: str = Field("", max_length=3)


def error_of(values: dict[str, Any], model: type[BaseModel] = _Recipe) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values)
    return caught.value


def test_each_wrong_field_is_a_sentence_with_its_name_value_and_what_is_allowed() -> None:
    assert describe_errors(error_of({"optim": {"lr": 0, "steps": 3}})) == [
        "optim.lr is 0: Input should be greater than 0",
        "optim.steps is 3: use an even number",
    ]


def test_a_missing_and_an_unknown_field_need_no_value() -> None:
    assert describe_errors(error_of({"optim": {"rate": 1}})) == [
        "optim.lr is missing",
        "optim.rate is not a known field",
    ]


def test_what_is_wrong_with_the_whole_quotes_nothing() -> None:
    error = error_of({"lr": 1, "steps": 102}, _Optim)
    assert describe_errors(error) == ["too long"]
    assert describe_errors(error, prefix="student.optim.") == ["student.optim: too long"]


def test_names_are_prefixed_or_those_of_variables() -> None:
    error = error_of({"lr": 0}, _Optim)
    assert describe_errors(error, prefix="optim.")[0].startswith("optim.lr is 0: ")
    assert describe_errors(error, variables=True)[0].startswith("LR is 0: ")


def test_a_secret_is_never_quoted_and_nothing_is_where_nothing_may_be() -> None:
    error = error_of({"optim": {"lr": 1}, "key": "hush-hush"})
    for sentences in (describe_errors(error, secrets=["key"]), describe_errors(error, values=False)):
        assert "hush" not in sentences[0]
        assert sentences[0].startswith("key")
        assert sentences[0].endswith(": String should have at most 3 characters")


def test_a_long_value_is_cut() -> None:
    (sentence,) = describe_errors(error_of({"optim": {"lr": 1}, "key": "x" * 500}))
    assert len(sentence) < 200
    assert "xxx…: " in sentence


def test_a_long_name_is_cut() -> None:
    long = "x" * 500
    (sentence,) = describe_errors(error_of({"optim": {"lr": 1, long: 1}}))
    assert sentence == f"optim.{'x' * 73}… is not a known field"


def test_one_entry_is_described_under_a_name_of_the_callers() -> None:
    entry = {"type": "missing", "msg": "Field required", "input": {}, "loc": ("body",)}
    assert describe_error(entry, "the body") == "the body is missing"
