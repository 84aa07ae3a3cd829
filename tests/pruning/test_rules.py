"""What each operator does to the channels that pass through it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pruning_oracle import Between, assert_pruning_is_masking, plan_and_check, scramble_
from torch import nn

from prunefuse.models import ChannelPad
from prunefuse.pruning import plan_pruning, register_padding, register_rule, register_sizes

RAMP = torch.arange(8.0, dtype=torch.float64).view(8, 1, 1)
PASSING = {
    "relu": F.relu,
    "relu in place": lambda x: F.relu(x, inplace=True),
    "sub in place": lambda x: x.sub_(1),
    "clamp": lambda x: x.clamp(0, 6),
    "swish": lambda x: x * x.sigmoid(),
    "scalars": lambda x: 2 * x / 3 + 1,
    "where": lambda x: torch.where(x > 0, x, -x),
    "lerp": lambda x: torch.lerp(x, x.relu(), 0.3),
    "masked fill": lambda x: x.masked_fill(x < 0, 0.5),
    "double and back": lambda x: x.to(torch.float32).to(torch.float64),
    "batch norm": nn.BatchNorm2d(8),
    "batch norm without statistics": nn.BatchNorm2d(8, track_running_stats=False),
    "batch norm without affine": nn.BatchNorm2d(8, affine=False),
    "instance norm": nn.InstanceNorm2d(8, affine=True),
    "instance norm with statistics": nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "prelu": nn.PReLU(8),
    "one prelu": nn.PReLU(),
    "dropout": nn.Dropout(0.5),
    "dropout of channels": nn.Dropout2d(0.5),
    "max pool": nn.MaxPool2d(2),
    "average pool": nn.AvgPool2d(3, stride=2, padding=1),
    "adaptive pools": lambda x: F.adaptive_avg_pool2d(x, 3) + F.adaptive_max_pool2d(x, 3),
    "pool of lines": lambda x: F.max_pool1d(x.flatten(2), 2).unsqueeze(-1),
    "resize": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "resize bilinear": lambda x: F.interpolate(x, size=(4, 5), mode="bilinear"),
    "zeros around": lambda x: F.pad(x, (1, 1, 2, 0)),
    "reflection around": lambda x: F.pad(x, (1, 1, 2, 0), mode="reflect"),
    "crop": lambda x: F.pad(x, (-1, 0, 0, -1)),
    "every second pixel": lambda x: x[:, :, ::2, 1::2],
    "all channels": lambda x: x[:, :],
    "narrow": lambda x: x.narrow(2, 1, 3),
    "one row": lambda x: x[:, :, 0].unsqueeze(2),
    "rows": lambda x: sum(x.unbind(2)).unsqueeze(-2),
    "halves of rows": lambda x: torch.cat(x.chunk(2, 3), 2),
    "squeeze": lambda x: x.unsqueeze(0).squeeze(0),
    "channels last": lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, -1),
    "flatten and back": lambda x: x.flatten(2).unflatten(2, (3, 12)),
    "view": lambda x: x.view(x.size(0), x.size(1), -1).reshape(x.size(0), -1, 6, 6),
    "through a flat axis": lambda x: x.flatten(1).view(x.size(0), -1, 6, 6),
    "to tokens": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).unsqueeze(2),
    "stack": lambda x: torch.stack([x, x.relu()]).sum(0),
    "sums": lambda x: x.sum(-1, keepdim=True) + x.amax(2, keepdim=True),
    "softmax of pixels": lambda x: x.softmax(3),
    "log softmax of pixels": lambda x: x.flatten(2).log_softmax(-1).unsqueeze(3),
    "like": lambda x: x + torch.ones_like(x),
    "product with pixels": lambda x: torch.matmul(x, x.transpose(2, 3)),
    "expanded pixels": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 3),
    "split sizes": lambda x: torch.cat(x.split([2, 4], 2)[::-1], 2),
    "no gradient": lambda x: x.detach(),
    "one group": nn.Conv2d(8, 8, 3, padding="same"),
    "depthwise": nn.Conv2d(8, 8, 3, groups=8),
    "two groups": nn.Conv2d(8, 8, 3, groups=2),
    "transposed convolution": nn.ConvTranspose2d(8, 8, 3, stride=2),
    "shuffle": lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
    "shuffle in four": nn.ChannelShuffle(4),
    "halves": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "halves by slices": lambda x: torch.cat([x[:, x.size(1) // 2 :], x[:, : x.size(1) // 2]], 1),
    "sum of a factor": lambda x: (
        x.unflatten(1, (2, -1)).sum(1, keepdim=True).expand(-1, 2, -1, -1, -1).flatten(1, 2)
    ),
    "pixel shuffles": lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2),
    "gated by itself": lambda x: F.glu(torch.cat([x, x.relu()], 1), 1),
    "gated": lambda x: F.glu(x, 1).repeat(1, 2, 1, 1),
    "more pixels": lambda x: F.pixel_shuffle(x, 2).repeat_interleave(4, 1),
    "rolled pixels": lambda x: x.roll((1, 2), (2, 3)),
    "picked pixels": lambda x: x[:, :, torch.tensor([0, 2, 4])],
    "einsum": lambda x: torch.einsum("nchw,nchv->ncwv", x, x),
    "unfold and fold": lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1),
    "clone and fill": lambda x: x.clone() + x.clone().fill_(2),
}


@pytest.mark.parametrize("function", PASSING.values(), ids=PASSING.keys())
def test_channels_pass(function):
    plan, _, widths = plan_and_check(Between(function))
    assert widths["first"] == 4
    assert plan.notes == ()


FREEZING = {
    "slice": (lambda x: x[:, 2:], 6, "its forward needs sizes that no pruned module has"),
    "one and the rest": (lambda x: x[:, 1:], 7, "cuts a channel axis"),
    "chunk": (lambda x: torch.cat(x.chunk(3, 1)[::-1], 1), 8, "cuts a channel axis"),
    "one channel": (lambda x: x[:, 3].unsqueeze(1), 1, "picks one channel"),
    "softmax": (lambda x: x.softmax(1), 8, "normalizes over channels"),
    "mean": (lambda x: x.mean(1, keepdim=True), 1, "reduces over channels"),
    "mean of all": (lambda x: x + x.mean(), 8, "reduces over channels"),
    "shuffle by a number": (
        lambda x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2),
        8,
        "its forward needs sizes that no pruned module has",
    ),
    "both factors": (
        lambda x: torch.cat([x.unflatten(1, (2, -1)).sum(1), x.unflatten(1, (2, -1)).sum(2)], 1),
        6,
        "splits a channel axis",
    ),
    "factors that cross": (
        lambda x: x.transpose(1, 3).reshape(x.size(0), 6, 16, -1).transpose(1, 3),
        3,
        "splits a channel axis, or merges two",
    ),
    "pad in the code": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), 11, "register_padding"),
    "mirrored channels": (
        lambda x: F.pad(x.transpose(1, 3), (1, 0, 0, 0), mode="replicate").transpose(1, 3),
        9,
        "crops channels",
    ),
    "pooled channels": (
        lambda x: F.max_pool2d(x.transpose(1, 3), (1, 2)).transpose(1, 3),
        4,
        "pools or resizes a channel axis",
    ),
    "unknown": (lambda x: x.renorm(1, 1, 1.0), 8, "no rule for aten::renorm"),
    "unknown on pixels": (lambda x: x.matrix_exp(), 8, "no rule for aten::linalg_matrix_exp"),
}


@pytest.mark.parametrize(("function", "channels", "reason"), FREEZING.values(), ids=FREEZING.keys())
def test_channels_stay_and_the_plan_says_why(function, channels, reason):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.prunable = nn.Conv2d(3, 6, 1)
            self.then = nn.Conv2d(6, 3, 1)
            self.block = Between(function, channels)

        def forward(self, x):
            return self.block(self.then(self.prunable(x)))

    plan, _, widths = plan_and_check(Net())
    assert widths["block.first"] == 8
    assert widths["prunable"] == 3  # and no more than that stays
    (note,) = plan.notes
    assert reason in note
    assert "block" in note
    if "no rule" in reason:
        assert "add one with register_rule" in note
    assert note in plan.summary()


@pytest.mark.parametrize("function", [lambda x: x * RAMP, lambda x: x + x.new_ones(8, 1, 1)])
def test_channels_that_meet_constants_in_the_code_stay(function):
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1), Between(function))
    _, _, widths = plan_and_check(model)
    assert widths == {"0": 3, "1": 1, "2.first": 8, "2.last": 2}


def test_sum_with_the_input_stays():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = x + self.b(self.a(x).relu())
            return self.c(x)

    model = scramble_(Net()).double()
    x = torch.randn(4, 8).double()
    plan = plan_pruning(model, x)
    assert_pruning_is_masking(model, plan, x)
    assert [layer.width_after for layer in plan.layers] == [4, 8, 8]


class Functional(nn.Module):
    """Weights used directly, by matmul, addmm and linear; one of them twice, one of them never."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.empty(5, 8))
        self.b = nn.Parameter(torch.empty(8, 6))
        self.bias = nn.Parameter(torch.empty(6))
        self.c = nn.Parameter(torch.empty(2, 6))
        self.square = nn.Parameter(torch.empty(6, 6))
        self.unused = nn.Parameter(torch.empty(7, 7))

    def forward(self, x):
        x = (x @ self.a).tanh()
        x = torch.addmm(self.bias, x, self.b)
        x = F.linear(F.linear(x, self.square).tanh(), self.square)
        return F.linear(x, self.c)


