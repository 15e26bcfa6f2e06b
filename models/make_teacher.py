"""Makes the embedded teacher: a byte-level BPE tokenizer and a small Qwen3 trained on the standard library's sources.

Two stages: three fifths of the tokens at length 512 on libraries and their tests, the rest at length 2048 on the
libraries alone while the learning rate falls to zero. Interrupted runs resume from their last save.
"""

import json
import math
import platform
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from latentforge.model.optim import build_optimizers, load_state_tensors, set_learning_rate, state_tensors
from latentforge.text.bpe import train_bpe
from latentforge.trainer.data.corpus import SHARED_WORDS, SourceFile, source_files, stdlib_root

VOCAB_SIZE = 4096
BATCH_TOKENS = 4096
STAGE_LENGTHS = (512, 2048)
STAGE_ONE_SHARE = 0.6
SAVE_EVERY = 100

MODEL_CARD = """\
# stdlib-teacher

The embedded teacher of LatentForge: a causal language model of {params:,} parameters (Qwen3 architecture, {layers}
layers of width {hidden}) with a byte-level BPE tokenizer of {vocab:,} ids. It exists so that distillation runs end to
end on a machine without a GPU, a network or a model hub. It writes text that looks like Python; it is not useful
otherwise.

| | |
| --- | --- |
| data | the Python {python} standard library's own sources |
| tokens | {train_tokens:,} of library code, {test_tokens:,} with its test suites |
| split | by file name; {held_out_files} library files are held out from all training, and lines of others that share \
{shared_words} words in a row with them |
| licence of the data | Python Software Foundation License, version 2; these weights: MIT, like the project |
| optimizer | Muon and AdamW, peak learning rate {lr}, {steps:,} steps of {batch:,} tokens, seed {seed} |
| stages | {one:.0%} of the steps at length {len_one}; the rest at {len_two}, library code only, the rate falling to 0 |
| device, time | {device}, {minutes:.0f} minutes |
| date | {date} |
| held-out loss | **{nll:.4f}** nats/token at length {len_two} over {held_out_tokens:,} tokens |
| held-out bits per byte | **{bpb:.4f}** |
| weights | bfloat16 safetensors |

Made by `{command}`.
"""


@dataclass
class Corpus:
    """Token ids as int32 vectors, every document followed by end-of-text."""

    library: Tensor
    everything: Tensor
    held_out: Tensor
    held_out_bytes: int
    held_out_files: int


def encode(tokenizer: PreTrainedTokenizerFast, files: list[SourceFile]) -> Tensor:
    eos = tokenizer.eos_token_id
    batch = tokenizer.backend_tokenizer.encode_batch_fast([f.text for f in files], add_special_tokens=False)
    return torch.from_numpy(np.concatenate([np.array([*e.ids, eos], dtype=np.int32) for e in batch]))


def load_corpus(tokenizer: PreTrainedTokenizerFast, root: Path) -> Corpus:
    train = list(source_files(root, "train", tests=True))
    held_out = list(source_files(root, "held-out"))
    library = encode(tokenizer, [f for f in train if not f.is_test])
    return Corpus(
        library=library,
        everything=torch.cat([library, encode(tokenizer, [f for f in train if f.is_test])]),
        held_out=encode(tokenizer, held_out),
        held_out_bytes=sum(len(f.text.encode()) for f in held_out),
        held_out_files=len(held_out),
    )


def batch_at(tokens: Tensor, length: int, index: int, seed: int) -> Tensor:
    """Batch ``index`` of a shuffled pass over windows of ``length + 1`` tokens; int64 [batch, length + 1].

    Each pass cuts the windows at another phase, so that no token always starts one.
    """
    rows = BATCH_TOKENS // length
    per_pass = (len(tokens) - 2 * length) // length // rows
    epoch, position = divmod(index, per_pass)
    generator = torch.Generator().manual_seed(seed * 1009 + epoch)
    phase = int(torch.randint(length, (), generator=generator))
    order = torch.randperm(per_pass * rows, generator=generator)[position * rows : (position + 1) * rows]
    return torch.stack([tokens[s : s + length + 1] for s in (order * length + phase).tolist()]).long()


def learning_rate(step: int, steps: int, peak: float) -> float:
    warmup = 30
    decay_from = int(steps * STAGE_ONE_SHARE)
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / (steps - decay_from))


def loss_of(model: Qwen3ForCausalLM, ids: Tensor) -> Tensor:
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    return F.cross_entropy(model.lm_head(hidden).flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_nll(model: Qwen3ForCausalLM, tokens: Tensor, device: torch.device) -> float:
    """Mean nats per token over consecutive windows, the first token of each window left out."""
    length = max(STAGE_LENGTHS)
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, length):
        ids = tokens[start : start + length + 1].long()[None].to(device)
        n = ids.shape[1] - 1
        if n:
            total += float(loss_of(model, ids)) * n
            count += n
    return total / count


