"""Heads: from the backbone's hidden state to a latent."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentforge.model.config import StudentConfig
from latentforge.model.noise import Noise, uniform


class DeterministicHead(nn.Module):
    """RMSNorm and a two-layer MLP; one latent for each hidden state. The last layer starts at zero."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.up = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.down = nn.Linear(2 * config.hidden_size, config.latent_size)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, hidden: Tensor, num_samples: int = 1, noise: Noise = None) -> Tensor:
        """Maps [..., h] to [num_samples, ..., D]; all samples are the same latent, and no noise is drawn."""
        latents: Tensor = self.down(F.silu(self.up(self.norm(hidden))))
        return latents.expand(num_samples, *latents.shape)


class EnergyHead(nn.Module):
    """CALM's generative head: uniform noise in, a latent out, one pass.

    Noise and hidden state are both projected; gated residual MLP blocks then refine the noise under the hidden state.
    The last layer starts at zero.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.noise_size = config.energy_noise_size
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.noise_in = nn.Linear(self.noise_size, width)
        self.hidden_in = nn.Linear(width, width)
        self.blocks = nn.ModuleList([_EnergyBlock(width) for _ in range(config.energy_blocks)])
        self.norm_out = nn.RMSNorm(width, eps=1e-6)
        self.down = nn.Linear(width, config.latent_size)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, hidden: Tensor, num_samples: int = 1, noise: Noise = None) -> Tensor:
        """Maps [..., h] to [num_samples, ..., D], each sample from noise of its own."""
        shape = (num_samples, *hidden.shape[:-1], self.noise_size)
        return self.from_noise(hidden, uniform(shape, noise, dim=1, device=hidden.device, dtype=hidden.dtype))

    def from_noise(self, hidden: Tensor, noise: Tensor) -> Tensor:
        """Maps [..., h] and uniform noise, [..., noise_size] from 0 to 1, to [..., D]."""
        condition = self.hidden_in(self.norm(hidden))
        x = self.noise_in(noise - 0.5)
        for block in self.blocks:
            x = block(x, condition)
        latents: Tensor = self.down(self.norm_out(x))
        return latents


class _EnergyBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Linear(2 * width, 2 * width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = torch.cat([self.norm(x), condition.expand_as(x)], -1)
        gate, up = self.up(y).chunk(2, -1)
        out: Tensor = x + self.down(F.silu(gate) * up)
        return out


def build_head(config: StudentConfig) -> DeterministicHead | EnergyHead:
    """The head that a config asks for."""
    return EnergyHead(config) if config.head == "energy" else DeterministicHead(config)