def test_weights_used_by_functions():
    model = scramble_(Functional()).double()
    x = torch.randn(3, 5).double()
    plan = plan_pruning(model, x)
    small = assert_pruning_is_masking(model, plan, x)
    shapes = {name: tuple(p.shape) for name, p in small.named_parameters()}
    assert shapes == {"a": (5, 4), "b": (4, 3), "bias": (3,), "c": (2, 3), "square": (3, 3), "unused": (7, 7)}
    # A weight used twice is tied to itself, and its work counts twice.
    assert plan.kept["square"][0] == plan.kept["square"][1]
    assert plan.flops[1] == 2 * (5 * 4 + 4 * 3 + 2 * 9 + 3 * 2)
    assert "unused" in plan.notes[0]


def test_shared_modules_and_tied_weights_stay_shared_and_tied():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
            self.c.weight = self.b.weight
            self.again = nn.Sequential(self.b, nn.ReLU())
            self.d = nn.Linear(8, 2)

        def forward(self, x):
            return self.d(self.c(self.again(self.b(self.a(x)))))

    model = scramble_(Net()).double()
    x = torch.randn(3, 4).double()
    plan = plan_pruning(model, x)
    small = plan.extract(model)
    assert small.c.weight is small.b.weight
    assert small.again[0] is small.b
    assert small.b.weight.shape == (4, 4)
    assert small.c.in_features == small.c.out_features == small.b.in_features == 4
    assert_pruning_is_masking(model, plan, x)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_of_all_dimensions_with_and_without_a_batch(dims):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    model = scramble_(
        nn.Sequential(conv(2, 6, 3), nn.ReLU(), conv(6, 4, 2, stride=2), conv(4, 3, 1))
    ).double()
    for shape in ((2, 2, *[7] * dims), (2, *[7] * dims)):
        x = torch.randn(shape).double()
        plan = plan_pruning(model, x)
        small = assert_pruning_is_masking(model, plan, x)
        assert [len(p) for p in small.parameters() if p.ndim > 1] == [3, 2, 3]


