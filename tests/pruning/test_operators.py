"""A table of operators on channels and beside them: pruned where that is sound, kept whole where channels mix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pruning_oracle import Between, assert_pruning_is_masking, plan_and_check, scramble_
from torch import nn
from torch.nn.utils import parametrizations

from prunefuse.pruning import plan_pruning


class Sampled(nn.Module):
    """Samples channels at places that are computed from them."""

    def __init__(self):
        super().__init__()
        self.places = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return F.grid_sample(x, self.places(x).movedim(1, -1), align_corners=False)


def written(x):
    y = x.clone()
    y[:, :, :2] = x[:, :, 3:5]
    return y


def twice(x):
    mean = x.mean(1, keepdim=True)
    return (x - mean) * mean.tanh()


PICKS = torch.tensor([0, 2, 4])
PASSING = {
    "flip": lambda x: x.flip(2) + x.transpose(1, 2).fliplr().transpose(1, 2),
    "cumulative": lambda x: x.cumsum(2) + x.cumprod(3) + x.logcumsumexp(-1) + x.cummax(2)[0],
    "largest and smallest": lambda x: x.max(2, keepdim=True)[0] - x.min(3)[0].unsqueeze(3) + x.max(x.tanh()),
    "argmax": lambda x: x * x.argmax(2, keepdim=True) + x * x.argmin(3, keepdim=True),
    "topk": lambda x: x.topk(3, 2)[0],
    "kth": lambda x: x.kthvalue(2, 2, keepdim=True)[0] + x.median(3, keepdim=True)[0],
    "sort": lambda x: x.sort(2)[0] + x.sort(dim=3, stable=True)[0] + x * x.argsort(2),
    "variance": lambda x: x.var((2, 3), keepdim=True) + torch.var_mean(x, 2, keepdim=True)[1],
    "standardized": lambda x: (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1),
    "any": lambda x: x * (x > 0).any(2, keepdim=True) + (x > 0).all(3, keepdim=True),
    "how many": lambda x: x * x.count_nonzero(2).unsqueeze(2),
    "quantile": lambda x: x.quantile(0.3, 2, keepdim=True),
    "normalized pixels": lambda x: F.normalize(x, dim=2),
    "bicubic": lambda x: F.interpolate(x, size=(4, 5), mode="bicubic"),
    "antialiased": lambda x: F.interpolate(x, size=(4, 5), mode="bilinear", antialias=True),
    "nearest exact": lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "area": lambda x: F.interpolate(x, size=(3, 3), mode="area"),
    "unpooled": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "power pool": nn.LPPool2d(2, 2),
    "sampled": Sampled(),
    "picked rows": lambda x: x.index_select(2, PICKS),
    "gathered": lambda x: x.gather(2, x.argsort(2)) + x.take_along_dim(x.argmax(2, keepdim=True), 2),
    "scattered": lambda x: (
        torch.zeros_like(x).scatter(2, x.argsort(2), x) + x.scatter_add(2, x.argsort(2), x)
    ),
    "added to rows": lambda x: x.index_add(2, PICKS, x[:, :, :3]) + x.index_copy(3, PICKS, x[..., :3]),
    "filled rows": lambda x: x.index_fill(2, PICKS, 0.5),
    "written": written,
    "tile": lambda x: x.tile(1, 1, 2, 1).repeat_interleave(2, 3),
    "rows and back": lambda x: torch.stack(x.unbind(3), 3),
    "joined": lambda x: torch.cat([torch.dstack([x, x]), torch.vstack([x, x])[:2]], 2),
    "product with a batch": lambda x: torch.baddbmm(
        x.flatten(2), x.flatten(2), x.new_ones(2, 36, 36)
    ).unsqueeze(3),
    "grouped and transposed": nn.ConvTranspose2d(8, 8, 3, groups=2),
    "depthwise and transposed": nn.ConvTranspose2d(8, 8, 3, groups=8),
    "gated": nn.Sequential(nn.Conv2d(8, 16, 1), nn.GLU(1)),
    "softmin of pixels": nn.Softmin(2),
    "similar rows": lambda x: F.cosine_similarity(x, x.relu(), dim=2).unsqueeze(2),
    "distances of rows": lambda x: F.pairwise_distance(x.flatten(2), x.relu().flatten(2))[..., None, None],
    "distances of pixels": lambda x: torch.cdist(x, x.relu()),
    "einsum with dots": lambda x: torch.einsum("...hw,...hv->...wv", x, x),
    "einsum without an arrow": lambda x: torch.einsum("abcd,de", x, x.new_ones(6, 3)),
    "tensordot": lambda x: torch.tensordot(x, x.new_ones(6, 3), dims=([3], [0])),
    "triangles": lambda x: x.tril() + x.triu(1),
    "diagonal": lambda x: x.diagonal(dim1=2, dim2=3).unsqueeze(3),
    "picked by one for all": lambda x: x.gather(2, PICKS.view(-1, 1).expand(2, x.size(1), -1, 6)),
    "scattered by one for all": lambda x: torch.zeros_like(x).scatter_add(
        2, PICKS.view(-1, 1).repeat(2, x.size(1), 1, 6), x[:, :, :3]
    ),
    "reduced by one for all": lambda x: torch.zeros_like(x).scatter_reduce(
        2, PICKS.view(-1, 1).expand(2, x.size(1), 3, 6), x[:, :, :3], "mean"
    ),
    "written by a mask of rows": lambda x: (
        x.movedim(1, -1).masked_scatter(
            (torch.arange(36).view(1, 6, 6, 1) % 3 > 0).expand(2, -1, -1, x.size(1)), x.movedim(1, -1).relu()
        )
    ).movedim(-1, 1),
    "times an expanded row": lambda x: x * torch.arange(6.0).double().view(1, 6).expand(2, x.size(1), -1, -1),
    "nothing beside them": lambda x: torch.cat([x, x[:, x.size(1) :]], 1),
    "no rows in front": lambda x: torch.cat([x[:, :, :0].flatten(2).unflatten(2, (0, 6)), x], 2),
    "no batch": lambda x: torch.cat([x[:0].flatten(2).unflatten(2, (6, 6)), x.repeat(0, 1, 1, 1), x]),
    "an empty placeholder": lambda x: torch.cat([torch.empty(0), x], 1),
    "nothing in chunks": lambda x: torch.cat([*x[:, :0].chunk(2, 1), F.glu(x[:, :0], 1), x], 1),
    "moved axes": lambda x: x.movedim(1, -1).swapdims(1, 2).moveaxis(-1, 1).mT,
    "differences": lambda x: x.diff(dim=2),
    "windows": lambda x: x.unfold(2, 2, 1).sum(-1),
    "fourier": lambda x: torch.fft.ifft(torch.fft.fft(x, dim=2), dim=2).real,
    "fourier of planes": lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=(6, 6)),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(3, (3, 2)))).flatten(3),
    "buckets": lambda x: x * torch.bucketize(x, torch.tensor([0.0, 1.0]).double()),
    "around": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "split into gates": lambda x: torch.cat(x.unsafe_chunk(2, 1)[::-1], 1),
    "gates in between": lambda x: torch.stack([x[:, ::2].relu(), x[:, 1::2].sigmoid()], 2).flatten(1, 2),
    "four in a row": lambda x: torch.cat([x[:, ::4] * x[:, 3::4], x[:, 2::4]] * 2, 1),
}
OTHER_DIMENSIONS = {
    "transposed convolution of lines": (1, nn.ConvTranspose1d(8, 8, 3, groups=4)),
    "transposed convolution of volumes": (3, nn.ConvTranspose3d(8, 8, 3, groups=2)),
    "grouped convolution of lines": (1, nn.Conv1d(8, 8, 3, groups=2)),
    "grouped convolution of volumes": (3, nn.Conv3d(8, 8, 3, groups=8)),
    "norm of lines": (1, nn.InstanceNorm1d(8, affine=True)),
    "norm of volumes": (3, nn.InstanceNorm3d(8, affine=True)),
    "average pool of lines": (1, nn.AdaptiveAvgPool1d(3)),
    "pools of volumes": (3, nn.Sequential(nn.AdaptiveMaxPool3d((4, 3, 4)), nn.AdaptiveAvgPool3d(2))),
    "resized lines": (1, lambda x: F.interpolate(x, size=4, mode="linear")),
    "resized volumes": (3, lambda x: F.interpolate(x, scale_factor=2, mode="trilinear")),
    "replicated": (3, nn.ReplicationPad3d(1)),
}


@pytest.mark.parametrize("name", PASSING)
def test_channels_pass(name):
    plan, _, widths = plan_and_check(Between(PASSING[name]))
    assert widths["first"] == 4
    assert plan.notes == ()


@pytest.mark.parametrize("name", OTHER_DIMENSIONS)
def test_channels_pass_in_other_dimensions(name):
    dims, function = OTHER_DIMENSIONS[name]
    plan, _, widths = plan_and_check(Between(function, dims=dims), dims=dims)
    assert widths["first"] == 4
    assert plan.notes == ()


MIXING = {
    "flip": (lambda x: x.flip(1), 8, "works along a channel axis"),
    "cumsum": (lambda x: x.cumsum(1), 8, "works along a channel axis"),
    "maximum": (lambda x: x.max(1, keepdim=True)[0], 1, "reduces over channels"),
    "argmax": (lambda x: x * x.argmax(1, keepdim=True), 8, "reduces over channels"),
    "argmax of all": (lambda x: x * x.argmax(), 8, "reduces over channels"),
    "topk": (lambda x: x.topk(3, 1)[0], 3, "works along a channel axis"),
    "sort": (lambda x: x.sort(1)[0], 8, "works along a channel axis"),
    "argsort": (lambda x: x * x.argsort(dim=1, stable=True), 8, "works along a channel axis"),
    "variance": (lambda x: x.var(1, keepdim=True), 1, "reduces over channels"),
    "times their mean": (lambda x: x * x.mean(1, keepdim=True), 8, "reduces over channels"),
    "gated by their mean": (lambda x: x * x.mean(1, keepdim=True).sigmoid(), 8, "reduces over channels"),
    "softmax by hand": (lambda x: x.exp() / x.exp().sum(1, keepdim=True), 8, "reduces over channels"),
    "less another's mean": (lambda x: x.relu() - x.mean(1, keepdim=True), 8, "reduces over channels"),
    "a mean that is used twice": (twice, 8, "reduces over channels"),
    "median": (lambda x: x - x.median(), 8, "reduces over channels"),
    "quantile": (lambda x: x.quantile(0.5, 1, keepdim=True), 1, "reduces over channels"),
    "softmax": (nn.Softmax2d(), 8, "normalizes over channels"),
    "gathered": (lambda x: x.gather(1, x.argsort(2)), 8, "picks channels by index"),
    "scattered": (lambda x: x.scatter(1, x.argsort(2), x), 8, "picks channels by index"),
    "added": (lambda x: x.index_add(1, PICKS, x[:, :3]), 8, "picks channels by index"),
    "local norm": (nn.LocalResponseNorm(3), 8, "pads channels"),
    "similar pixels": (
        lambda x: F.cosine_similarity(x, x.relu(), dim=1).unsqueeze(1),
        1,
        "reduces over channels",
    ),
    "distances": (
        lambda x: torch.cdist(x.flatten(2).mT, x.relu().flatten(2).mT).unsqueeze(1),
        1,
        "reduces over channels",
    ),
    "triangle": (lambda x: x.transpose(1, 2).tril().transpose(1, 2), 8, "works along a channel axis"),
    "differences": (lambda x: x.diff(dim=1), 7, "cuts a channel axis"),
    "windows": (lambda x: x.unfold(1, 2, 1).sum(-1), 7, "works along a channel axis"),
    "fourier": (lambda x: torch.fft.fft(x, dim=1).abs(), 8, "works along a channel axis"),
    "rolled": (lambda x: x.roll(1, 1), 8, "rolls a channel axis"),
    "orthogonal": (
        lambda: parametrizations.orthogonal(nn.Conv2d(8, 8, 1)),
        8,
        "a part of an orthogonal weight is not orthogonal",
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_channels_that_mix_stay(name):
    function, channels, reason = MIXING[name]
    block = Between(function() if name == "orthogonal" else function, channels)
    plan, _, widths = plan_and_check(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1), block))
    assert widths["0"] == 3
    assert widths["2.first"] == 8
    assert any(reason in note for note in plan.notes)


def centered(x, dim=1):
    c = x - x.mean(dim, keepdim=True)
    return c / (c.pow(2).mean(dim, keepdim=True) + 1e-6).sqrt()


def in_steps(x):
    mean = x.mean(1, keepdim=True)
    square = (x - mean) ** 2
    rest = x - mean
    return rest * torch.rsqrt(square.mean(1, keepdim=True) + 1e-6)


def mean_and_variance(x):
    variance, mean = torch.var_mean(x, 1, keepdim=True, correction=0)
    return (x - mean) * (variance + 1e-5).rsqrt()


def response(x):
    size = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x * (size / (size.mean(1, keepdim=True) + 1e-6)) + x


WRITTEN_NORMS = {
    "layer norm": centered,
    "in steps": in_steps,
    "variance": lambda x: (
        (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
    ),
    "without a mean": lambda x: x / torch.sqrt(x.var(1, keepdim=True) + 1e-5),
    "variance and mean": mean_and_variance,
    "deviation": lambda x: (x - x.mean(1).unsqueeze(1)) / (x.std(1)[:, None] + 1e-5),
    "negative power": lambda x: x * (x.var(1, keepdim=True) + 1e-6) ** -0.5,
    "one over": lambda x: x * (1 / (x.var(1, keepdim=True) + 1e-6).sqrt()),
    "channels last": lambda x: centered(x.movedim(1, -1), -1).movedim(-1, 1),
    "in another precision": lambda x: centered(x.to(torch.float32)).to(x.dtype),
    "over all": lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 1e-6),
    "length": lambda x: F.normalize(x, dim=1),
    "length by hand": lambda x: x / torch.linalg.norm(x, dim=1, keepdim=True).clamp(min=1e-6),
    "global response": response,
}


@pytest.mark.parametrize("norm", WRITTEN_NORMS.values(), ids=WRITTEN_NORMS.keys())
def test_norms_written_by_hand_are_over_what_is_left(norm):
    model = scramble_(Between(norm)).double()
    x = torch.randn(2, 3, 6, 6).double()
    plan = plan_pruning(model, x)
    kept = torch.tensor(plan.kept["first.weight"][0])
    assert (len(kept), plan.notes) == (4, ())
    inner = norm(model.first(x)[:, kept])
    wanted = F.conv2d(inner, model.last.weight[:, kept], model.last.bias).flatten(2).mean(2)
    torch.testing.assert_close(plan.extract(model)(x), wanted)


def test_a_weight_that_is_standardized_keeps_its_inputs():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            w = self.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
            return F.conv2d(x, w, self.bias)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Standardized(8, 6, 1), nn.Conv2d(6, 2, 1))
    assert [layer.width_after for layer in plan_pruning(model, torch.zeros(1, 3, 4, 4)).layers] == [8, 3, 2]


class Matrix(nn.Module):
    """A function of 8 computed channels and a matrix, (6, 8)."""

    def __init__(self, function):
        super().__init__()
        self.a, self.matrix, self.b = nn.Linear(4, 8), nn.Parameter(torch.empty(6, 8)), nn.Linear(6, 2)
        self.function = function

    def forward(self, x):
        return self.b(self.function(self.a(x), self.matrix))


PRODUCTS = {
    "T": lambda x, w: x @ w.T,
    "t": lambda x, w: torch.mm(x, w.t()),
    "mT": lambda x, w: x @ w.mT,
    "transpose": lambda x, w: torch.matmul(x, w.transpose(0, 1)),
    "permute": lambda x, w: x @ w.permute(1, 0),
    "einsum": lambda x, w: torch.einsum("...i,oi", x, w),
}


@pytest.mark.parametrize("function", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_a_matrix_that_is_transposed_is_a_weight(function):
    model, x = scramble_(Matrix(function)).double(), torch.randn(3, 4).double()
    plan = plan_pruning(model, x)
    assert assert_pruning_is_masking(model, plan, x).matrix.shape == (3, 4)
    assert plan.notes == ()
    assert plan.flops == (2 * (32 + 48 + 12), 2 * (16 + 12 + 6))


def test_bilinear():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(4, 6)
            self.both, self.head = nn.Bilinear(8, 6, 10), nn.Linear(10, 2)

        def forward(self, x):
            return self.head(self.both(self.a(x), self.b(x)))

    model, x = scramble_(Net()).double(), torch.randn(3, 4).double()
    plan = plan_pruning(model, x)
    both = assert_pruning_is_masking(model, plan, x).both
    assert (both.in1_features, both.in2_features, both.out_features) == (4, 3, 5)
    assert plan.flops[0] == 2 * (32 + 24 + 480 + 20)


def test_grouped_convolutions_count_all_of_their_channels():
    layers = (
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ConvTranspose2d(8, 8, 3, groups=2),
    )
    model = scramble_(nn.Sequential(nn.Conv2d(3, 8, 1), *layers, nn.Conv2d(8, 2, 1))).double()
    x = torch.randn(2, 3, 8, 8).double()
    plan = plan_pruning(model, x)
    small = assert_pruning_is_masking(model, plan, x)
    assert [(layer.in_channels, layer.out_channels) for layer in small] == [
        (3, 4),
        (4, 4),
        (4, 4),
        (4, 4),
        (4, 2),
    ]
    assert [layer.groups for layer in small] == [1, 2, 4, 2, 1]


def test_what_a_rule_computes_with_another_axis_is_kept():
    model = Between(lambda x: torch.bucketize(x, x.flatten()[:4].sort()[0]).to(x.dtype))
    with pytest.raises(ValueError, match="nothing was pruned"):
        plan_pruning(model, torch.zeros(2, 3, 6, 6))


class Experts(nn.Module):
    """Four experts, whose weights are one parameter, and a gate."""

    def __init__(self, equations, up, down):
        super().__init__()
        self.a, self.gate, self.b = nn.Linear(6, 32), nn.Linear(32, 4), nn.Linear(32, 3)
        self.up, self.down = nn.Parameter(torch.empty(up)), nn.Parameter(torch.empty(down))
        self.equations = equations

    def forward(self, x):
        x = self.a(x)
        y = torch.einsum(self.equations[0], x, self.up).relu()
        y = torch.einsum(self.equations[1], y, self.down)
        return self.b((y * self.gate(x).softmax(-1)[..., None]).sum(2))


@pytest.mark.parametrize(
    ("equations", "up", "down", "channels"),
    [
        (("btd,edf->btef", "btef,efd->bted"), (4, 32, 64), (4, 64, 32), 2),
        (("btd,efd->btef", "btef,edf->bted"), (4, 64, 32), (4, 32, 64), 1),
        (("btd,dfe->btef", "btef,fde->bted"), (32, 64, 4), (64, 32, 4), 1),
    ],
)
def test_experts_in_one_parameter_lose_inner_channels(equations, up, down, channels):
    model, x = scramble_(Experts(equations, up, down)).double(), torch.randn(2, 5, 6).double()
    plan = plan_pruning(model, x)
    small = assert_pruning_is_masking(model, plan, x)
    assert small.up.shape[channels] == 32
    assert small.up.numel() * 4 == model.up.numel()


class Eca(nn.Module):
    """A convolution that slides over channels."""

    def __init__(self):
        super().__init__()
        self.a, self.slide, self.b = nn.Conv2d(3, 32, 3), nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = self.a(x)
        weights = self.slide(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
        return self.b(x * weights.sigmoid())


class Gram(nn.Module):
    """The products of all pairs of channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Linear(256, 4)

    def forward(self, x):
        y = self.a(x).flatten(2)
        return self.b(torch.bmm(y, y.mT).flatten(1))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Eca(), r"a.weight: all 32 channels stay because conv1d in slide needs them whole"),
        (Gram(), r"a.weight: all 16 channels stay because .*(view|flatten|reshape)"),
        (nn.Conv2d(3, 4, 1), r"weight: all 4 channels stay as outputs of the network"),
        (
            nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 1)),
            r"0.weight: the only channel of an axis stays",
        ),
    ],
    ids=["sliding", "pairs", "outputs", "one"],
)
def test_nothing_pruned_names_what_keeps_the_channels(model, why):
    with pytest.raises(ValueError, match=why):
        plan_pruning(model, torch.zeros(2, 3, 8, 8))


class Writes(nn.Module):
    """Writes one token of its own to some places."""

    def __init__(self, places):
        super().__init__()
        self.a, self.b, self.token = nn.Linear(6, 20), nn.Linear(20, 3), nn.Parameter(torch.randn(20))
        self.places = places

    def forward(self, x):
        h = self.a(x)
        h[self.places(x)] = self.token
        return self.b(h)


@pytest.mark.parametrize(
    "places",
    [
        lambda x: x.sum(-1) > 0,
        lambda x: x[..., 0, 0] > 0,
        lambda x: torch.tensor([0, 2]),
        lambda x: (slice(None), torch.tensor([1, 3])),
    ],
    ids=["mask of two axes", "mask of one axis", "indices", "indices of the second axis"],
)
def test_writing_to_some_rows(places):
    model, x = scramble_(Writes(places)).double(), torch.randn(4, 5, 6).double()
    plan = plan_pruning(model, x, ratio=0.5)
    assert len(plan.kept["token"][0]) == 10
    assert_pruning_is_masking(model, plan, x)
