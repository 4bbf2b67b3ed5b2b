"""The loops as course notebooks write them: plain PyTorch, one thing after the other.

What ``speed.py`` compares with. Nothing here is slowed down: torch's own defaults, no graph while
sampling.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

Request = dict[str, Any]


def levels(sigma_max: float, sigma_min: float, num: int) -> Tensor:
    """Geometric noise levels (L,), descending."""
    return torch.logspace(math.log10(sigma_max), math.log10(sigma_min), num)


def one_dimensional(request: Request) -> dict[str, Any]:
    """P1: multiple denoising score matching of .1 N(-3, 1) + .9 N(3, 1), all levels at a step."""
    num, num_levels, steps = request["points"], request["levels"], request["steps"]
    torch.manual_seed(request.get("seed", 0))
    x = torch.randn(num, 1) + 3 * (2 * (torch.rand(num, 1) < 0.9).float() - 1)
    sigmas = levels(2, 0.5, num_levels)
    net = nn.Sequential(nn.Linear(2, request["width"]), nn.ReLU(), nn.Linear(request["width"], 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    start = time.perf_counter()
    for _ in range(steps):
        x_noisy = x + sigmas * torch.randn(num, num_levels)
        target = (x - x_noisy) / sigmas**2
        sigma = sigmas.repeat(num)
        score = net(torch.stack([x_noisy.reshape(-1), sigma], 1))[:, 0]
        loss = ((sigma * (score - target.reshape(-1))) ** 2).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "check": {"loss": float(np.mean(losses[-(steps // 10) :]))}}


class ScoreModel(nn.Module):
    """The toy NCSN: a perceptron on x and an embedding of sigma."""

    def __init__(self, dim: int, embedding: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Sequential(
            nn.Linear(1, embedding), nn.ReLU(), nn.Linear(embedding, embedding)
        )
        self.layers = nn.Sequential(
            nn.Linear(dim + embedding, width), nn.ReLU(), nn.Linear(width, dim)
        )

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Scores (B, D) at ``x`` (B, D) and ``sigma`` (B, 1)."""
        return self.layers(torch.cat([x, self.embedding(sigma)], 1))


def batches(data: Tensor, size: int) -> Iterator[Tensor]:
    """Shuffled batches of ``data`` (N, D), epoch after epoch."""
    loader = DataLoader(data, batch_size=size, shuffle=True)  # type: ignore[arg-type]
    while True:
        yield from loader


def train(model: nn.Module, data: Tensor, sigmas: Tensor, size: int) -> Iterator[float]:
    """P2's loop without end; yields the loss of every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for x in batches(data, size):
        sigma = sigmas[torch.randint(0, len(sigmas), (len(x),))][:, None]
        z = torch.randn_like(x)
        loss = ((sigma * model(x + sigma * z, sigma) + z) ** 2).sum(1).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def two_dimensional(request: Request) -> dict[str, Any]:
    """P2: the toy NCSN on 1000 points of .95 N((-5, -5), I) + .05 N((5, 5), I)."""
    torch.manual_seed(0)
    data = torch.randn(1000, 2) + 5 * (2 * (torch.rand(1000, 1) < 0.05).float() - 1)
    model = ScoreModel(2, 16, request["width"])
    loop = train(model, data, levels(20, 0.1, request["levels"]), request["batch"])
    start = time.perf_counter()
    losses = [next(loop) for _ in range(request["steps"])]
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "check": {"loss": float(np.mean(losses[-len(losses) // 10 :]))}}


@torch.no_grad()
def sample(request: Request) -> dict[str, Any]:
    """P3: annealed Langevin dynamics (Song & Ermon 2019, Algorithm 1, eps = .001)."""
    torch.manual_seed(0)
    arrays = list(np.load(request["weights"]).values())
    model = ScoreModel(2, 16, arrays[4].shape[0])
    for parameter, array in zip(model.parameters(), arrays, strict=True):
        parameter.copy_(torch.from_numpy(array))
    sigmas = levels(20, 0.1, request["levels"])
    x = torch.rand(request["particles"], 2) * 16 - 8
    start = time.perf_counter()
    for sigma in sigmas:
        alpha = 0.001 * (sigma / sigmas[-1]) ** 2
        column = torch.full((len(x), 1), float(sigma))
        for _ in range(request["steps"]):
            x = x + alpha / 2 * model(x, column) + alpha.sqrt() * torch.randn_like(x)
    return {"seconds": time.perf_counter() - start, "samples": x.numpy()}


def sweep(request: Request) -> dict[str, Any]:
    """P4: one seed after the other."""
    runs = [one_dimensional({**request, "seed": seed}) for seed in range(request["seeds"])]
    loss = float(np.mean([run["check"]["loss"] for run in runs]))
    return {"seconds": sum(run["seconds"] for run in runs), "check": {"loss": loss}}


WORKS = {"P1": one_dimensional, "P2": two_dimensional, "P3": sample, "P4": sweep}
