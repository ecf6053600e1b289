"""Muon for matrices, AdamW for everything else.

Muon: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the
momentum of each matrix is replaced by its nearest semi-orthogonal matrix (Newton-Schulz).
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Five Newton-Schulz steps on a batch [N, rows, cols], in bf16 on a GPU -> same shape."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return result


class Muon:
    """Nesterov momentum, orthogonalised, with decoupled weight decay.

    Matrices of one shape are processed together.
    """

    def __init__(self, parameters: list[nn.Parameter], rate: float, decay: float) -> None:
        self.rate, self.decay, self.momentum = rate, decay, 0.95
        self.groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            self.groups[(parameter.shape[-2], parameter.shape[-1])].append(parameter)
        self.state = {p: torch.zeros_like(p) for p in parameters}

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update at learning rate ``rate * scale``."""
        rate = self.rate * scale
        for (rows, cols), members in self.groups.items():
            updates = [self.momentum_update(member).reshape(-1, rows, cols) for member in members]
            joined = orthogonalised(torch.cat(updates)) * max(1.0, rows / cols) ** 0.5
            sizes = [update.shape[0] for update in updates]
            for member, update in zip(members, joined.split(sizes), strict=True):
                member.mul_(1 - rate * self.decay).add_(update.view_as(member), alpha=-rate)

    def momentum_update(self, parameter: nn.Parameter) -> Tensor:
        """Nesterov momentum of one parameter's gradient."""
        if parameter.grad is None:
            raise ValueError("a parameter got no gradient; is it used in the forward pass?")
        state = self.state[parameter]
        state.lerp_(parameter.grad, 1 - self.momentum)
        return parameter.grad.lerp(state, self.momentum)


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices for Muon, the rest for AdamW): embedding, router and norms go to AdamW."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or name.endswith("router") or name == "embedding"
        (rest if plain else matrices).append(parameter)
    return matrices, rest
