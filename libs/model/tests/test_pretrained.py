import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from latentforge.core.checkpoint_files import verify_checkpoint
from latentforge.core.manifest import CheckpointError, ManifestDraft, TeacherId
from latentforge.core.publishing import publish_checkpoint
from latentforge.model import LatentStudent
from latentforge.model.chunks import to_chunks
from latentforge.model.golden import golden_of
from latentforge.model.io import save_pretrained
from latentforge.model.latent_model import LatentModel
from latentforge.text.tokenizer import TextTokenizer
from tests.fixtures import tokenizer, tokenizer_folder
from tests.hub_server import running_hub

__all__ = ["tokenizer", "tokenizer_folder"]

TEXT = "def main():\n    return 0\n"
Publish = Callable[..., Path]


@pytest.fixture
def publish(make_model: Callable[..., LatentModel], tokenizer: TextTokenizer, tmp_path: Path) -> Publish:
    """Publishes a tiny student as the run ``demo`` of tmp_path/checkpoints."""

    def publish_one(step: int, **changes: Any) -> Path:
        model = make_model(vocab_size=tokenizer.vocab_size, max_chunks=32, **changes)
        draft = ManifestDraft(
            chunk_size=model.chunk_size,
            latent_size=model.student.config.latent_size,
            tokenizer_fingerprint=tokenizer.fingerprint,
            teacher=TeacherId(backend="none", model="nobody", revision="1"),
            metrics={"held_out_ce": 3.0},
            golden=golden_of(model, TEXT, tokenizer.encode(TEXT)),
        )

        def write(folder: Path) -> None:
            save_pretrained(model.autoencoder, folder / "autoencoder")
            save_pretrained(model.student, folder / "student")
            shutil.copytree(tokenizer.folder, folder / "tokenizer")

        return publish_checkpoint(tmp_path / "checkpoints", "demo", step, draft, write)

    return publish_one


def test_a_folder_is_loaded_and_continues_a_prompt(publish: Publish) -> None:
    student = LatentStudent.from_pretrained(publish(3), device="cpu")
    assert student.id == "demo/step-00000003"
    text = student.generate("def ", max_new_tokens=12, temperature=0.8, top_p=0.95, seed=1)
    assert text
    assert text == student.generate("def ", max_new_tokens=12, temperature=0.8, top_p=0.95, seed=1)
    assert text != student.generate("def ", max_new_tokens=12, temperature=0.8, top_p=0.95, seed=2)
    # The tokenizer's tokens are bytes.
    assert 0 < len(student.generate("def ", max_new_tokens=5, temperature=0)) <= 5


def test_a_run_stands_for_its_newest_checkpoint_or_the_one_that_is_pinned(publish: Publish) -> None:
    run = publish(3).parent
    publish(12)
    assert LatentStudent.from_pretrained(run, device="cpu").id == "demo/step-00000012"
    assert LatentStudent.from_pretrained(str(run), device="cpu").id == "demo/step-00000012"
    (run / "pinned").write_text("step-00000003\n")
    assert LatentStudent.from_pretrained(run, device="cpu").id == "demo/step-00000003"


def test_many_prompts_are_continued_each_as_by_itself(publish: Publish) -> None:
    student = LatentStudent.from_pretrained(publish(3), device="cpu")
    prompts = ["", "d", "def main():", "a much longer prompt than the others are", "d"]
    together = student.generate(prompts, max_new_tokens=10, seed=4)
    assert together == [student.generate(prompt, max_new_tokens=10, seed=4) for prompt in prompts]
    assert len(set(together)) == 4
    assert student.generate([], max_new_tokens=10) == []


def test_pieces_of_a_stream_are_the_text(publish: Publish) -> None:
    student = LatentStudent.from_pretrained(publish(3), device="cpu")
    whole = student.generate("def", max_new_tokens=20, seed=2)
    pieces = list(student.generate("def", max_new_tokens=20, seed=2, stream=True))
    assert "".join(pieces) == whole
    assert len(pieces) > 1
    assert all(pieces)


def test_texts_may_be_written_while_streams_are_open(publish: Publish) -> None:
    student = LatentStudent.from_pretrained(publish(3), device="cpu")
    alone = [student.generate(prompt, max_new_tokens=12, seed=1) for prompt in "abc"]
    streams = [student.generate(prompt, max_new_tokens=12, seed=1, stream=True) for prompt in "ab"]
    begun = [next(stream) for stream in streams]
    assert student.generate(["c", "a"], max_new_tokens=12, seed=1) == [alone[2], alone[0]]
    assert [text + "".join(stream) for text, stream in zip(begun, streams, strict=True)] == alone[:2]


