import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SEQUENCES = [[70, 104, 4, 111, 299], [9, 8, 7], [5, 250, 30], [3], [4, 6]]
PROMPTS = [2, 1, 0, 0, 2]


async def ask(http: Any, **changes: Any) -> Any:
    fields = {"sequences": SEQUENCES, "prompt_lengths": PROMPTS, "top_logprobs": 4} | changes
    return await http.client.post("/get_sequence_logprobs/", json=fields)


def array_of(text: str, dtype: str, shape: Any) -> Any:
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


async def test_arrays_hold_the_completions_rows_and_their_own_tokens(
    http: Any, reference: Any, random_teacher: Path
) -> None:
    """Read as TRL's client reads them: float32 and int32, in the machine's order, padded to the longest completion."""
    answer = (await ask(http, response_format="binary")).json()
    assert answer["completion_lengths"] == [3, 2, 3, 1, 0]
    assert answer["shape"] == [5, 3, 4]
    logprobs = array_of(answer["logprobs_b64"], "<f4", answer["shape"])
    ids = array_of(answer["token_ids_b64"], "<i4", answer["shape"])
    own = array_of(answer["actual_logprobs_b64"], "<f4", (5, 3, 1))
    own_ids = array_of(answer["actual_token_ids_b64"], "<i4", (5, 3, 1))
    for at, (sequence, prompt) in enumerate(zip(SEQUENCES, PROMPTS, strict=True)):
        expected_nv = reference(random_teacher, sequence) if len(sequence) > 1 else np.zeros((0, 300))
        for place in range(3):
            position = prompt + place
            if not 1 <= position < len(sequence):
                assert (logprobs[at, place] == -np.inf).all()
                assert own[at, place, 0] == -np.inf
                assert (ids[at, place] == 0).all()
                continue
            expected_v = expected_nv[position - 1]
            top = np.argsort(-expected_v, kind="stable")[:4]
            assert ids[at, place].tolist() == top.tolist()
            assert logprobs[at, place] == pytest.approx(expected_v[top], abs=1e-4)
            assert own_ids[at, place, 0] == sequence[position]
            assert own[at, place, 0] == pytest.approx(expected_v[sequence[position]], abs=1e-4)


async def test_lists_hold_the_same(http: Any) -> None:
    binary = (await ask(http, response_format="binary")).json()
    ids = array_of(binary["token_ids_b64"], "<i4", binary["shape"])
    own = array_of(binary["actual_logprobs_b64"], "<f4", (5, 3, 1))
    again = await ask(http)
    assert again.headers["x-cache-hits"] == "3/3"
    nested = again.json()
    assert [len(rows) for rows in nested["logprobs"]] == [3, 2, 3, 1, 0]
    assert nested["logprob_token_ids"][2][0] == nested["logprobs"][2][0] == nested["logprobs"][3][0] == []
    for at, (sequence, prompt) in enumerate(zip(SEQUENCES, PROMPTS, strict=True)):
        for place, (row_ids, row) in enumerate(
            zip(nested["logprob_token_ids"][at], nested["logprobs"][at], strict=True)
        ):
            if not row:
                continue
            assert row_ids[:4] == ids[at, place].tolist()
            assert row == sorted(row, reverse=True)
            assert row[row_ids.index(sequence[prompt + place])] == pytest.approx(own[at, place, 0], abs=1e-6)


async def test_no_entries_leave_the_own_tokens(http: Any) -> None:
    answer = (await ask(http, response_format="binary", top_logprobs=0)).json()
    assert answer["shape"] == [5, 3, 0]
    assert np.isfinite(array_of(answer["actual_logprobs_b64"], "<f4", (5, 3, 1))[0]).all()


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"temperature": 0.9}, "temperature", "is 0.9"),
        ({"top_logprobs": 100}, "top_logprobs", "0 to 64 (MAX_TOP_K)"),
        ({"prompt_lengths": [1]}, "prompt_lengths", "has 1 entries for 5 sequences"),
        ({"prompt_lengths": [2, 4, 0, 0, 2]}, "prompt_lengths[1]", "is 4; allowed are 0 to 3"),
        ({"sequences": [[1, 300]], "prompt_lengths": [1]}, "sequences[0][1]", "is 300"),
        ({"sequences": [[1] * 513], "prompt_lengths": [1]}, "sequences[0]", "has 513 tokens"),
        ({"response_format": "pickle"}, None, "pickle"),
        ({"sequences": [["a"]]}, "sequences[0]", "is no list of ids: Expected `int`, got `str`"),
        ({"sequences": [3]}, "sequences[0]", "is no list of ids"),
    ],
)
async def test_what_is_wrong_is_named(http: Any, changes: Any, param: str | None, words: str) -> None:
    answer = await ask(http, **changes)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]
