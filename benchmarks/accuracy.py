"""What networks are worth at half of their FLOPs: ours by every criterion, and torch-pruning's, before and after training.

``python -m benchmarks.accuracy`` trains each network once for each seed, prunes it in every way of `METHODS`, and tests it as
it is and after the same fine-tuning. A row goes to ``results/pruning-accuracy.json`` when it is done, so that a run goes on
where it was stopped, and does only the ways that are new; trained networks are kept in ``--cache``. At the end the tables of
``docs/accuracy.md`` are written; ``--tables`` writes them alone.

Half of the FLOPs is at most a half by `prunefuse.training.flops_per_input`, whoever prunes: ours by its target, torch-pruning
by the smallest ratio that bisection finds. All methods read the same images: 640 training images with labels for criteria of
the loss, 512 without them for OBSPA. Networks are in evaluation mode as they are pruned, and nobody's classifier is cut.
Fashion-MNIST is that of the Debian package ``dataset-fashion-mnist`` (or of torchvision), averaged to 14x14.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunefuse import _files as files
from prunefuse.data import load
from prunefuse.models import resnet20
from prunefuse.pruning import Target, plan_pruning, prune_without_finetuning
from prunefuse.training import flops_per_input

RESULTS = Path(__file__).parent / "results" / "pruning-accuracy.json"
PAGE = Path(__file__).parents[1] / "docs" / "accuracy.md"
MARK = "<!-- tables: written by benchmarks/accuracy.py -->\n"
BATCH = 64
LABELED, CALIBRATION = 640, 512
HALF = 0.5


class Vgg(nn.Module):
    """Six 3x3 convolutions with batch norm, pooled twice on the way."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (32, 32, 0, 64, 64, 0, 128, 128):
            if width:
                convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class Attention(nn.Module):
    """Self-attention of four heads, written as in timm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = 4
        self.head_dim = width // 4
        self.scale = (width // 4) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, _ = x.shape
        mixed = self.qkv(x).reshape(samples, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        queries, keys, values = mixed.unbind(0)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, scale=self.scale)
        return self.proj(mixed.transpose(1, 2).reshape(samples, tokens, -1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Twenty-five patches of 4x4 that overlap, three blocks of width 64, the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 64, 4, stride=3, padding=1)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 25, 64))
        self.blocks = nn.Sequential(*(Block(64) for _ in range(3)))
        self.norm = nn.LayerNorm(64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT + self.positions
        return self.fc(self.norm(self.blocks(x)).mean(1))


@dataclass(frozen=True)
class Images:
    """Images with labels, for training and for test."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits() -> Images:
    data = load("digits")
    return Images((data.pool.images, data.pool.labels), (data.test.images, data.test.labels))


def fashion() -> Images:
    """20,000 and 3,000 images of Fashion-MNIST, averaged to 14x14."""
    data = load("fashion_mnist")

    def first(part: Any, count: int) -> tuple[Tensor, Tensor]:
        images = functional.avg_pool2d(part.images[:count].float() / 255, 2)
        return (images - 0.286) / 0.32, part.labels[:count]

    return Images(first(data.pool, 20_000), first(data.test, 3_000))


@dataclass(frozen=True)
class Case:
    """A network on a data set, and how it is trained.

    Attributes:
        images: Gives the data.
        build: Gives the network.
        lr: The largest learning rate of the dense training; fine-tuning has a fifth of it.
        epochs: Of the dense training.
        tuning: Images that fine-tuning sees in all.
        adam: Whether AdamW trains, else SGD with momentum.
    """

    images: Callable[[], Images]
    build: Callable[[], nn.Module]
    lr: float
    epochs: int
    tuning: int
    adam: bool = False


CASES = {
    "ResNet-20, Fashion-MNIST": Case(
        fashion, functools.partial(resnet20, in_channels=1, shortcut="B"), 0.1, 5, 3_200
    ),
    "VGG, Fashion-MNIST": Case(fashion, Vgg, 0.1, 5, 3_200),
    "ViT, Fashion-MNIST": Case(fashion, Vit, 0.003, 6, 3_200, adam=True),
    "ResNet-20, digits": Case(
        digits, functools.partial(resnet20, in_channels=1, shortcut="B"), 0.1, 20, 2_816
    ),
}


