"""The training loop of the shipped models: AdamW, seeded shuffling, one line of output per epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def fit(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    targets: torch.Tensor,
    loss: Callable[..., torch.Tensor],
    seed: int,
    epochs: int,
    rate: float = 1e-3,
    batch: int = 64,
) -> torch.nn.Module:
    """Train a module in place. The same seed gives the same weights on one kind of machine.

    Args:
        module: The module to train.
        inputs: Its inputs, samples on axis 0.
        targets: What it should return, samples on axis 0.
        loss: Takes a batch of outputs and of targets and returns a scalar.
        seed: Seed of the order of samples.
        epochs: Number of epochs.
        rate: Initial learning rate; it falls to zero along a cosine.
        batch: Number of samples in a batch.

    Returns:
        The same module.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=1e-2)
    steps = epochs * ((len(targets) + batch - 1) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    module.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(targets), generator=generator).split(batch):
            optimizer.zero_grad()
            value = loss(module(*(tensor[rows] for tensor in inputs)), targets[rows])
            value.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(value.detach()) * len(rows)
        print(f"epoch {epoch + 1} of {epochs}: loss {total / len(targets):.4f}", flush=True)
    return module
