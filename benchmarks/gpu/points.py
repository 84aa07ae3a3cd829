"""What is measured on a GPU: the table of points. Each makes its inputs on the device, and some rows' truth in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunefuse import ops
from prunefuse.bench import cases, plain
from prunefuse.bench.race import largest
from prunefuse.bench.shared import short, tolerance
from prunefuse.extrapolation import nearest_neighbors
from prunefuse.ops import reference

CHECKED = 64  # rows whose truth is computed
FLOAT, HALF = torch.float32, torch.bfloat16
# Of `ops.score_groups`: three strategies, the reduction's number, no threshold, what a sample without parts has.
MEAN, MAXIMUM = ((0, 1, 2), 0, 0.0, 0.0), ((0, 1, 2), 1, 0.0, 0.0)


@dataclass(frozen=True)
class Room:
    """Where inputs lie and how large they are: so that none is found in the cache of the call before."""

    device: torch.device
    nbytes: int  # of an input whose size is free
    cache: int  # bytes of the device's last cache

    def rows(self, row_bytes: int, wanted: int | None = None) -> int:
        """As many as fit into `nbytes`; or those wanted, in a rehearsal as many of them as fit."""
        fit = max(2, self.nbytes // row_bytes)
        return fit if wanted is None else wanted if self.device.type == "cuda" else min(wanted, fit)

    def rotating(self, make: Callable[[], tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
        """Three inputs or more, together larger than twice the cache."""
        inputs = [make() for _ in range(3)]
        while sum(t.nbytes for one in inputs for t in one) <= 2 * self.cache:
            inputs.append(make())
        return inputs

    def normal(self, *shape: int, dtype: torch.dtype = FLOAT) -> Tensor:
        return torch.randn(shape, device=self.device).mul_(2).to(dtype)


@dataclass(frozen=True)
class Work:
    """A point, ready to run.

    Attributes:
        title: What it is, with its sizes.
        inputs: Arguments of the calls in turn.
        ours: The call.
        error: Of what a call on the first inputs gives.
        tolerance: What it may be.
        amount: Bytes or FLOPs that cannot be avoided.
        unit: Of the amount per nanosecond.
        ceiling: Of those measured, the one that says how long that takes at best.
        eager: The same in plain torch.
    """

    title: str
    inputs: list[tuple[Any, ...]]
    ours: Callable[..., Any]
    error: Callable[[Any], float]
    tolerance: float
    amount: float
    unit: str = "GB/s"
    ceiling: str = "copy"
    eager: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Point:
    """A line of the table: its family (a line of the summary), what tells it from the others there, how to make it.

    ``compiled`` is what torch.compile is given beside it; ``counted`` points are looked at by Nsight Compute.
    """

    family: str
    label: str
    make: Callable[[Room], Work]
    compiled: Callable[..., Any] | None = None
    counted: bool = False


def points() -> tuple[Point, ...]:
    """The table."""
    classes = (10, 32, 64, 100, 256, 1000, 1024, 4096, 32_000, 50_257, 128_256)
    fused = {(10, FLOAT, 3), (1000, FLOAT, 3), (1000, HALF, 3), (128_256, HALF, 3)}
    counted = {(10, FLOAT, 3), (32, FLOAT, 3), (1000, FLOAT, 3), (1000, HALF, 3), (128_256, FLOAT, 3)}
    return (
        *(
            Point(
                f"score {short(dtype)}, {k} utilit{'y' if k == 1 else 'ies'}",
                f"{'C = ' if c == 10 else ''}{c}",
                partial(_score, c, dtype, k, None),
                plain.scores_fusible if (c, dtype, k) in fused else None,
                (c, dtype, k) in counted,
            )
            for k in (1, 3)
            for dtype in (FLOAT, HALF)
            for c in classes
        ),
        *(
            Point("score, few rows", f"{n:,} x 128,256 {short(dtype)}", partial(_score, 128_256, dtype, 3, n))
            for n in (33, 2000)
            for dtype in (FLOAT, HALF)
        ),
        *(
            Point(
                "ensemble 10 x 20,000 x 1,000",
                short(dtype),
                partial(_ensemble, dtype),
                plain.ensemble if dtype == FLOAT else None,
                dtype == FLOAT,
            )
            for dtype in (FLOAT, HALF)
        ),
        *(
            Point(
                "dynamics",
                f"C = {c:,} {short(dtype)}",
                partial(_dynamics, c, dtype),
                plain.dynamics if (c, dtype) == (1000, FLOAT) else None,
                (c, dtype) == (1000, FLOAT),
            )
            for c, dtype in ((10, FLOAT), (1000, FLOAT), (1000, HALF))
        ),
        Point("parts of samples, 3 utilities", "80 labels", partial(_labels, 80)),
        Point("parts of samples, 3 utilities", "pixels of 21 classes", partial(_pixels, 21)),
        Point("parts of samples, 3 utilities", "boxes of 80 classes", partial(_boxes, 80)),
        *(Point("top 10,000", f"of {n:,}", partial(_top_b, n)) for n in (1_000_000, 10_000_000)),
        Point("scatter", "ResNet-50", _scatter, counted=True),
        *(
            Point("k-center, 100 picks", f"{n:,} x {d}", partial(_k_center, n, d), counted=(n, d) == (50_000, 512))
            for n, d in ((50_000, 64), (70_000, 64), (50_000, 512), (1_000_000, 512))
        ),
        *(
            Point("neighbors, 10 of 131,072", f"d = {d}", partial(_neighbors, d), counted=d == 512)
            for d in (64, 128, 512)
        ),
    )  # fmt: skip


def _some(count: int, device: torch.device) -> Tensor:
    """Rows all over, the first and the last among them."""
    return torch.linspace(0, count - 1, min(CHECKED, count), device=device).round().long()


def _score(c: int, dtype: torch.dtype, k: int, n: int | None, room: Room) -> Work:
    strategies = (0, 1, 2) if k == 3 else (2,)
    rows = room.rows(c * dtype.itemsize, n)
    inputs = room.rotating(lambda: (room.normal(rows, c, dtype=dtype),))
    at = _some(rows, room.device)
    truth = reference.score(inputs[0][0][at].double(), strategies, False, 1.0)
    return Work(
        f"score {rows:,} x {c:,} {short(dtype)}, {k} utilit{'y' if k == 1 else 'ies'}",
        inputs,
        lambda x: ops.score(x, strategies, False, 1.0),
        lambda found: largest(found[:, at].double() - truth),
        tolerance(c),
        rows * c * dtype.itemsize + 4 * k * rows,
        eager=plain.scores_eager if k == 3 else _entropy,
    )


def _entropy(logits: Tensor) -> Tensor:
    log_p = torch.log_softmax(logits, 1, dtype=FLOAT)
    return -log_p.mul_(log_p.exp()).sum(1)[None]


def _ensemble(dtype: torch.dtype, room: Room) -> Work:
    passes, c = 10, 1000
    rows = room.rows(passes * c * dtype.itemsize, 20_000)
    inputs = room.rotating(lambda: (room.normal(passes, rows, c, dtype=dtype),))
    at = _some(rows, room.device)
    truth = reference.score_ensemble(inputs[0][0][:, at].double(), (0, 1, 2, 3), False, 1.0)
    return Work(
        f"ensemble {passes} x {rows:,} x {c:,} {short(dtype)}",
        inputs,
        lambda x: ops.score_ensemble(x, (0, 1, 2, 3), False, 1.0),
        lambda found: largest(found[:, at].double() - truth),
        tolerance(c),
        passes * rows * c * dtype.itemsize + 4 * 4 * rows,
        eager=lambda x: plain.ensemble(x.float()),
    )


def _dynamics(c: int, dtype: torch.dtype, room: Room) -> Work:
    rows = room.rows(c * dtype.itemsize)
    inputs = room.rotating(
        lambda: (room.normal(rows, c, dtype=dtype), torch.randint(c, (rows,), device=room.device))
    )
    x, labels = inputs[0]
    at = _some(rows, room.device)
    truth = reference.dynamics(x[at].double(), labels[at])
    return Work(
        f"dynamics {rows:,} x {c:,} {short(dtype)}",
        inputs,
        ops.dynamics,
        lambda found: largest((found[:, at].double() - truth) / truth.abs().clamp_min(1)),
        tolerance(c),
        rows * c * dtype.itemsize + 8 * rows + 6 * 4 * rows,
        eager=lambda x, labels: plain.dynamics(x.float(), labels),
    )


def _labels(c: int, room: Room) -> Work:
    rows = room.rows(4 * c)
    inputs = room.rotating(lambda: (room.normal(rows, c),))
    at = _some(rows, room.device)
    truth = plain.labels_mean(inputs[0][0][at].double())
    return Work(
        f"labels {rows:,} x {c:,} float32, 3 utilities",
        inputs,
        lambda x: ops.score_groups(x.unsqueeze(2), None, None, *MEAN, True, False, 1.0),
        lambda found: largest(found[:, at].double() - truth),
        tolerance(c),
        rows * 4 * c + 3 * 4 * rows,
        eager=plain.labels_mean,
    )


def _pixels(c: int, room: Room) -> Work:
    side = 512 if room.device.type == "cuda" else 8
    images = room.rows(4 * c * side**2)
    inputs = room.rotating(lambda: (room.normal(images, c, side, side),))
    at = torch.tensor([0, images - 1], device=room.device)
    truth = plain.pixels_mean(inputs[0][0][at].double())
    return Work(
        f"pixels {images:,} x {c:,} x {side} x {side} float32, 3 utilities",
        inputs,
        lambda x: ops.score_groups(x.flatten(2).transpose(1, 2), None, None, *MEAN, False, False, 1.0),
        lambda found: largest(found[:, at].double() - truth),
        tolerance(c),
        images * 4 * c * side**2 + 3 * 4 * images,
        eager=plain.pixels_mean,
    )


def _boxes(c: int, room: Room) -> Work:
    """The maximum over the boxes of every image, of which there are from 0 to 100."""
    images = room.rows(50 * 4 * c)
    sizes = torch.randint(101, (images,), device=room.device)
    offsets = torch.cat((sizes.new_zeros(1), sizes.cumsum(0)))
    image = torch.repeat_interleave(torch.arange(images, device=room.device), sizes)
    inputs = room.rotating(lambda: (room.normal(len(image), c),))
    x, at = inputs[0][0], _some(images, room.device)
    parts = [x[offsets[i] : offsets[i + 1]].double() for i in at]
    borders = torch.cat((sizes.new_zeros(1), sizes[at].cumsum(0)))
    truth = reference.score_groups(torch.cat(parts), borders, None, *MAXIMUM, False, False, 1.0)
    return Work(
        f"boxes {len(image):,} x {c:,} of {images:,} images float32, 3 utilities",
        inputs,
        lambda x: ops.score_groups(x, offsets, None, *MAXIMUM, False, False, 1.0),
        lambda found: largest(found[:, at].double() - truth),
        tolerance(c),
        len(image) * 4 * c + 3 * 4 * images,
        eager=lambda x: plain.boxes_max(x, image, images),
    )


def _top_b(n: int, room: Room) -> Work:
    n, b = (n, 10_000) if room.device.type == "cuda" else (n // 100, 100)
    inputs = room.rotating(lambda: (room.normal(n),))
    truth = inputs[0][0].sort(descending=True, stable=True).indices[:b]
    return Work(
        f"top {b:,} of {n:,}",
        inputs,
        lambda u: ops.top_b(u, b)[0],
        # Equals by lower index, which torch does not promise.
        lambda found: float((inputs[0][0][found] != inputs[0][0][truth]).sum()),
        0.0,
        4 * n + 12 * b,
        eager=lambda u: u.topk(b).indices,
    )


def _scatter(room: Room) -> Work:
    name = "torchvision:resnet50" if room.device.type == "cuda" else "resnet8"
    dense, small, kept = cases.scatter_inputs(name, 32, room.device)
    places = plain.index_tensors(dense, kept)
    truth = [t.clone() for t in dense]
    plain.index_put_loop(truth, small, places)
    inputs = room.rotating(lambda: tuple(t.clone() for t in (*dense, *small)))
    count = len(dense)

    def error(_: Any) -> float:
        written = inputs[0][:count]
        return max(largest((a - b).double()) for a, b in zip(written, truth, strict=True))

    return Work(
        f"scatter {name.split(':')[-1]}, {count} tensors",
        inputs,
        lambda *both: ops.scatter_(both[:count], both[count:], kept),
        error,
        0.0,
        2 * sum(t.nbytes for t in small),
        eager=lambda *both: plain.index_put_loop(both[:count], both[count:], places),
    )


def _neighbors(d: int, room: Room) -> Work:
    n, m, k = (16_384, 131_072, 10) if room.device.type == "cuda" else (64, 512, 10)
    inputs = room.rotating(lambda: (room.normal(n, d), room.normal(m, d)))
    queries, references = inputs[0]
    at = _some(n, room.device)
    truth = reference.nearest_neighbors(queries[at].double(), references.double(), k, False, 1.0, 0.0)[0]

    def eager(queries: Tensor, references: Tensor) -> Tensor:
        norms = references.square().sum(1)
        found = []
        for block in queries.split(4096):
            nearest = torch.addmm(norms, block, references.T, alpha=-2).topk(k, largest=False).values
            found.append((nearest + block.square().sum(1, keepdim=True)).clamp_min(0).sqrt())
        return torch.cat(found)

    return Work(
        f"neighbors {n:,} in {m:,} x {d}, k = {k}",
        inputs,
        lambda queries, references: nearest_neighbors(queries, references, k)[0],
        lambda found: largest(found[at].double() - truth),
        2 * torch.finfo(FLOAT).eps * largest(truth),
        2.0 * n * m * d,
        "GFLOP/s",
        "product float32",
        eager,
    )


def _k_center(n: int, d: int, room: Room) -> Work:
    n, picks = (n, 100) if room.device.type == "cuda" else (200, 10)
    inputs = room.rotating(lambda: (room.normal(n, d),))
    labeled = torch.zeros(1, dtype=torch.int64, device=room.device)

    def eager(x: Tensor) -> Tensor:
        norms = x.square().sum(1)
        nearest, center = torch.full_like(norms, torch.inf), labeled
        found = torch.empty(picks, dtype=torch.int64, device=room.device)
        for i in range(picks):
            nearest, center = plain.k_center_step(x, norms, nearest, center)
            found[i] = center[0]
        return found

    return Work(
        f"k-center {picks} of {n:,} x {d}",
        inputs,
        lambda x: ops.k_center_greedy(x, labeled, picks, -1),
        partial(_regret, inputs[0][0], labeled),
        1e-5,  # float32 cannot tell candidates apart that are as far
        picks * (4.0 * n * d + 4 * n),
        eager=eager,
    )


def _regret(x: Tensor, labeled: Tensor, picks: Tensor) -> float:
    """How much nearer than the farthest row a pick was at most, as a share of its squared distance."""
    if len(picks.unique()) < len(picks) or int(picks.min()) < 0:
        return math.inf
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    worst = torch.zeros((), dtype=torch.float64, device=x.device)
    center = labeled
    for pick in picks.split(1):
        for rows, distances in zip(x.split(100_000), nearest.split(100_000), strict=True):
            distances.copy_(torch.minimum(distances, (rows.double() - x[center].double()).square().sum(1)))
        worst = torch.maximum(worst, 1 - nearest[pick[0]] / nearest.max())
        center = pick
    return float(worst)


def ceilings(room: Room) -> list[tuple[str, Sequence[Callable[[], Any]], float]]:
    """What the device can do at best: name, calls in turn, bytes (read and written) or FLOPs of a call."""
    n = room.rows(4)
    side = 8192 if room.device.type == "cuda" else 64
    buffers = [(room.normal(n), room.normal(n)) for _ in range(3)]
    found: list[tuple[str, Sequence[Callable[[], Any]], float]] = [
        ("copy", [partial(to.copy_, source) for to, source in buffers], 8.0 * n),
        ("fill", [partial(to.fill_, 1.0) for to, _ in buffers], 4.0 * n),
    ]
    for name, dtype, precision in (
        ("float32", FLOAT, "ieee"),
        ("tf32", FLOAT, "tf32"),
        ("bfloat16", HALF, "ieee"),
    ):
        a, b = (room.normal(side, side, dtype=dtype) for _ in range(2))
        found.append((f"product {name}", [partial(_product, a, b, precision)], 2.0 * side**3))
    return found


def _product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = precision
    try:
        return a @ b
    finally:
        settings.fp32_precision = before