class Tail(nn.Module):
    """Pads its input on the right by an attribute of its own."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more
        self.none = 0

    def forward(self, x):
        return F.pad(x, (0, 0, 0, 0, self.none, self.more))


def test_padding_modules_are_repaired():
    register_padding(Tail, ("none", "more"))

    class Net(nn.Module):
        def __init__(self, pad, channels):
            super().__init__()
            self.a, self.pad = nn.Conv2d(3, 6, 1), pad
            self.b, self.c = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 2, 1)

        def forward(self, x):
            return self.c(self.pad(self.a(x)) + self.b(x)).mean((2, 3))

    for pad, channels, amounts in (
        (ChannelPad(2, 4), 12, lambda m: (m.left, m.right)),
        (Tail(3), 9, lambda m: (m.none, m.more)),
        (nn.ConstantPad3d((0, 0, 0, 0, 1, 4), 0.5), 11, lambda m: m.padding[4:]),
    ):
        before = amounts(pad)
        plan, small, widths = plan_and_check(Net(pad, channels))
        kept = plan.kept["b.weight"][0]
        assert len(kept) == channels // 2 == widths["b"]
        assert widths["a"] == 3
        assert amounts(small.pad) == (
            sum(i < before[0] for i in kept),
            sum(i >= channels - before[1] for i in kept),
        )
        assert amounts(pad) == before
        assert plan.notes == ()


def test_a_padding_module_called_twice_keeps_one_amount():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pad = ChannelPad(2, 2)
            self.layers = nn.ModuleList(nn.Conv2d(3, n, 1) for n in (4, 8, 4, 8))
            self.heads = nn.ModuleList(nn.Conv2d(8, 2, 1) for _ in range(2))

        def forward(self, x):
            a, b, c, d = (layer(x) for layer in self.layers)
            return (self.heads[0](self.pad(a) + b) + self.heads[1](self.pad(c) + d)).mean((2, 3))

    model = scramble_(Net()).double()
    with torch.no_grad():
        model.layers[1].weight[:2] = 100  # on its own the one call would keep the channels on the left,
        model.layers[3].weight[6:] = 90  # and the other those on the right
    image = torch.randn(2, 3, 4, 4).double()
    plan = plan_pruning(model, image)
    small = assert_pruning_is_masking(model, plan, image)
    assert (small.pad.left, small.pad.right) == (2, 0)
    assert [layer.width_after for layer in plan.layers] == [2, 4, 2, 4, 2, 2]
    assert plan.notes == ()


class Scaled(nn.Module):
    """A layer that keeps its width under a name of its own and gives it to an operator."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.empty(outputs, inputs))
        self.width = outputs

    def forward(self, x):
        return F.linear(x, self.matrix).view(-1, self.width)


