from collections import Counter
from pathlib import Path

from benchmarks.drafter.prompts import DOMAINS, prompt_ids, prompts
from latentforge.trainer.data.packages import HELD_OUT_PACKAGES, Packages
from latentforge.trainer.data.shared_words import SharedWords

# A tokenizer with a chat template that is always there; lengths in its tokens are not SmolLM2's.
_MODEL = Path("models/stdlib-teacher")
_LICENSES = Path("benchmarks/drafter/LICENSES.txt").read_text(encoding="utf-8")


def test_there_are_as_many_of_each_domain_and_no_two_are_the_same() -> None:
    found = prompts()
    assert Counter(prompt.domain for prompt in found) == dict.fromkeys(DOMAINS, 64)
    assert len({prompt.text for prompt in found}) == len(found)
    few = prompts(3)
    assert [prompt.domain for prompt in few] == [domain for domain in DOMAINS for _ in range(3)]


def test_every_excerpt_is_of_this_repository_or_of_a_held_out_package_whose_licence_is_beside_it() -> None:
    versions = set()
    for prompt in prompts():
        package = prompt.source.split(",")[0]
        if package in ("this repository", "written for this benchmark"):
            continue
        name, version = package.split(" ")
        assert name in HELD_OUT_PACKAGES, prompt.source
        versions.add((name, version, prompt.licence))
    for name, version, licence in versions:
        assert f"== {name} {version} ({licence}) ==".lower() in _LICENSES.lower()


def test_what_students_train_on_has_no_code_of_the_prompts() -> None:
    """A run of 32 words is no idiom."""
    code = [prompt.text for prompt in prompts() if prompt.domain == "python"]
    shared = SharedWords(code, 32)
    assert all(shared.cut_from(text) != text for text in code)
    packages = Packages()
    some = [f for f in packages.candidates("train") if f.name.split("/")[0] in ("starlette", "httpcore", "markdown")]
    files = list(packages.files("train", some))
    assert len(files) > 20
    assert [file.name for file in files if shared.cut_from(file.text) != file.text] == []


def test_what_a_user_says_is_put_into_the_chat_template() -> None:
    documentation, chat, python = prompts(1)
    ids = prompt_ids([documentation, chat, python], _MODEL)
    plain = prompt_ids([documentation], _MODEL)
    assert ids[0] == plain[0]
    assert len(set(map(tuple, ids))) == 3
    # The template opens and closes turns with tokens of its own.
    said_plainly = prompt_ids([type(chat)("python", chat.text, "", "")], _MODEL)[0]
    assert len(ids[1]) > len(said_plainly)