def test_threads_may_share_a_student(publish: Publish) -> None:
    student = LatentStudent.from_pretrained(publish(3), device="cpu")

    def write(seed: int) -> str:
        return student.generate("def ", max_new_tokens=24, seed=seed)

    alone = [write(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(write, range(8))) == alone


def test_a_text_ends_before_a_stop_string_streamed_or_not(publish: Publish) -> None:
    student = LatentStudent.from_pretrained(publish(3), device="cpu")
    whole = student.generate("def", max_new_tokens=30, seed=2)
    stop = whole[7:9]
    expected = whole[: whole.index(stop)]
    assert student.generate("def", max_new_tokens=30, seed=2, stop=stop) == expected
    assert student.generate(["def"], max_new_tokens=30, seed=2, stop=[stop]) == [expected]
    assert "".join(student.generate("def", max_new_tokens=30, seed=2, stop=stop, stream=True)) == expected


def test_log_probabilities_are_the_teacher_forced_ones(publish: Publish) -> None:
    student = LatentStudent.from_pretrained(publish(3), device="cpu")
    scored = student.logprobs(TEXT)
    ids = student.tokenizer.encode(TEXT)
    assert [token.token_id for token in scored] == ids
    assert "".join(token.text for token in scored) == TEXT
    config = student.model.student.config
    tokens_btk = to_chunks(torch.tensor([ids]), config.chunk_size, config.pad_id)
    logits = student.model.logits(tokens_btk).logits.flatten(0, 2).detach()
    logits[:, config.pad_id] = -math.inf
    logits = logits[-len(ids) :]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
    assert [token.logprob for token in scored] == pytest.approx(expected, abs=1e-4)


def test_a_checkpoint_that_is_not_what_was_published_is_refused(publish: Publish) -> None:
    place = publish(3)
    weights = place / "student" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not have the sha256"):
        LatentStudent.from_pretrained(place)


def test_what_is_no_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        LatentStudent.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="neither a folder that is there nor a model of the hub"):
        LatentStudent.from_pretrained("./not/there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temprature": 1}, "temprature is not a known field"),
        ({"top_p": 2.0}, "top_p is 2.0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"prompt": ["a"], "stream": True}, "stream=True takes one prompt"),
        ({"prompt": "a" * 500}, "prompt"),
    ],
)
def test_wrong_arguments_are_named(publish: Publish, arguments: dict[str, Any], message: str) -> None:
    student = LatentStudent.from_pretrained(publish(3), device="cpu")
    with pytest.raises(ValueError, match=message):
        student.generate(**({"prompt": "a"} | arguments))


def test_a_saved_student_is_the_published_one_to_the_last_byte(publish: Publish, tmp_path: Path) -> None:
    place = publish(3)
    student = LatentStudent.from_pretrained(place, device="cpu")
    saved = tmp_path / "saved"
    student.save_pretrained(saved)
    names = {path.relative_to(place) for path in place.rglob("*") if path.is_file()}
    assert all((saved / name).read_bytes() == (place / name).read_bytes() for name in names)
    assert "# demo/step-00000003" in ModelCard.load(saved / "README.md").text
    again = LatentStudent.from_pretrained(saved, device="cpu")
    assert again.generate("def", max_new_tokens=8, seed=1) == student.generate("def", max_new_tokens=8, seed=1)
    # And can be served: under its own name and without the card, which it was published without.
    (saved / "README.md").unlink()
    served = tmp_path / "elsewhere" / "demo" / place.name
    shutil.copytree(saved, served)
    assert verify_checkpoint(served).id == "demo/step-00000003"


def test_saving_what_has_changed_since_it_was_loaded_fails(publish: Publish, tmp_path: Path) -> None:
    place = publish(3)
    student = LatentStudent.from_pretrained(place, device="cpu")
    (place / "student" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json has 2 bytes"):
        student.save_pretrained(tmp_path / "saved")


_SHARE = """
import sys
from latentforge.model import LatentStudent
student = LatentStudent.from_pretrained(sys.argv[1], device="cpu")
student.push_to_hub("somebody/student", token="hf_secret")
again = LatentStudent.from_pretrained("somebody/student", device="cpu", cache_dir=sys.argv[2])
assert again.generate("def", max_new_tokens=8, seed=1) == student.generate("def", max_new_tokens=8, seed=1)
try:
    LatentStudent.from_pretrained("somebody/else", cache_dir=sys.argv[2])
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_student_goes_to_a_hub_and_comes_back(publish: Publish, tmp_path: Path) -> None:
    place = publish(3)
    with running_hub() as hub:
        # huggingface_hub reads its address when it is imported.
        home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        environment = os.environ | home | {"HF_ENDPOINT": hub.url}

        def run(code: str) -> str:
            command = [sys.executable, "-c", code, str(place), str(tmp_path / "cache")]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        run(_SHARE)
        # Whatever its owner adds, or writes into the card, is neither downloaded nor in the way.
        hub.models["somebody/student"]["README.md"] += b"\nEdited.\n"
        hub.models["somebody/student"]["pytorch_model.bin"] = b"never downloaded"
        said = run(_SHARE.replace("student.push_to_hub", "(lambda *_, **__: None)"))
        assert not any("pytorch_model" in path for path in hub.requested)
    assert "somebody/else is no folder, and the hub does not give it" in said
    names = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert set(hub.models["somebody/student"]) == names | {"README.md", "pytorch_model.bin"}


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, latentforge.model; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