class Written(Scaled):
    """A layer that compares its width with a number in its code."""

    def forward(self, x):
        y = F.linear(x, self.matrix)
        if y.size(-1) != 8:
            raise ValueError("another width")
        return y


def test_attributes_that_operators_get_as_a_size_are_repaired():
    model = scramble_(nn.Sequential(Scaled(4, 8), nn.ReLU(), nn.Linear(8, 2))).double()
    x = torch.randn(3, 4).double()
    assert assert_pruning_is_masking(model, plan_pruning(model, x), x)[0].width == 4


def test_a_width_that_is_written_in_the_code_is_named():
    model = scramble_(nn.Sequential(Written(4, 8), nn.ReLU(), nn.Linear(8, 2))).double()
    x = torch.randn(3, 4).double()
    plan = plan_pruning(model, x)
    with pytest.raises(
        ValueError, match=r"another width \(in module '0' \(Written\)\)\. It has a channel count"
    ):
        plan.extract(model)


def test_a_module_of_ones_own_says_where_its_sizes_are():
    class Mine(Scaled):
        """A type whose attribute nobody compares, nor gives to an operator."""

        def forward(self, x):
            return F.linear(x, self.matrix)

    model = scramble_(nn.Sequential(Mine(4, 8), nn.ReLU(), nn.Linear(8, 2))).double()
    x = torch.randn(3, 4).double()
    assert plan_pruning(model, x).extract(model)[0].width == 8
    register_sizes(Mine, {("matrix", 0): "width"})
    assert assert_pruning_is_masking(model, plan_pruning(model, x), x)[0].width == 4


@torch.library.custom_op("prunefuse_tests::rotate", mutates_args=())
def rotated(x: torch.Tensor, times: int, dims: list[int]) -> torch.Tensor:
    return x.rot90(times, dims).clone()


@torch.library.custom_op("prunefuse_tests::flip", mutates_args=())
def flipped(x: torch.Tensor, dim: int) -> torch.Tensor:
    return x.flip(dim)


rotated.register_fake(lambda x, times, dims: x.rot90(times, dims).clone())
rotated.register_autograd(
    lambda ctx, gradient: (gradient.rot90(-ctx.times, ctx.dims), None, None),
    setup_context=lambda ctx, inputs, output: vars(ctx).update(times=inputs[1], dims=inputs[2]),
)
flipped.register_fake(lambda x, dim: torch.empty_like(x))


