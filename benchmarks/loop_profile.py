"""Where the time of a training step of small networks goes; `benchmarks/results/loop_profile.txt` has what it printed.

One thread. Operators are torch's own seconds, without those that they call. Python is what cProfile sees; it slows Python down.
"""

from __future__ import annotations

import cProfile
import platform
import pstats
import time

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import prunefuse
from prunefuse import models
from prunefuse.data import TensorImages
from prunefuse.experiment.machine import describe_machine
from prunefuse.training import train

SETTINGS = {"ResNet-20, 1x8x8, batches of 16": (8, 16), "ResNet-20, 1x14x14, batches of 64": (14, 64)}
RATIOS = (0.0, 0.5)
COUNT, MOST = 640, 12


def network(side: int, ratio: float) -> nn.Module:
    """The dense network, or one pruned by ``ratio``."""
    torch.manual_seed(0)
    dense = models.build("resnet20", in_channels=1)
    if not ratio:
        return dense
    return prunefuse.plan_pruning(dense, (torch.zeros(1, 1, side, side),), ratio=ratio).extract(dense)


def profiled(title: str, side: int, batch: int, ratio: float) -> str:
    """What a training of one epoch spends its time on, as text."""
    model = network(side, ratio)
    images = torch.randint(256, (COUNT, 1, side, side), dtype=torch.uint8)
    data = TensorImages(images, torch.randint(10, (COUNT,)), mean=(0.5,), std=(0.25,))
    recipe = prunefuse.Recipe(epochs=1, batch_size=batch, lr=0.01, channels_last=None)
    steps = COUNT // batch
    train(model, data, recipe)
    seconds = []
    for _ in range(5):
        begin = time.process_time()
        train(model, data, recipe)
        seconds.append(time.process_time() - begin)
    lines = [
        f"## {title}, p = {ratio}: {min(seconds) / steps * 1e3:.1f} ms of a CPU a step",
        "",
        "operators:",
    ]
    with profile(activities=[ProfilerActivity.CPU]) as operators:
        train(model, data, recipe)
    found = sorted(operators.key_averages(), key=lambda one: -one.self_cpu_time_total)
    whole = sum(one.self_cpu_time_total for one in found)
    for one in found[:MOST]:
        part = one.self_cpu_time_total / whole
        lines.append(f"  {part:6.1%}  {one.count / steps:6.1f} a step  {one.key}")
    python = cProfile.Profile()
    python.runcall(train, model, data, recipe)
    stats = pstats.Stats(python)
    total = sum(row[2] for row in stats.stats.values())  # type: ignore[attr-defined]
    lines += ["", "Python:"]
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][2])  # type: ignore[attr-defined]
    for (file, _, name), (_, calls, own, _, _) in rows[:MOST]:
        where = "" if file == "~" else f"{'/'.join(file.split('/')[-2:])}: "
        lines.append(f"  {own / total:6.1%}  {calls / steps:6.1f} a step  {where}{name}")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    machine = describe_machine(torch.device("cpu"))
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {machine['device_name']}, one thread\n"
    )
    for setting, (size, samples) in SETTINGS.items():
        for removed in RATIOS:
            print(profiled(setting, size, samples, removed), end="\n\n")
