"""Whatever stands in a field, the answer is an answer or names what is wrong: never 500, never a hang."""

import itertools
import json
from typing import Any

from latentforge.gateway.http.completion_request import _Fields

BASES: tuple[dict[str, Any], ...] = (
    {"prompt": [5, 6, 7], "max_tokens": 2, "logprobs": 1, "n": 2},
    {"prompt": [[5, 6, 7]], "max_tokens": 1, "prompt_logprobs": 2},
    {"prompt": ["ab", "c"], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True},
)
NUMBERS = (0, -1, 1, 2.5, 10**30, -1e308, 1e-30)
VALUES: tuple[Any, ...] = (None, True, False, *NUMBERS, "", "x", "<|im_end|>", [], [0], ["a", ""], [[]], {}, {"a": 1})
# By hand: Python's json cannot write them, or writes what is none.
RAW = (b"1e400", b"NaN", b'"\\ud800"', b"[[5, 6], [7, 8]", b"-0", b'"\\u0000"')


def bodies() -> list[bytes]:
    fields = [*_Fields.__struct_fields__, "unknown"]
    made = [json.dumps(base | {name: value}).encode() for base, name, value in itertools.product(BASES, fields, VALUES)]
    head = json.dumps(BASES[1]).encode()[:-1]
    made += [head + b', "%s": ' % name.encode() + raw + b"}" for name, raw in itertools.product(fields, RAW)]
    return made


async def test_completions_answer_or_say_what_is_wrong(http: Any) -> None:
    for body in bodies():
        answer = await http.client.post("/v1/completions", content=body)
        assert answer.status_code in (200, 400, 404), (body, answer.text)
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert error["message"], body
            assert error["type"] == "invalid_request_error"


async def test_sequence_logprobs_answer_or_say_what_is_wrong(http: Any) -> None:
    base: dict[str, Any] = {"sequences": [[5, 6, 7]], "prompt_lengths": [1], "top_logprobs": 2}
    for name, value in itertools.product([*base, "temperature", "response_format"], VALUES):
        body = json.dumps(base | {name: value}).encode()
        answer = await http.client.post("/get_sequence_logprobs/", content=body)
        assert answer.status_code in (200, 400), (body, answer.text)
