import pytest
from pydantic import ValidationError

from latentforge.model.sampling import SamplingParams, TextSampling


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_k": -2},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"min_p": float("nan")},
        {"repetition_penalty": 0},
        {"repetition_penalty": 101},
        {"repetition_penalty": float("nan")},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {"a": 1}},
        {"logit_bias": {-1: 1}},
        {"logit_bias": {1: 101}},
        {"logit_bias": {1: float("nan")}},
        {"logit_bias": [1]},
        {"logit_bias": dict.fromkeys(range(301), 1)},
        {"seed": -1},
    ],
)
def test_impossible_values_name_their_field(field: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(field))):
        SamplingParams.model_validate(field)


def test_a_top_k_of_minus_one_keeps_all_as_in_vllm() -> None:
    assert SamplingParams(top_k=-1) == SamplingParams(top_k=0)


def test_ids_of_biases_may_be_strings_as_in_json() -> None:
    params = SamplingParams.model_validate_json('{"logit_bias": {"7": -100, "12": 2.5}}')
    assert params.logit_bias == {7: -100, 12: 2.5}
    assert SamplingParams(logit_bias=dict.fromkeys(range(300), 1)).logit_bias[299] == 1


def test_a_bias_of_an_id_that_the_vocabulary_has_not_is_refused() -> None:
    TextSampling(SamplingParams(logit_bias={49: 1}), [], 50)
    with pytest.raises(ValueError, match="logit_bias names id 50, which is not in the vocabulary of 50 ids"):
        TextSampling(SamplingParams(logit_bias={50: 1, 3: 1}), [], 50)