def main(
    out: Annotated[Path, typer.Option(help="Folder of the finished teacher.")] = Path("models/stdlib-teacher"),
    work: Annotated[Path, typer.Option(help="Folder for saves of an unfinished run.")] = Path("build/teacher"),
    steps: Annotated[int, typer.Option(help=f"Optimizer steps of {BATCH_TOKENS} tokens.")] = 840,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the data's order.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Trains the embedded teacher and writes its weights, tokenizer and model card."""
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    root = stdlib_root()
    tokenizer = train_bpe((f.text for f in source_files(root, "train")), VOCAB_SIZE, max_length=max(STAGE_LENGTHS))
    tokenizer.save_pretrained(out)
    corpus = load_corpus(tokenizer, root)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        num_hidden_layers=6,
        intermediate_size=1024,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=max(STAGE_LENGTHS),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    torch.nn.Module.to(model, torch.device(device))
    optimizers = build_optimizers(model, lr, weight_decay=0.05)
    first, seconds = 0, 0.0
    state = work / "state.json"
    if state.exists():
        saved = json.loads(state.read_text())
        first, seconds = saved["step"], saved["seconds"]
        model.load_state_dict(load_file(work / f"model-{first}.safetensors"), strict=False)
        model.tie_weights()
        load_state_tensors(optimizers, load_file(work / f"optimizer-{first}.safetensors"))
        typer.echo(f"resuming from step {first}")

    def save(step: int) -> None:
        tensors = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
        save_file(tensors, work / f"model-{step}.safetensors")
        save_file(state_tensors(optimizers), work / f"optimizer-{step}.safetensors")
        state.write_text(json.dumps({"step": step, "seconds": seconds + time.monotonic() - started}))
        for old in work.glob("*-*.safetensors"):
            if not old.stem.endswith(f"-{step}"):
                old.unlink()

    started = time.monotonic()
    stage_one = int(steps * STAGE_ONE_SHARE)
    compiled = torch.compile(loss_of)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, (work / "metrics.jsonl").open("a") as metrics:
        task = progress.add_task("teacher", total=steps, completed=first)
        for step in range(first, steps):
            long = step >= stage_one
            tokens, index = (corpus.library, step - stage_one) if long else (corpus.everything, step)
            ids = batch_at(tokens, STAGE_LENGTHS[long], index, seed + long).to(device)
            loss = compiled(model, ids)
            loss.backward()
            nats = loss.item()
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
            if not math.isfinite(norm):
                raise SystemExit(f"step {step}: the gradient is not finite; lower --lr")
            set_learning_rate(optimizers, learning_rate(step, steps, lr))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            progress.update(task, advance=1, description=f"teacher: {nats:.3f} nats/token")
            row = {"step": step, "loss": nats, "norm": norm, "seconds": seconds + time.monotonic() - started}
            if (step + 1) % SAVE_EVERY == 0:
                save(step + 1)
                row["held_out"] = held_out_nll(model, corpus.held_out[: 16 * 2048], torch.device(device))
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()
    if steps % SAVE_EVERY:
        save(steps)
    minutes = json.loads(state.read_text())["seconds"] / 60
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(out)
    # What is measured is what is shipped: the rounded weights, computed in float32.
    torch.nn.Module.to(model, torch.float32)
    nll = held_out_nll(model, corpus.held_out, torch.device(device))
    card = MODEL_CARD.format(
        params=sum(p.numel() for p in model.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocab=VOCAB_SIZE,
        python=platform.python_version(),
        train_tokens=len(corpus.library),
        test_tokens=len(corpus.everything),
        held_out_files=corpus.held_out_files,
        shared_words=SHARED_WORDS,
        lr=lr,
        steps=steps,
        batch=BATCH_TOKENS,
        seed=seed,
        one=STAGE_ONE_SHARE,
        len_one=STAGE_LENGTHS[0],
        len_two=STAGE_LENGTHS[1],
        device=torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        minutes=minutes,
        date=date.today().isoformat(),
        nll=nll,
        held_out_tokens=len(corpus.held_out),
        bpb=nll * len(corpus.held_out) / math.log(2) / corpus.held_out_bytes,
        command=f"python models/make_teacher.py --steps {steps} --lr {lr} --seed {seed}",
    )
    (out / "README.md").write_text(card)
    (out / "training.json").write_text(json.dumps({"held_out_nll": nll, "steps": steps, "seed": seed}) + "\n")
    typer.echo(f"held-out: {nll:.4f} nats/token")


if __name__ == "__main__":
    typer.run(main)