def train(
    model: nn.Module, data: tuple[Tensor, Tensor], case: Case, lr: float, steps: int, seed: int
) -> None:
    """Shuffled epochs under a one-cycle learning rate, in place."""
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = (
        torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
        if case.adam
        else torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, steps, cycle_momentum=False, final_div_factor=1e3
    )
    order: list[Tensor] = []
    model.train()
    for _ in range(steps):
        if not order:
            order = list(torch.randperm(len(images), generator=generator).split(BATCH))
        batch = order.pop(0)
        optimizer.zero_grad()
        functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """In per cent, in evaluation mode."""
    model.eval()
    parts = zip(data[0].split(250), data[1].split(250), strict=True)
    return 100 * sum(int((model(x).argmax(1) == y).sum()) for x, y in parts) / len(data[1])


@dataclass(frozen=True)
class Trained:
    """A trained network in evaluation mode, and what methods may look at."""

    model: nn.Module
    example: Tensor
    batches: Sequence[tuple[Tensor, Tensor]]
    calibration: Tensor


Method = Callable[[Trained], nn.Module]


def ours(trained: Trained, **options: Any) -> nn.Module:
    return plan_pruning(
        trained.model, trained.example, batches=trained.batches, target=Target("flops", HALF), **options
    ).extract(trained.model)


def obspa(trained: Trained, **options: Any) -> nn.Module:
    _, small = prune_without_finetuning(
        trained.model, trained.example, trained.calibration, target=Target("flops", HALF), **options
    )
    return small


def heads_of(model: nn.Module) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


