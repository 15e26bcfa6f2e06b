import gc
import hashlib
import json
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.manifest import MANIFEST, CheckpointError, FileRecord
from latentforge.model.decoding.slot_decoding import SlotDecoding
from latentforge.model.student import Student
from latentforge.snapshots.snapshot import DecodingMemory, load_snapshot
from latentforge.text.tokenizer import TextTokenizer

CPU = torch.device("cpu")
Publish = Callable[..., Path]


def test_a_published_checkpoint_loads_and_is_named_with_its_digest(publish: Publish) -> None:
    place = publish(7)
    snapshot = load_snapshot(place, CPU)
    assert snapshot.id == "demo/step-00000007"
    assert snapshot.digest == hashlib.sha256((place / MANIFEST).read_bytes()).hexdigest()


def test_text_survives_the_tokenizer_even_where_tokens_split_characters(publish: Publish) -> None:
    snapshot = load_snapshot(publish(1), CPU)
    text = "naïve 東京 🙂\n\tx"
    ids = snapshot.encode(text)
    assert snapshot.decode(ids) == text
    assert "".join(snapshot.decode([token_id]) for token_id in ids) != text


def test_tokenising_lets_other_threads_run(publish: Publish) -> None:
    snapshot = load_snapshot(publish(1), CPU)
    begin = last = time.perf_counter()
    tokenising = threading.Thread(target=snapshot.encode, args=("ab" * 1_000_000,))
    tokenising.start()
    worst = 0.0
    while tokenising.is_alive():
        time.sleep(0.001)
        now = time.perf_counter()
        worst, last = max(worst, now - last), now
    assert worst < (last - begin) / 3


def test_a_folder_without_manifest_is_refused(publish: Publish) -> None:
    place = publish(1)
    (place / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"has no manifest\.json"):
        load_snapshot(place, CPU)


def test_a_truncated_file_is_refused(publish: Publish) -> None:
    place = publish(1)
    weights = place / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors has \d+ bytes, its manifest says"):
        load_snapshot(place, CPU)


def test_a_flipped_bit_is_refused(publish: Publish) -> None:
    place = publish(1)
    weights = place / "autoencoder" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256"):
        load_snapshot(place, CPU)


def test_autoencoder_and_student_of_different_k_are_refused_with_both_values(publish: Publish) -> None:
    place = publish(1, autoencoder_chunk_size=8)
    with pytest.raises(CheckpointError, match="chunk_size differs: the autoencoder has 8, the student 4"):
        load_snapshot(place, CPU)


@pytest.mark.parametrize(("field", "real"), [("chunk_size", 4), ("latent_size", 16)])
def test_a_manifest_that_says_other_sizes_is_refused_with_both_values(publish: Publish, field: str, real: int) -> None:
    place = publish(1, **{field: 2 * real})
    with pytest.raises(CheckpointError, match=f"{field} is {2 * real} in the manifest, but {real} in the student"):
        load_snapshot(place, CPU)


def test_other_log_probabilities_of_the_golden_text_are_refused_with_both(publish: Publish) -> None:
    golden = read_manifest(publish(1)).golden
    wrong = golden.model_copy(update={"logprobs": (*golden.logprobs[:-1], golden.logprobs[-1] + 0.01)})
    last = len(golden.token_ids) - 1
    with pytest.raises(CheckpointError, match=rf"token {last} of the golden text .* but the manifest says"):
        load_snapshot(publish(2, weights=1, golden=wrong), CPU)


def test_other_draws_at_the_golden_text_are_refused(publish: Publish) -> None:
    golden = read_manifest(publish(1)).golden
    wrong = golden.model_copy(update={"drawn_ids": ((golden.drawn_ids[0] + 9) % 300, *golden.drawn_ids[1:])})
    with pytest.raises(CheckpointError, match=r"at token 0 of the golden text .* does not draw id"):
        load_snapshot(publish(2, weights=1, golden=wrong), CPU)


