"""A recipe's student with random weights, and batches of random ids: for what does not depend on either."""

import torch

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.sparse_kd import KdTargets
from latentforge.model.student import Student
from latentforge.trainer.config.recipe import Recipe

# Of recipes that leave them to the tokenizer: the shipped teacher's.
_VOCAB_SIZE, _EOS, _PAD = 4096, 0, 1


def random_student(recipe: Recipe, device: torch.device) -> LatentModel:
    """The recipe's autoencoder and student before any training."""
    torch.manual_seed(recipe.seed)
    pad_id, eos_id = recipe.data.pad_id or _PAD, recipe.data.eos_id or _EOS
    autoencoder = recipe.autoencoder_config(_VOCAB_SIZE, pad_id)
    student = recipe.student_config(pad_id, eos_id, autoencoder)
    with device:
        return LatentModel(Autoencoder(autoencoder), Student(student)).train()


def random_batch(recipe: Recipe, batch_size: int, device: torch.device) -> StudentBatch:
    """Sequences of the recipe's length with a row for every token; as many sequences as are asked for."""
    vocab_size, k = recipe.vocab_size or _VOCAB_SIZE, recipe.teacher.top_k
    shape = (batch_size, recipe.data.sequence_length)
    rng = torch.Generator(device).manual_seed(recipe.seed)
    tokens = torch.randint(vocab_size, shape, generator=rng, device=device)
    ids = torch.randint(vocab_size, (*shape, k), generator=rng, device=device)
    # Of different ids, as a teacher's are.
    ids = (ids[..., :1] + torch.arange(k, device=device)) % vocab_size
    mass = torch.rand(*shape, k + 2, generator=rng, device=device).softmax(-1)
    valid = torch.ones(shape, dtype=torch.bool, device=device)
    counts = torch.full(shape, k, device=device)
    realised, tail = mass[..., k].log(), mass[..., k:].sum(-1)
    return StudentBatch(tokens, valid, KdTargets(ids, mass[..., :k].log(), counts, realised, tail, valid))
