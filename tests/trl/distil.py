"""Run by .venv-trl's Python: TRL's trainer distils a tiny student from a server, and every loss is computed again.

The second computation shares nothing with the first but the student: the teacher's distributions come from its weights,
and the divergence from its definition, sequence by sequence, without padding.

Usage: python distil.py URL TEACHER_FOLDER BETA TOP_K OUT.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import trl.generation.vllm_client
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from trl.experimental.server_distillation import ServerDistillationConfig, ServerDistillationTrainer

# The client wants vLLM's package beside it, for streaming weights to a server; what is asked here needs HTTP alone.
trl.generation.vllm_client.is_vllm_available = lambda *_, **__: True

PROMPTS = ["import os\n", "def main(", "class Error(Exception):\n    ", "for i in range(", "return self.", "x"]


def logprobs_of(model: Any, ids: torch.Tensor, first: int) -> torch.Tensor:
    """Float64 [t, v]: ln p(· | tokens before it) for the tokens from ``first`` on."""
    logits: torch.Tensor = model(ids[None]).logits[0, first - 1 : -1]
    return logits.double().log_softmax(-1)


def with_rest(logprobs: torch.Tensor) -> torch.Tensor:
    """[t, k] to [t, k + 1]: behind some tokens' the log-probability of all others."""
    rest = torch.log1p(-logprobs.exp().sum(-1, keepdim=True))
    return torch.cat([logprobs, rest], -1)


class CheckedTrainer(ServerDistillationTrainer):  # type: ignore[misc]
    """Notes each loss and what it should be."""

    def __init__(self, *args: Any, teacher: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher
        self.losses: list[tuple[float, float]] = []

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with torch.no_grad():
            self.losses.append((float(loss), self.expected(inputs)))
        return loss

    def expected(self, inputs: Any) -> float:
        """The mean over completion tokens of KL(teacher, student), or with beta 1 of KL(student, teacher)."""
        divergences = []
        for prompt, prompt_mask, completion, completion_mask in zip(
            *(inputs[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")), strict=True
        ):
            prompt_ids, own = prompt[prompt_mask.bool()], completion[completion_mask.bool()]
            ids = torch.cat([prompt_ids, own])
            teacher, student = (logprobs_of(m, ids, len(prompt_ids)) for m in (self.teacher, self.model))
            support = own[:, None] if self.beta == 1 else teacher.topk(self.loss_top_k).indices
            p, q = (with_rest(logprobs.gather(-1, support)) for logprobs in (teacher, student))
            divergence = q.exp() * (q - p) if self.beta == 1 else p.exp() * (p - q)
            divergences.append(divergence.sum(-1))
        return float(torch.cat(divergences).mean())


def main() -> None:
    url, folder, beta, top_k, out = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
    ends: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen3Config(vocab_size=teacher.config.vocab_size, **sizes, **heads, **ends, initializer_range=0.2)
    arguments = ServerDistillationConfig(
        output_dir=str(Path(out).parent / "trl"),
        teacher_model_server_url=url,
        beta=float(beta),
        loss_top_k=int(top_k),
        max_completion_length=12,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=1,
        max_steps=4,
        learning_rate=0.01,
        logging_steps=1,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    trainer = CheckedTrainer(
        model=Qwen3ForCausalLM(config),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=tokenizer,
        teacher=teacher,
    )
    trainer.train()
    Path(out).write_text(json.dumps(trainer.losses))


if __name__ == "__main__":
    main()