def test_other_ids_of_the_golden_text_are_refused(publish: Publish) -> None:
    golden = read_manifest(publish(1)).golden
    with pytest.raises(CheckpointError, match=r"golden text has other ids .* and .* of them"):
        load_snapshot(publish(2, weights=1, golden=golden.model_copy(update={"text": golden.text + " "})), CPU)
    with pytest.raises(CheckpointError, match=r"golden text has other ids .* first at token 0"):
        load_snapshot(publish(3, weights=1, golden=golden.model_copy(update={"text": "x" + golden.text})), CPU)


def test_a_golden_text_that_the_student_cannot_read_is_refused(publish: Publish) -> None:
    with pytest.raises(CheckpointError, match=r"has \d+ tokens, but the student reads 8"):
        load_snapshot(publish(1, max_chunks=2, golden=read_manifest(publish(2)).golden), CPU)
    golden = read_manifest(publish(3)).golden
    strange = golden.model_copy(update={"drawn_ids": (300, *golden.drawn_ids[1:])})
    with pytest.raises(CheckpointError, match="has id 300, but the vocabulary only 300 ids"):
        load_snapshot(publish(4, golden=strange), CPU)


def test_a_decoder_that_computes_something_else_is_not_served(
    publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = publish(1)
    open_text = SlotDecoding.open

    def forget(self: SlotDecoding, prompt_ids: list[int], *args: Any) -> Any:
        return open_text(self, prompt_ids[::-1], *args)

    monkeypatch.setattr(SlotDecoding, "open", forget)
    with pytest.raises(CheckpointError, match="a fault of the server"):
        load_snapshot(place, CPU)


def test_a_prompt_begins_with_the_bos_that_the_manifest_says(
    publish: Publish, tokenizer_json: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = load_snapshot(publish(1), CPU)
    plain = snapshot.encode("def")
    tokenizer = TextTokenizer(snapshot.place / "tokenizer")
    monkeypatch.setattr(tokenizer, "bos_id", 7)
    assert replace(snapshot, tokenizer=tokenizer).encode("def") == [7, *plain]
    with pytest.raises(CheckpointError, match="the tokenizer has no bos token"):
        load_snapshot(publish(2, weights=1, bos_id=7), CPU)


def break_a_weight(student: Student) -> None:
    student.embedding.weight[299, 0] = torch.nan


def overflow(student: Student) -> None:
    student.bias.fill_(torch.finfo(torch.float32).max)
    assert student.chunk_decoder is not None
    student.chunk_decoder.output.weight.fill_(1e38)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(break_a_weight, r"student\.embedding\.weight are not finite"), (overflow, "the logits .* are not finite")],
)
def test_a_student_that_diverged_is_refused(publish: Publish, spoil: Callable[[Student], None], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        load_snapshot(publish(1, spoil=spoil), CPU)


def test_another_tokenizer_than_the_one_trained_with_is_refused(publish: Publish) -> None:
    with pytest.raises(CheckpointError, match=r"fingerprint is .* but the manifest says 0000"):
        load_snapshot(publish(1, tokenizer_fingerprint="0000"), CPU)


def test_weights_that_do_not_fit_their_config_are_refused(publish: Publish) -> None:
    place = publish(1)
    config_file = place / "student" / "config.json"
    config = json.loads(config_file.read_text())
    config["intermediate_size"] = 48
    config_file.write_text(json.dumps(config))
    # A manifest that vouches for the wrong config, so that only loading can find it.
    manifest = read_manifest(place)
    content = config_file.read_bytes()
    record = FileRecord(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    files = {**manifest.files, "student/config.json": record}
    (place / MANIFEST).write_text(manifest.model_copy(update={"files": files}).model_dump_json())
    with pytest.raises(CheckpointError, match="the weights do not fit"):
        load_snapshot(place, CPU)


def test_memory_that_there_is_not_refuses_the_checkpoint(publish: Publish) -> None:
    with pytest.raises(CheckpointError, match=r"no memory for 1000000000000 texts of 1024 tokens.*lower MY_SLOTS"):
        load_snapshot(publish(1), CPU, DecodingMemory(num_slots=10**12, slots_setting="MY_SLOTS"))


def test_a_snapshot_is_freed_with_its_last_reference(publish: Publish) -> None:
    snapshot = load_snapshot(publish(1), CPU)
    model = weakref.ref(snapshot.model)
    gc.disable()
    try:
        del snapshot
        assert model() is None
    finally:
        gc.enable()
