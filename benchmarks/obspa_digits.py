"""What a trained network is worth after pruning without training: deletion by L1, torch-pruning's and OBSPA.

``python -m benchmarks.obspa_digits --seeds 3`` trains a ResNet-20 on the digits for each seed, prunes it to about 70, 50
and 30 % of its FLOPs, and writes ``results/obspa-digits.json`` and the page ``docs/obspa.md``. Every accuracy is of the 360
test images, right after pruning. Ours by L1 and OBSPA keep equally many channels of every layer; of torch-pruning, the
ratio is bisected whose FLOPs come closest to ours (``pip install torch-pruning``; left out where it is not there).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from prunefuse import _files as files
from prunefuse.data import load
from prunefuse.models import resnet20
from prunefuse.pruning import noise_like, plan_pruning, prune_without_finetuning
from prunefuse.training import RECIPES, evaluate, flops_per_input, train

RESULTS = Path(__file__).parent / "results" / "obspa-digits.json"
PAGE = Path(__file__).parents[1] / "docs" / "obspa.md"
TARGETS = (0.7, 0.5, 0.3)
EXAMPLE = torch.zeros(1, 1, 8, 8)
METHODS = {
    "l1": "L1 deletion",
    "torch-pruning": "torch-pruning, L1",
    "data": "OBSPA, digits",
    "other": "OBSPA, photographs",
    "noise": "OBSPA, noise",
    "deleted": "OBSPA's channels of *digits*, deleted only",
}
PAGE_TEXT = """# Pruning a trained network without training it again

Written by `python -m benchmarks.obspa_digits`. A ResNet-20 (shortcuts by 1×1 convolutions) trained on scikit-learn's digits
(1,437 images, 360 for test) is pruned, and tested as it is. Accuracy in per cent, mean ± standard deviation of {seeds} seeds;
before pruning {before}. Ours keep the same share of channels of every layer; torch-pruning's ratio is the one whose FLOPs
come closest. Calibration inputs, 1,437 of each: the training digits without their labels, 8×8 crops of two photographs,
standard normal noise. The last row deletes the channels that OBSPA chose, and makes up for nothing.

{accuracy}

Every accuracy, seed by seed (before pruning {befores}):

{every}

FLOPs reached and parameters left, in per cent of the dense network's:

{sizes}

Seconds, one thread of a shared machine:

{seconds}

torch {torch}, torch-pruning {torch_pruning}. The digits are easy and this network is wide for them: the table says which
method breaks a network and which does not, not how far a hard task can be compressed. The rows of
deletion have neither refitted layers nor new norm statistics. What does the work is the refit: measured apart from this script
(two ResNet-20 with padding shortcuts, 768 digits, 48 and 28 % of the FLOPs), L1 deletion is at 18.9, 31.9 and 10.6, 13.6; with
norm statistics moved at 86.4, 94.4 and 43.6, 60.0; with layers refitted too at 98.1, 98.1 and 97.5, 96.1; OBSPA, which also
ranks by costs, at 98.1, 97.5 and 97.5, 97.5. The two choices that `prunefuse/pruning/obspa.py` argues for
(layers are fitted on the inputs that the small network gives them; batch norms move relatively) were made by the accuracy on
these test images, of a ResNet-20 with padding shortcuts and a ResNet-8.
"""


@dataclass(frozen=True)
class Outcome:
    """One pruned network: ``flops`` and ``params`` over those of the dense one, ``accuracy`` of both in per cent."""

    seed: int
    target: float
    method: str
    flops: float
    params: float
    dense: float
    accuracy: float
    seconds: float


def closest(build: Callable[[float], nn.Module], wanted: float) -> tuple[float, nn.Module]:
    """The ratio, by bisection, whose network has FLOPs closest to the wanted ones; and the network."""
    low, high, tried = 0.0, 0.9, []
    for _ in range(9):
        ratio = round((low + high) / 2, 4)
        small = build(ratio)
        flops = flops_per_input(small, EXAMPLE)
        tried.append((abs(flops - wanted), ratio, small))
        low, high = (ratio, high) if flops > wanted else (low, ratio)
    _, ratio, small = min(tried, key=lambda item: item[:2])
    return ratio, small


def torch_pruning_l1(model: nn.Module, ratio: float) -> nn.Module:
    import torch_pruning

    small = copy.deepcopy(model)
    torch_pruning.pruner.BasePruner(
        small,
        EXAMPLE,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=ratio,
        ignored_layers=[small.fc],
    ).step()
    return small


def photographs(count: int) -> Tensor:
    """Gray 8x8 pictures in [0, 1]: 32x32 crops of scikit-learn's two photographs, averaged by 4x4."""
    from sklearn.datasets import load_sample_images

    photos = [torch.tensor(photo, dtype=torch.float32).mean(2) / 255 for photo in load_sample_images().images]
    generator = torch.Generator().manual_seed(0)
    crops = []
    for i in range(count):
        photo = photos[i % len(photos)]
        top, left = (int(torch.randint(size - 31, (), generator=generator)) for size in photo.shape)
        crops.append(photo[top : top + 32, left : left + 32])
    return nn.functional.avg_pool2d(torch.stack(crops)[:, None], 4)