def test_an_operator_of_ones_own_gets_a_rule_in_five_lines():
    model = Between(lambda x: rotated(x, 1, [2, 3]))
    with pytest.raises(ValueError, match=r"nothing was pruned .*no rule for prunefuse_tests::rotate"):
        plan_pruning(model, torch.zeros(1, 3, 6, 6))

    @register_rule("prunefuse_tests::rotate")
    def rotate(call, x, times, dims):
        for d in dims:
            call.keep(x.axes[d], "rotates channels")
        return x

    plan, _, widths = plan_and_check(model)
    assert widths["first"] == 4
    assert plan.notes == ()
    with pytest.raises(ValueError, match="rotates channels"):
        plan_pruning(Between(lambda x: rotated(x, 2, [1, 2])), torch.zeros(1, 3, 6, 6))


def test_a_faulty_rule_is_named():
    register_rule("prunefuse_tests::flip")(lambda call, x, dim: call.fixed_output().with_axis(0, x.axes[1]))
    with pytest.raises(
        RuntimeError, match=r"the rule for prunefuse_tests::flip failed in module ''.*\(8, 8, 6, 6\)"
    ):
        plan_pruning(Between(lambda x: flipped(x, 2)), torch.zeros(1, 3, 6, 6))
    with pytest.raises(ValueError, match=r"operators must be names like .*got 'flip'"):
        register_rule("flip")


def test_parts_of_a_model_without_gradients_or_under_autocast_are_looked_into():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = self.a(x)
            with torch.no_grad():
                y = x * 2
            with torch.autocast("cpu", enabled=False):
                y = self.b(x + y)
            return self.c(y)

    model, x = scramble_(Net()).double(), torch.randn(3, 4).double()
    plan = plan_pruning(model, x)
    assert_pruning_is_masking(model, plan, x)
    assert [layer.width_after for layer in plan.layers] == [4, 3, 2]
    assert plan.notes == ()


class Parts(nn.Module):
    """Unequal parts of channels, at places that it holds."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 20, 1), nn.Conv2d(14, 2, 1)
        self.first, self.sizes = 6, [6, 14]

    def forward(self, x):
        x = self.a(x)
        y = self.b(x)
        y = torch.cat([y[:, : self.first] + x, y[:, self.first :]], 1)
        return self.c(y.split(self.sizes, 1)[1])


def test_attributes_that_cut_channels_in_parts_are_repaired():
    model, x = scramble_(Parts()).double(), torch.randn(2, 3, 5, 5).double()
    plan = plan_pruning(model, x)
    small = assert_pruning_is_masking(model, plan, x)
    assert (small.first, small.sizes) == (3, [3, 7])
    assert plan.notes == ()


def test_a_number_that_is_no_size_stays():
    class Buckets(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = self.buckets = 8

        def forward(self, x):
            return x.reshape(len(x), self.heads, -1) * self.buckets

    layers = (nn.Linear(4, 24), Buckets(), nn.Flatten(), nn.Linear(24, 6), nn.Linear(6, 2))
    model, x = scramble_(nn.Sequential(*layers)).double(), torch.randn(3, 4).double()
    plan = plan_pruning(model, x)
    small = assert_pruning_is_masking(model, plan, x)[1]
    assert (small.heads, small.buckets) == (4, 8)
    assert plan.notes == ()


def test_a_weight_that_is_computed_from_a_parameter_counts():
    model = nn.Sequential(
        nn.Linear(4, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 6)), nn.Linear(6, 2)
    )
    model, x = model.double(), torch.randn(3, 4).double()
    plan = plan_pruning(model, x)
    small = plan.extract(model)
    assert small(x).shape == (3, 2)
    assert plan.flops == (2 * (32 + 48 + 12), 2 * (16 + 12 + 6))
    assert plan.notes == ()


def test_the_mean_square_over_channels_is_that_of_a_norm():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return self.weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)

    model = scramble_(nn.Sequential(nn.Linear(4, 8), Norm(), nn.Linear(8, 2))).double()
    x = torch.randn(3, 4).double()
    plan = plan_pruning(model, x)
    small = plan.extract(model)
    kept = torch.tensor(plan.kept["1.weight"][0])
    inner = model[0](x)[:, kept]
    inner = inner * (inner.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * model[1].weight[kept]
    assert torch.allclose(small(x), inner @ model[2].weight[:, kept].T + model[2].bias)
