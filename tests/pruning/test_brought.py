"""What models do that people bring beside classifiers: experts, regions of images, functions that remember."""

from __future__ import annotations

import functools

import pytest
import torch
from pruning_oracle import assert_pruning_is_masking, scramble_
from torch import nn
from torchvision import ops

from prunefuse.pruning import plan_pruning


class Experts(nn.Module):
    """Rows in the order of their experts, each multiplied by the matrix of its own."""

    def __init__(self, transposed: bool, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.a, self.b = nn.Linear(16, 32, dtype=dtype), nn.Linear(16, 3, dtype=dtype)
        shapes = ((4, 32, 64), (4, 32, 16))
        shapes = tuple((e, m, k) if transposed else (e, k, m) for e, k, m in shapes)
        self.up, self.down = (nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes)
        self.transposed = transposed

    def forward(self, x):
        ends = torch.tensor([8, 8, 16, 24], dtype=torch.int32)
        up, down = (w.transpose(1, 2) if self.transposed else w for w in (self.up, self.down))
        gate, value = torch._grouped_mm(self.a(x), up, offs=ends).chunk(2, -1)
        return self.b(torch._grouped_mm(gate.sigmoid() * value, down, offs=ends))


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_lose_channels_inside(transposed):
    model = scramble_(Experts(transposed)).bfloat16()
    x = torch.randn(24, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    plan = plan_pruning(model, x, ratio=0.5)
    small = assert_pruning_is_masking(model, plan, x, tolerance=0.05)
    up, down = (4, 16, 32), (4, 16, 8)
    if transposed:
        up, down = ((e, m, k) for e, k, m in (up, down))
    assert (tuple(small.up.shape), tuple(small.down.shape)) == (up, tuple(down))
    dense, few = plan.flops
    assert dense == 2 * (16 * 32 + 32 * 64 + 32 * 16 + 16 * 3)
    assert few == 2 * (16 * 16 + 16 * 32 + 16 * 8 + 8 * 3)


@pytest.mark.parametrize("pool", [ops.roi_align, ops.roi_pool])
def test_regions_of_images_lose_channels(pool):
    class Regions(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 4, 2)

        def forward(self, x, boxes):
            return self.head(pool(self.features(x), boxes, 2).flatten(1))

    model = scramble_(Regions()).double()
    boxes = torch.tensor([[0, 1.0, 1, 6, 6], [1, 0, 2, 5, 7], [1, 2, 2, 4, 4]]).double()
    inputs = (torch.randn(2, 3, 12, 12).double(), boxes)
    plan = plan_pruning(model, inputs, ratio=0.5)
    small = assert_pruning_is_masking(model, plan, *inputs)
    assert small.features.out_channels == 4


@pytest.mark.parametrize("keepdim", [False, True])
def test_a_sum_of_what_a_parameter_weighs_is_a_linear_map(keepdim):
    """As the attention of graph networks computes a number of every node."""

    class Weighs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 3)
            self.weight = nn.Parameter(torch.randn(1, 1, 32))

        def forward(self, x):
            h = self.a(x).unsqueeze(1)
            weights = (h * self.weight).sum(-1, keepdim=keepdim).view(-1, 1)
            return self.b(h.squeeze(1) * weights.sigmoid())

    model, x = scramble_(Weighs()).double(), torch.randn(5, 8).double()
    plan = plan_pruning(model, x, ratio=0.5)
    small = assert_pruning_is_masking(model, plan, x)
    assert small.weight.shape == (1, 1, 16)


def test_a_count_that_values_decide_is_none_of_channels():
    """How many rows a threshold leaves differs between the dense and the small model, as how many boxes are found does."""

    class Threshold(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.score, self.b = nn.Linear(8, 32), nn.Linear(32, 1), nn.Linear(32, 3)

        def forward(self, x):
            h = self.a(x)
            found = torch.where(self.score(h)[:, 0] > 0)[0]
            rows = torch.zeros(len(found), h.shape[1], dtype=h.dtype)
            rows[torch.arange(len(found))] = h[found]
            return self.b(rows)

    model, x = scramble_(Threshold()).double(), torch.randn(40, 8).double()
    plan = plan_pruning(model, x, ratio=0.5)
    small = assert_pruning_is_masking(model, plan, x)
    assert len(small(x)) != len(model(x))
    assert small.a.out_features == 16


@functools.lru_cache
def grid(size):
    return torch.arange(float(size))


@functools.lru_cache
def grids(size):
    return [torch.arange(float(size)), torch.ones(size)]


@pytest.mark.parametrize("remembered", [grid, lambda size: sum(grids(size))], ids=["tensor", "list"])
def test_a_function_that_remembers_does_not_remember_a_run_without_values(remembered):
    class Places(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.b(self.a(x) + remembered(x.shape[-1]))

    model, x = scramble_(Places()), torch.randn(2, 3, 6, 6)
    grid.cache_clear()
    grids.cache_clear()
    small = plan_pruning(model, x, ratio=0.5).extract(model)
    assert small(x).isfinite().all()
    assert model(x).isfinite().all()


def test_channels_stay_that_only_a_loop_over_what_is_found_reads():
    """As the points of a detector that finds nothing in the example."""

    class Finds(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.points = nn.Linear(4, 8), nn.Linear(8, 6)

        def forward(self, x):
            found = self.points(self.features(x)[x[:, 0] > 0])
            places = torch.zeros(len(found), 6, dtype=x.dtype)
            for n in range(len(found)):
                places[n] = found[n].sin()
            return places

    model = scramble_(Finds()).double()
    nothing, something = -torch.rand(5, 4).double(), torch.rand(5, 4).double()
    plan = plan_pruning(model, nothing, ratio=0.5)
    small = assert_pruning_is_masking(model, plan, something)
    assert (small.features.out_features, small.points.out_features) == (4, 6)
    assert any("no object at all in the example run" in note for note in plan.notes)