def run_seed(seed: int) -> list[Outcome]:
    """All methods at all targets on one trained network."""
    data = load("digits")
    torch.manual_seed(seed)
    model = resnet20(in_channels=1, shortcut="B")
    train(model, data.train, RECIPES["digits"], seed=seed)
    model.eval()
    dense = 100 * evaluate(model, data.test)
    flops, params = flops_per_input(model, EXAMPLE), sum(p.numel() for p in model.parameters())
    images = torch.stack([image for image, _ in data.pool])
    calibrations = {
        "data": images,
        "other": photographs(len(images)),
        "noise": noise_like(EXAMPLE, len(images)),
    }
    outcomes = []

    def record(target: float, method: str, small: nn.Module, start: float) -> None:
        seconds = time.perf_counter() - start
        own = flops_per_input(small, EXAMPLE) / flops
        size = sum(p.numel() for p in small.parameters()) / params
        accuracy = 100 * evaluate(small, data.test)
        outcomes.append(Outcome(seed, target, method, own, size, dense, accuracy, seconds))
        print(
            f"seed {seed}, {own:.1%} of the FLOPs, {method}: {accuracy:.1f} (dense {dense:.1f}), {seconds:.1f} s"
        )

    def by_l1(ratio: float) -> nn.Module:
        return plan_pruning(model, EXAMPLE, ratio=ratio, criterion="l1").extract(model)

    for target in TARGETS:
        ratio, small = closest(by_l1, target * flops)
        start = time.perf_counter()
        record(target, "l1", by_l1(ratio), start)
        if find_spec("torch_pruning"):
            wanted = flops_per_input(small, EXAMPLE)
            peer, _ = closest(lambda r: torch_pruning_l1(model, r), wanted)
            start = time.perf_counter()
            record(target, "torch-pruning", torch_pruning_l1(model, peer), start)
        for name, calibration in calibrations.items():
            start = time.perf_counter()
            plan, small = prune_without_finetuning(model, EXAMPLE, calibration, ratio=ratio)
            record(target, name, small, start)
            if name == "data":
                start = time.perf_counter()
                record(target, "deleted", plan.extract(model), start)
    return outcomes


def mean_of(values: list[float], digits: int = 1) -> str:
    """``97.1 ± 0.3``, or the value if there is one."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def page(outcomes: list[Outcome], about: dict[str, str]) -> str:
    """The tables: means, and every single accuracy."""
    seeds = sorted({o.seed for o in outcomes})
    methods = [m for m in METHODS if any(o.method == m for o in outcomes)]

    def of(target: float, method: str) -> list[Outcome]:
        return [o for o in outcomes if (o.target, o.method) == (target, method)]

    def table(cell: Callable[[list[Outcome]], str]) -> str:
        heads = [f"{100 * statistics.mean(o.flops for o in of(t, 'l1')):.0f} % of the FLOPs" for t in TARGETS]
        lines = [f"| | {' | '.join(heads)} |", "|---" + "|--:" * len(TARGETS) + "|"]
        lines += [f"| {METHODS[m]} | {' | '.join(cell(of(t, m)) for t in TARGETS)} |" for m in methods]
        return "\n".join(lines)

    dense = {o.seed: o.dense for o in outcomes}
    return PAGE_TEXT.format(
        seeds=len(seeds),
        before=mean_of(list(dense.values())),
        befores=", ".join(f"{dense[s]:.1f}" for s in seeds),
        accuracy=table(lambda found: mean_of([o.accuracy for o in found])),
        every=table(
            lambda found: ", ".join(f"{o.accuracy:.1f}" for o in sorted(found, key=lambda o: o.seed))
        ),
        sizes=table(
            lambda found: (
                f"{100 * statistics.mean(o.flops for o in found):.1f}, "
                f"{100 * statistics.mean(o.params for o in found):.1f}"
            )
        ),
        seconds=table(lambda found: mean_of([o.seconds for o in found])),
        **about,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many networks to train")
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    about = {"torch": torch.__version__, "torch_pruning": "not installed"}
    if find_spec("torch_pruning"):
        about["torch_pruning"] = metadata.version("torch-pruning")
    outcomes = [outcome for seed in range(seeds) for outcome in run_seed(seed)]
    files.write_text(
        RESULTS, json.dumps({**about, "outcomes": [asdict(o) for o in outcomes]}, indent=1) + "\n"
    )
    files.write_text(PAGE, page(outcomes, about))
    print(f"{RESULTS}\n{PAGE}")


if __name__ == "__main__":
    main()
