"""Whole experts leave with their rows of the router, however a model's code applies the experts that the router chooses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunefuse.pruning import PruningPlan, plan_pruning

EXPERTS, WIDTH, INNER, TOKENS = 8, 16, 32, 24


class Mixture(nn.Module):
    """A router, experts whose weights are one parameter each, and a way to apply those that are chosen."""

    def __init__(self, apply, choose):
        super().__init__()
        self.a, self.router, self.b = nn.Linear(6, WIDTH), nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 3)
        self.up = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH))
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER))
        self.num_experts, self.top_k = EXPERTS, 2
        self.apply_experts, self.choose = apply, choose

    def forward(self, x):
        x = self.a(x)
        weights, picks = self.choose(self, self.router(x))
        return self.b(x + self.apply_experts(self, x, weights, picks))


def softmax_first(self, logits):
    weights, picks = logits.softmax(-1).topk(self.top_k, -1)
    return weights / weights.sum(-1, keepdim=True), picks


def softmax_last(self, logits):
    values, picks = torch.topk(logits, self.top_k, dim=-1)
    return values.softmax(-1), picks


def one_by_max(self, logits):
    value, pick = logits.softmax(-1).max(-1, keepdim=True)
    return value, pick


def one_by_argmax(self, logits):
    pick = logits.argmax(-1, keepdim=True)
    return logits.sigmoid().gather(-1, pick), pick


def in_groups(self, logits):
    """Of two groups the better one, by the sum of its best two."""
    groups = logits.view(-1, 2, self.num_experts // 2)
    sums = groups.topk(2, -1)[0].sum(-1)
    best = sums.topk(1, -1, sorted=False)[1]
    mask = torch.zeros_like(sums).scatter_(1, best, 1).unsqueeze(-1)
    mask = mask.expand(-1, 2, self.num_experts // 2).reshape(-1, self.num_experts)
    picks = logits.masked_fill(~mask.bool(), float("-inf")).topk(self.top_k, -1, sorted=False)[1]
    return logits.sigmoid().gather(1, picks), picks


def grouped(self, x, weights, picks):
    """Tokens in the order of their experts, and a product that is told where each expert's end."""
    of_expert, order = picks.reshape(-1).sort()
    count = torch.histc(of_expert.float(), bins=self.num_experts, min=0, max=self.num_experts - 1)
    ends = count.cumsum(0, dtype=torch.int32)
    y = torch._grouped_mm(x[order // picks.shape[-1]], self.up.transpose(1, 2), offs=ends).relu()
    y = torch._grouped_mm(y, self.down.transpose(1, 2), offs=ends) * weights.reshape(-1)[order, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return y[back].view(len(x), -1, y.shape[-1]).sum(1)


def picked(self, x, weights, picks):
    """The weights of every chosen expert, once for each token."""
    rows, which = x.repeat_interleave(picks.shape[-1], 0), picks.reshape(-1)
    y = torch.bmm(self.up[which], rows.unsqueeze(-1)).relu()
    y = torch.bmm(self.down[which], y).squeeze(-1) * weights.reshape(-1, 1)
    return y.view(len(x), -1, y.shape[-1]).sum(1)


def looped(self, x, weights, picks):
    """One expert after the other, of those that are chosen at all."""
    out = torch.zeros_like(x)
    chosen = F.one_hot(picks, self.num_experts).permute(2, 1, 0)
    for hit in (chosen.sum((-1, -2)) > 0).nonzero():
        expert = hit[0]
        place, token = torch.where(chosen[expert])
        y = F.linear(F.linear(x[token], self.up[expert]).relu(), self.down[expert])
        out.index_add_(0, token, y * weights[token, place, None])
    return out


def dense(self, x, weights, picks):
    """All experts, times a weight that is zero for those that are not chosen."""
    gates = torch.zeros(len(x), self.num_experts, dtype=x.dtype).scatter(1, picks, weights)
    y = torch.einsum("td,eid->tei", x, self.up).relu()
    return torch.einsum("tei,edi,te->td", y, self.down, gates)


def summed(self, x, weights, picks):
    """Every expert on all tokens, which are repeated for each, and a sum by hand."""
    gates = torch.zeros(len(x), self.num_experts, dtype=x.dtype).scatter(1, picks, weights)
    y = x.repeat(self.num_experts, 1) * gates.ne(0).to(x.dtype).T.reshape(-1, 1)
    y = torch.bmm(y.view(self.num_experts, len(x), -1), self.up.mT).relu()
    return (torch.bmm(y, self.down.mT) * gates.T[..., None]).sum(0)


WAYS = [grouped, picked, looped, dense, summed]
CHOICES = [softmax_first, softmax_last, one_by_max, one_by_argmax, in_groups]


def made(apply, choose):
    torch.manual_seed(0)
    return Mixture(apply, choose), torch.randn(TOKENS, 6)


def without(model, plan):
    """The dense model, whose router chooses none of those that left."""
    model = copy.deepcopy(model)
    gone = sorted(set(range(EXPERTS)) - set(plan.kept["router.weight"][0]))
    with torch.no_grad():
        model.router.bias[gone] = -1e9
    return model


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize("apply", WAYS)
def test_experts_that_left_are_as_experts_that_no_token_chooses(apply, choose, tmp_path):
    model, x = made(apply, choose)
    plan = plan_pruning(model, x, ratio=0, ratios={"router": 0.5})
    small = plan.extract(model)
    assert [tuple(w.shape) for w in (small.up, small.down)] == [(4, INNER, WIDTH), (4, WIDTH, INNER)]
    assert small.router.out_features == 4
    torch.testing.assert_close(small(x), without(model, plan)(x))
    small(x).square().sum().backward()
    assert small.up.grad.any()
    assert small.router.weight.grad.any()
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json").kept == plan.kept


@pytest.mark.parametrize("apply", WAYS)
def test_experts_and_their_channels_leave(apply):
    model, x = made(apply, softmax_first)
    plan = plan_pruning(model, x, ratio=0.5)
    small = plan.extract(model)
    assert tuple(small.up.shape) == (4, INNER // 2, WIDTH // 2)
    assert tuple(small.down.shape) == (4, WIDTH // 2, INNER // 2)
    assert small(x).shape == (TOKENS, 3)


@pytest.mark.parametrize("apply", WAYS)
@pytest.mark.parametrize(("choose", "least"), [(softmax_first, 2), (one_by_max, 1), (in_groups, 4)])
def test_as_many_experts_stay_as_the_router_chooses(apply, choose, least):
    model, x = made(apply, choose)
    small = plan_pruning(model, x, ratio=0.95).extract(model)
    assert small.up.shape[0] == small.router.out_features == least
    assert small(x).shape == (TOKENS, 3)


def test_experts_stay_where_their_router_is_ignored():
    model, x = made(grouped, softmax_first)
    small = plan_pruning(model, x, ratio=0.5, ignore=["router.weight"]).extract(model)
    assert tuple(small.up.shape) == (EXPERTS, INNER // 2, WIDTH // 2)


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(("dtype", "multiple"), [(torch.float32, 4), (torch.bfloat16, 8)])
def test_grouped_products_get_rows_that_their_kernel_takes(ratio, dtype, multiple):
    model, x = made(grouped, softmax_first)
    model, x = model.to(dtype), x.to(dtype)
    small = plan_pruning(model, x, ratio=ratio).extract(model)
    assert small.up.shape[1] % multiple == small.up.shape[2] % multiple == 0
    assert small.up.shape[1] < INNER
    assert small(x).isfinite().all()


class Stays(nn.Module):
    """Something that chooses channels by their values, and is no router of experts."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b = nn.Linear(6, EXPERTS), nn.Linear(EXPERTS, 3)
        self.experts = nn.ModuleList(nn.Linear(EXPERTS, EXPERTS) for _ in range(EXPERTS))
        self.table = nn.Parameter(torch.randn(EXPERTS, 4, 5))
        self.of_forward = forward

    def forward(self, x):
        return self.of_forward(self, self.a(x))


def largest_alone(self, x):
    values, picks = x.topk(3, -1)
    return self.b(torch.zeros_like(x).scatter(-1, picks, values))


def sum_of_largest(self, x):
    values, picks = x.topk(3, -1)
    return self.b(x) + values.sum(-1, keepdim=True) + x.gather(-1, picks).sum(-1, keepdim=True)


def modules_by_number(self, x):
    picks = x.argmax(-1)
    return sum(expert(x) * (picks == n)[:, None] for n, expert in enumerate(self.experts)).sum(-1)


def weights_by_number_and_code(self, x):
    weights, picks = x.topk(2, -1)
    favored = (picks == 3).to(x.dtype) + 1
    return (self.table[picks].sum((-1, -2)) * weights * favored).sum(-1)


def places_as_output(self, x):
    weights, picks = x.topk(2, -1)
    return self.table[picks].sum((-1, -2)) * weights, picks


def values_as_output(self, x):
    weights, picks = x.topk(2, -1)
    return self.table[picks].sum((-1, -2)) * weights, x


STAY = [
    *(largest_alone, sum_of_largest, modules_by_number),
    *(weights_by_number_and_code, places_as_output, values_as_output),
]


@pytest.mark.parametrize("forward", STAY)
def test_what_is_chosen_from_stays_where_it_is_no_expert_or_its_number_counts(forward):
    torch.manual_seed(0)
    model = Stays(forward)
    with pytest.raises(ValueError, match="nothing was pruned"):
        plan_pruning(model, torch.randn(4, 6), ratio=0.5)


def test_weights_picked_by_number_lose_the_entries_that_no_number_picks():
    model = Stays(lambda self, x: (self.table[x.topk(2, -1)[1]].sum((-1, -2)) * x.topk(2, -1)[0]).sum(-1))
    plan = plan_pruning(model, torch.randn(4, 6), ratio=0.5)
    assert plan.extract(model).table.shape[0] == len(plan.kept["a.weight"][0]) == 4


class Stack(nn.Module):
    """Mixtures beside a router that looks at a number of experts of its own, and a model that balances them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (Counting(count) for count in (8, 8))
        self.num_experts = 8
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x)))


class Router(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.num_experts = count
        self.weight = nn.Parameter(torch.randn(count, WIDTH))

    def forward(self, x):
        return F.linear(x, self.weight)


class Counting(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.gate, self.experts = Router(count), Mixed(count)
        self.other = Other(count)

    def forward(self, x):
        weights, picks = self.gate(x).softmax(-1).topk(2, -1)
        return x + self.experts(x, weights, picks) + self.other(x)


class Mixed(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.num_experts = count
        self.up = nn.Parameter(torch.randn(count, INNER, WIDTH))
        self.down = nn.Parameter(torch.randn(count, WIDTH, INNER))

    forward = grouped


class Other(nn.Module):
    """Has a number of the same name and size, of what stays."""

    def __init__(self, count):
        super().__init__()
        self.num_experts = count

    def forward(self, x):
        return x.view(len(x), self.num_experts, -1).softmax(1).flatten(1)


def test_the_number_of_experts_changes_in_routers_and_models_around_them():
    torch.manual_seed(0)
    model, x = Stack(), torch.randn(TOKENS, WIDTH)
    small = plan_pruning(model, x, ratio=0, ratios={"*.gate": 0.5}).extract(model)
    assert small.num_experts == small.first.gate.num_experts == small.second.experts.num_experts == 4
    assert small.first.other.num_experts == 8
    assert small(x).shape == (TOKENS, 3)


def test_what_has_a_scale_of_three_axes_is_no_expert():
    """Channels of a backbone beside a choice of something else."""

    class Detects(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.classes = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Linear(8, 5)
            self.scale, self.table = nn.Parameter(torch.rand(8, 1, 1)), nn.Parameter(torch.rand(5, 2))

        def forward(self, x):
            x = (self.a(x) * self.scale).softmax(1)
            return self.b(x), self.table[self.classes(x.mean((2, 3))).topk(2)[1]]

    with pytest.raises(ValueError, match="normalizes over channels"):
        plan_pruning(Detects(), torch.randn(2, 3, 5, 5), ratio=0.5)
