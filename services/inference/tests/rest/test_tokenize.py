from typing import Any


def test_a_text_becomes_ids_and_text_again(api: Any) -> None:
    text = "def f(x):\n    return 'é'"
    found = api.post("/tokenize", prompt=text)
    assert found["tokens"] == api.snapshot.encode(text)
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == api.client.get("/v1/models").json()["data"][0]["max_model_len"]
    assert api.post("/detokenize", tokens=found["tokens"]) == {"prompt": text}
    assert api.post("/tokenize", prompt=text, add_special_tokens=False)["tokens"] == found["tokens"]
    assert api.post("/tokenize", prompt="")["tokens"] == []


def test_a_chat_becomes_the_ids_that_it_is_answered_behind(api: Any) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    found = api.post("/tokenize", messages=messages, model="demo")
    answered = api.post("/v1/chat/completions", messages=messages, max_tokens=1)
    assert found["count"] == answered["usage"]["prompt_tokens"]
    assert api.post("/detokenize", tokens=found["tokens"])["prompt"] == "[user] Hello\n[assistant] "


def test_what_is_refused_names_the_field(api: Any) -> None:
    assert api.refusal("/tokenize")["message"] == "send either prompt or messages"
    assert api.refusal("/tokenize", prompt="a", messages=[{"role": "user", "content": "a"}])["param"] == "prompt"
    assert api.refusal("/tokenize", prompt="a" * 100_000)["code"] == "context_length_exceeded"
    assert "names id 300" in api.refusal("/detokenize", tokens=[1, 300])["message"]
    assert "holds 'a'" in api.refusal("/detokenize", tokens=["a"])["message"]
    assert api.refusal("/detokenize", tokens=[1] * 1025)["param"] == "tokens"
    assert api.refusal("/tokenize", 404, prompt="a", model="other")["code"] == "model_not_found"