def theirs(trained: Trained, importance: str, *, everywhere: bool) -> nn.Module:
    """torch-pruning at the smallest of 256 ratios that leaves at most half of the FLOPs."""
    import torch_pruning as tp

    scores = {
        "magnitude": lambda: tp.importance.MagnitudeImportance(p=1, group_reduction="first"),
        "group norm": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "Taylor": lambda: tp.importance.GroupTaylorImportance(),
    }
    model = copy.deepcopy(trained.model)
    if importance == "Taylor":
        for x, y in trained.batches:
            (functional.cross_entropy(model(x), y) / len(trained.batches)).backward()
    most = HALF * flops_per_input(model, trained.example)

    def at(ratio: float) -> nn.Module:
        small = copy.deepcopy(model)
        for mine, its in zip(model.parameters(), small.parameters(), strict=True):
            its.grad = None if mine.grad is None else mine.grad.clone()
        heads = {module.qkv: module.num_heads for module in heads_of(small)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tp.pruner.BasePruner(
                small,
                trained.example,
                importance=scores[importance](),
                global_pruning=everywhere,
                pruning_ratio=ratio,
                ignored_layers=[small.fc],
                num_heads=heads,
                in_channel_groups={},  # its defaults are one dictionary for all pruners
                out_channel_groups={},
            ).step()
        for module in heads_of(small):
            module.head_dim = module.proj.in_features // module.num_heads  # as its example for timm does
        small.zero_grad()
        return small

    low, high, found = 0, 256, None
    while high - low > 1:
        middle = (low + high) // 2
        try:
            small = at(middle / 256)
            fits = flops_per_input(small, trained.example) <= most
        except Exception:  # a ratio so large that nothing is left of a layer
            high = middle
            continue
        low, high, found = (low, middle, small) if fits else (middle, high, found)
    if found is None:
        raise RuntimeError("no ratio leaves at most half of the FLOPs")
    return found


CRITERIA = ("l1", "l2", "bn_scale", "activation", "snip", "taylor", "fisher", "grasp", "crop", "obd")
NORMALIZATIONS = ("none", "sum", "mean", "max")
PEER = ("magnitude", "group norm", "Taylor")
OBSPA: dict[str, dict[str, Any]] = {
    "OBSPA": {},
    "OBSPA, median of layers": {"combine": "median"},
    "OBSPA, own outputs": {"fit_to": "own"},
    "OBSPA, median, own outputs": {"combine": "median", "fit_to": "own"},
    "OBSPA, damping 0.0001": {"damping": 1e-4},
    "OBSPA, global, mean": {"ranking": "global", "normalization": "mean"},
}


TRANSFORMER = "ViT, Fashion-MNIST"
SHORTENED = ", heads inside"
INSIDE = (
    *("OBSPA", "OBSPA, median of layers", "OBSPA, global, mean"),
    *(f"{name}, local" for name in ("l1", "l2", "activation", "snip", "taylor", "random")),
    *("l2, coupled, local", "snip, coupled, local"),
    *(f"{name}, global, mean" for name in ("l1", "l2", "activation", "snip", "taylor")),
    *("l2, global, none", "l2, global, max"),
)
"""Ways that are also tried on the transformer with channels leaving inside of the heads."""


def methods() -> dict[str, Method]:
    """Name -> method, those that say most first."""
    found: dict[str, Method] = {}
    for name in PEER if find_spec("torch_pruning") else ():
        found[f"torch-pruning, {name}, local"] = functools.partial(theirs, importance=name, everywhere=False)
        found[f"torch-pruning, {name}, global"] = functools.partial(theirs, importance=name, everywhere=True)
    for name, options in OBSPA.items():
        found[name] = functools.partial(obspa, **options)
    for name in CRITERIA:
        found[f"{name}, local"] = functools.partial(ours, criterion=name)
        for by in NORMALIZATIONS:
            if by == "mean" or name in ("l2", "snip"):
                found[f"{name}, global, {by}"] = functools.partial(
                    ours, criterion=name, preset="spa", normalization=by
                )
        if name in ("l2", "snip"):
            found[f"{name}, coupled, local"] = functools.partial(
                ours, criterion=name, preset="spa", ranking="local"
            )
    found["random, local"] = functools.partial(ours, criterion="random")
    for name in INSIDE:
        found[name + SHORTENED] = functools.partial(found[name], heads="inside")
    return found


def has_method(case: str, method: str) -> bool:
    """Whether a network is pruned in a way: heads are shortened where there are some."""
    return case == TRANSFORMER or not method.endswith(SHORTENED)


@dataclass(frozen=True)
class Row:
    """One network pruned in one way: FLOPs and parameters over the dense one's, accuracies in per cent, seconds of CPU.

    ``error`` says why there is no small network; then the rest is empty.
    """

    case: str
    seed: int
    method: str
    dense: float
    flops: float = 0.0
    params: float = 0.0
    pruned: float = 0.0
    tuned: float = 0.0
    seconds: float = 0.0
    error: str = ""


def trained(name: str, seed: int, images: Images, cache: Path) -> nn.Module:
    """The dense network, trained if the cache lacks it."""
    case = CASES[name]
    torch.manual_seed(seed)
    model = case.build()
    path = cache / f"{name}, seed {seed}.pt".replace(" ", "-")
    if path.exists():
        model.load_state_dict(torch.load(path))
    else:
        steps = case.epochs * -(-len(images.train[0]) // BATCH)
        train(model, images.train, case, case.lr, steps, seed)
        with files.replacing(path) as temporary:
            torch.save(model.state_dict(), temporary)
    return model.eval()


def run_method(name: str, method: str, seed: int, dense: Trained, images: Images, before: float) -> Row:
    case, start = CASES[name], time.process_time()
    torch.manual_seed(seed)
    try:
        small = methods()[method](dense)
    except Exception as error:
        return Row(name, seed, method, before, error=f"{type(error).__name__}: {error}"[:300])
    seconds = time.process_time() - start
    sizes = [sum(p.numel() for p in model.parameters()) for model in (dense.model, small)]
    flops = [flops_per_input(model, dense.example) for model in (dense.model, small)]
    pruned = accuracy(small, images.test)
    torch.manual_seed(seed)
    train(small, images.train, case, case.lr / 5, case.tuning // BATCH, seed)
    tuned = accuracy(small, images.test)
    return Row(
        name,
        seed,
        method,
        before,
        round(flops[1] / flops[0], 4),
        round(sizes[1] / sizes[0], 4),
        pruned,
        tuned,
        round(seconds, 2),
    )


def read() -> list[Row]:
    return [Row(**row) for row in json.loads(RESULTS.read_text())["rows"]] if RESULTS.exists() else []


def write(rows: Iterable[Row]) -> None:
    about = {"torch": torch.__version__}
    if find_spec("torch_pruning"):
        about["torch_pruning"] = metadata.version("torch-pruning")
    lines = ",\n".join(f"  {json.dumps(asdict(row))}" for row in rows)
    head = json.dumps(about)[:-1]
    files.write_text(RESULTS, f'{head}, "rows": [\n{lines}\n]}}\n')


def run(cases: Sequence[str], seeds: int, patterns: Sequence[str], cache: Path) -> None:
    """Every row that is missing, seed by seed."""
    rows = read()
    done = {(row.case, row.seed, row.method) for row in rows}
    for seed in range(seeds):
        for name in cases:
            missing = [
                method
                for method in methods()
                if (name, seed, method) not in done
                and has_method(name, method)
                and any(fnmatchcase(method, p) for p in patterns)
            ]
            if not missing:
                continue
            images = CASES[name].images()
            model = trained(name, seed, images, cache)
            some = torch.randperm(len(images.train[0]), generator=torch.Generator().manual_seed(seed))
            x, y = (part[some[:LABELED]] for part in images.train)
            batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
            dense = Trained(model, x[:1], batches, images.train[0][some[:CALIBRATION]])
            before = accuracy(model, images.test)
            for method in missing:
                row = run_method(name, method, seed, dense, images, before)
                rows.append(row)
                write(rows)
                print(
                    f"{name}, seed {seed}, {method}: {row.error or f'{row.dense:.1f} -> {row.pruned:.1f} -> {row.tuned:.1f}'}"
                    f" at {row.flops:.3f}, {row.seconds:.1f} s",
                    flush=True,
                )


Found = dict[tuple[str, str], list[Row]]
"""Case and method -> its rows by seed."""


def table(found: Found, methods: Iterable[str], cell: Callable[[list[Row]], str]) -> str:
    lines = [f"| | {' | '.join(CASES)} |", f"|---{'|--:' * len(CASES)}|"]
    for method in methods:
        cells = []
        for rows in (found.get((case, method), []) for case in CASES):
            errors = sorted({row.error.split(":")[0] for row in rows if row.error})
            cells.append(", ".join(errors) if errors or not rows else cell(rows))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def both(found: Found, methods: Iterable[str]) -> str:
    """The transformer's rows with whole heads leaving, and with channels leaving inside of them."""
    lines = [f"| {TRANSFORMER} | whole | inside |", "|---|--:|--:|"]
    for method in methods:
        cells = [pair(found[TRANSFORMER, name]) for name in (method, method + SHORTENED)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def pair(rows: list[Row]) -> str:
    """Mean accuracy as pruned, mean and standard deviation after fine-tuning."""
    tuned = [row.tuned for row in rows]
    spread = f" ± {statistics.stdev(tuned):.1f}" if len(tuned) > 1 else ""
    return f"{statistics.mean(row.pruned for row in rows):.1f} → {statistics.mean(tuned):.1f}{spread}"


def every(rows: list[Row]) -> str:
    """Accuracies of each seed."""
    return "; ".join(f"{row.pruned:.1f} → {row.tuned:.1f}" for row in rows)


def size(rows: list[Row]) -> str:
    """FLOPs and parameters, in per cent of the dense network's."""
    flops, params = (
        statistics.mean(values) for values in ([r.flops for r in rows], [r.params for r in rows])
    )
    return f"{100 * flops:.0f}, {100 * params:.0f}"


def tables(rows: Sequence[Row]) -> str:
    """All of them, in Markdown."""
    found: Found = {}
    for row in sorted(rows, key=lambda row: row.seed):
        found.setdefault((row.case, row.method), []).append(row)
    names = [name for name in methods() if any(method == name for _, method in found)]
    peers = [name for name in names if name.startswith("torch-pruning")]
    shortened = [name for name in INSIDE if (TRANSFORMER, name + SHORTENED) in found]
    refitted = [name for name in names if name.startswith("OBSPA") and not name.endswith(SHORTENED)]
    local = [name for name in names if name.endswith(", local") and name not in peers]
    everywhere = [name for name in names if ", global" in name and name not in (*peers, *refitted)]
    everywhere = [name for name in everywhere if not name.endswith(SHORTENED)]
    dense = {case: list({row.seed: row.dense for row in rows if row.case == case}.values()) for case in CASES}
    before = ", ".join(f"{case} {statistics.mean(values):.1f}" for case, values in dense.items() if values)
    parts = [f"Before pruning: {before}."]
    for title, some in (
        ("torch-pruning", peers),
        ("OBSPA", refitted),
        ("Ours, local ranking", local),
        ("Ours, global ranking", everywhere),
    ):
        parts += [f"### {title}", table(found, some, pair)] if some else []
    if shortened:
        parts += ["### Ours, whole heads and channels inside of them", both(found, shortened)]
    parts += ["### Every seed", table(found, names, every)]
    parts += ["### FLOPs and parameters left, in per cent", table(found, names, size)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many networks to train")
    parser.add_argument("--tables", action="store_true", help="write the tables of the rows there are")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--methods", nargs="*", default=["*"], metavar="PATTERN", help="some of them")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "prunefuse-accuracy")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    if not arguments.tables:
        run(arguments.cases, arguments.seeds, arguments.methods, arguments.cache)
    text = PAGE.read_text(encoding="utf-8")
    files.write_text(PAGE, text[: text.index(MARK)] + MARK + "\n" + tables(read()) + "\n")


if __name__ == "__main__":
    main()
