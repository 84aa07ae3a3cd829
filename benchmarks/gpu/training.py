"""100 steps of training a ResNet-20, profiled: launches and waits of the host in a step, and how long the GPU was idle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from prunefuse import models
from prunefuse.data._tensors import Augment, TensorImages
from prunefuse.training._recipe import Recipe
from prunefuse.training._train import train

BATCH = 128
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
COPIES = (
    "Memcpy HtoD (Pageable -> Device)",
    "Memcpy DtoH (Device -> Pageable)",
)  # the host waits for these as well


def images(count: int) -> TensorImages:
    """As CIFAR-10's, of random pixels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    return TensorImages(pixels, labels, mean=(0.5,) * 3, std=(0.25,) * 3, augment=Augment(4, True))


def facts(events: list[Any], steps: int) -> str:
    """What the profile says of a step; of the host alone where there is no GPU."""
    on_gpu = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA
        and "#" not in event.name  # a span, as of Optimizer.step
    )
    launches = sum(event.name.startswith(("cudaLaunchKernel", "cuLaunchKernel")) for event in events)
    waits = sum(event.name in WAITS for event in events)
    copies = sum(event.name in COPIES for event in events)
    if not on_gpu:
        calls = sum(event.name.startswith("aten::") for event in events)
        return (
            f"{calls / steps:.0f} calls of ATen in a step; no GPU: launches, waits and idle time are absent"
        )
    busy, until = 0.0, on_gpu[0][0]
    for start, end in on_gpu:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    span = until - on_gpu[0][0]
    return (
        f"{span / steps / 1000:.2f} ms a step, GPU idle {100 * (1 - busy / span):.0f} % of it; in a step "
        f"{launches / steps:.0f} launches, {waits / steps:.1f} waits of the host, "
        f"{copies / steps:.1f} copies of pageable memory"
    )


def main() -> None:
    device = torch.device(sys.argv[1])
    batch, steps = (BATCH, 100) if device.type == "cuda" else (4, 3)
    model = models.build("resnet20").to(device)
    recipe = Recipe(epochs=1, batch_size=batch, steps=((1, 1.0),))
    train(model, images(20 * batch if device.type == "cuda" else batch), recipe)
    data = images(steps * batch)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiled:
        train(model, data, recipe)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    Path(sys.argv[2]).write_text(profiled.key_averages().table(sort_by=order, row_limit=60))
    print(f"> ResNet-20, batches of {batch}, {steps} steps: {facts(profiled.events(), steps)}")


if __name__ == "__main__":
    main()
