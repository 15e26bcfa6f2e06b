from datetime import datetime
from typing import Any


def test_models_are_listed_with_what_is_known_of_them(api: Any) -> None:
    listed = api.client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == ["demo/step-00000001", "latentforge"]
    [first, second] = listed["data"]
    manifest = api.snapshot.manifest
    assert first | {"id": "latentforge"} == second
    assert first["created"] == int(datetime.fromisoformat(manifest.created).timestamp())
    assert (first["checkpoint"], first["chunk_size"], first["metrics"]) == ("demo/step-00000001", 4, {"ce": 1.0})


def test_a_models_name_may_hold_a_slash(api: Any) -> None:
    for name in ("demo/step-00000001", "demo", "latentforge"):
        found = api.client.get(f"/v1/models/{name}")
        assert (found.status_code, found.json()["id"], found.json()["root"]) == (200, name, "demo/step-00000001")
    missing = api.client.get("/v1/models/gpt-4o")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert api.client.head("/v1/models").status_code == 200


def test_so_many_tokens_fit_however_prompt_and_answer_share_them(api: Any) -> None:
    most = api.client.get("/v1/models").json()["data"][0]["max_model_len"]
    for num_prompt in (0, 1, 2, 3, 4, most - 5, most - 4, most - 3, most - 2, most - 1):
        body = {"prompt": [[65] * num_prompt], "max_tokens": most - num_prompt, "stop": ["f"]}
        api.post("/v1/completions", **body)
    refused = api.refusal("/v1/completions", prompt=[65], max_tokens=most)
    assert refused["code"] == "context_length_exceeded"
