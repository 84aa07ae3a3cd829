"""``complement="preserve"``: the fused network computes what the small one does, and all of it can be trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torchvision
from pruning_oracle import Between, scramble_
from test_operators import WRITTEN_NORMS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.overrides import TorchFunctionMode

from prunefuse import models
from prunefuse.fusion import fuse_
from prunefuse.pruning import PruningPlan, compose, plan_pruning, register_rule
from prunefuse.pruning._graph.copies import copied
from prunefuse.pruning._graph.couplings import Value

IMAGE = (2, 3, 16, 16)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def depthwise() -> nn.Module:
    def block(inputs, outputs, stride=1):
        return nn.Sequential(
            nn.Conv2d(inputs, 3 * inputs, 1, bias=False),
            nn.BatchNorm2d(3 * inputs),
            nn.Hardswish(),
            nn.Conv2d(3 * inputs, 3 * inputs, 3, stride, 1, groups=3 * inputs, bias=False),
            nn.BatchNorm2d(3 * inputs),
            nn.Hardswish(),
            SqueezeExcite(3 * inputs),
            nn.Conv2d(3 * inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), Residual(block(8, 8)), block(8, 12, 2), Pool(), nn.Linear(12, 5)
    )


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x):
        return x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class Pool(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Dense(nn.Module):
    """Concatenations, as in a DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(), nn.Conv2d(8 + 4 * i, 4, 3, padding=1))
            for i in range(3)
        )
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x.mean((2, 3)))


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.c = nn.Conv2d(16, 24, 1, groups=4)
        self.d = nn.Linear(24, 5)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        x = F.channel_shuffle(x, 2)
        return self.d(F.relu(self.c(x)).mean((2, 3)))


def up_and_down() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.GELU(),
        nn.ConvTranspose2d(8, 12, 2, 2),
        nn.PReLU(12),
        nn.ConvTranspose2d(12, 12, 3, padding=1, groups=2),
        nn.PReLU(),
        nn.ConvTranspose2d(12, 12, 3, padding=1, groups=12),
        nn.InstanceNorm2d(12, affine=True),
        nn.Conv2d(12, 5, 1),
    )


def flat() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 5),
    )


def normed(norm: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def build():
        return nn.Sequential(
            norm(nn.Conv2d(3, 8, 3, padding=1)),
            nn.ReLU(),
            norm(nn.Conv2d(8, 8, 3)),
            nn.ReLU(),
            Pool(),
            norm(nn.Linear(8, 5)),
        )

    return build


def group_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.GroupNorm(1, 16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3),
        nn.GroupNorm(8, 8),
        nn.ReLU(),
        Pool(),
        nn.Linear(8, 5),
    )


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], norm: bool = False, **options) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.layers = kind(8, 12, 2, batch_first=True, **options)
        width = (options.get("proj_size") or 12) * (2 if options.get("bidirectional") else 1)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.norm(self.layers(self.table(x))[0]))


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        state = x.new_zeros(len(x), self.cell.hidden_size)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


class Raw(nn.Module):
    """Parameters of its own, in every way to multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.empty(6, 4, 8)), nn.Parameter(torch.empty(4, 8, 12))
        self.c, self.d = nn.Parameter(torch.empty(12, 10)), nn.Parameter(torch.empty(10, 9))
        self.down, self.up = nn.Parameter(torch.empty(7, 9)), nn.Parameter(torch.empty(8, 7))
        self.base = nn.Parameter(torch.empty(8, 9))
        self.pair = nn.Bilinear(8, 8, 6)
        self.last, self.scale = nn.Parameter(torch.empty(6)), nn.Parameter(torch.empty(6))

    def forward(self, x):
        x = torch.einsum("bi,ihd->bhd", x, self.a).relu()
        x = torch.einsum("bhd,hdo->bo", x, self.b).tanh()
        x = ((x @ self.c).relu() @ self.d).tanh()
        x = F.linear(x, self.base + self.up @ self.down)
        x = self.pair(x.tanh(), x.sigmoid())
        return ((x * self.scale).tanh() * self.last).sum(-1, keepdim=True)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.into, self.out = nn.Parameter(torch.empty(3, 6, 8)), nn.Parameter(torch.empty(3, 8, 5))

    def forward(self, x):
        x, weights = x.expand(3, -1, -1), self.gate(x).softmax(-1)
        return torch.einsum("ebo,be->bo", torch.bmm(torch.bmm(x, self.into).relu(), self.out), weights)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.middle, self.out = nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = self.into(x).tanh()
        return self.out(x + self.middle(self.middle(x).tanh()).tanh())


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 10), nn.Linear(10, 4)
        self.tied = nn.Parameter(torch.empty(8, 10))

    def forward(self, x):
        hidden = F.linear(self.first(x).tanh(), self.tied).tanh()
        return self.last(F.linear(hidden, self.tied.t()).tanh())


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Vision(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token, self.places = nn.Parameter(torch.empty(1, 1, 16)), nn.Parameter(torch.empty(1, 17, 16))
        self.blocks = nn.Sequential(Attention(16, 4, norm), Attention(16, 4, norm))
        self.norm, self.head = norm(16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


class Language(nn.Module):
    """As GPT: the embedding is the classifier's weight, too."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm, last: bool = True) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(11, 16), nn.Embedding(6, 16)
        self.blocks = nn.Sequential(Attention(16, 4, norm), Attention(16, 4, norm))
        self.norm = norm(16) if last else nn.Identity()
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        x = self.table(x) + self.places.weight
        return self.head(self.norm(self.blocks(x)))


class OnlyTrained(nn.Module):
    """What evaluation does not use is looked for in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(11))

    def forward(self, x):
        return x + self.shift if self.training else x


class OwnRMS(nn.Module):
    """A norm in a model's own words."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Reversed(OwnRMS):
    def forward(self, x):
        return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)) * self.weight


class PlusOne(OwnRMS):
    def forward(self, x):
        return (1 + self.weight) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class OwnLayerNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(var + 1e-5) * self.weight + self.bias


class UnbiasedLayerNorm(OwnLayerNorm):
    def forward(self, x):
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5) * self.weight + self.bias


class GlobalResponse(nn.Module):
    """As in ConvNeXt V2."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(3, 16), nn.Linear(16, 5)
        self.weight, self.bias = nn.Parameter(torch.empty(16)), nn.Parameter(torch.empty(16))

    def forward(self, x):
        x = F.gelu(self.into(x.permute(0, 2, 3, 1)))
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        x = x + self.weight * (x * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.bias
        return self.out(x.mean((1, 2)))


class OfWeights(nn.Module):
    """A convolution whose weight is computed."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(6, 5)
        self.weight, self.function = nn.Parameter(torch.empty(6, 8, 3, 3)), function

    def forward(self, x):
        x = F.conv2d(self.first(x).tanh(), self.function(self.weight))
        return self.last(x.tanh().mean((2, 3)))


def standardized(weight: Tensor) -> Tensor:
    return F.batch_norm(weight.reshape(1, len(weight), -1), None, None, training=True).view_as(weight)


def convnext() -> nn.Module:
    return torchvision.models.ConvNeXt(
        [
            torchvision.models.convnext.CNBlockConfig(8, 16, 1),
            torchvision.models.convnext.CNBlockConfig(16, None, 1),
        ],
        num_classes=5,
        layer_scale=0.5,
        stochastic_depth_prob=0.0,
    )


def swin(version: int) -> nn.Module:
    from torchvision.models import swin_transformer as parts

    block = parts.SwinTransformerBlock if version == 1 else parts.SwinTransformerBlockV2
    merge = parts.PatchMerging if version == 1 else parts.PatchMergingV2
    return parts.SwinTransformer(
        [2, 2],
        16,
        [2, 2],
        [2, 4],
        [2, 2],
        stochastic_depth_prob=0.0,
        num_classes=5,
        block=block,
        downsample_layer=merge,
    )


def images(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape, dtype=torch.float64)


def words() -> Tensor:
    return torch.arange(48).reshape(8, 6) % 11


EXACT: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "resnet-A": (lambda: models.resnet8(), images(*IMAGE)),
    "resnet-B": (lambda: models.resnet8(shortcut="B"), images(*IMAGE)),
    "bottleneck": (
        lambda: torchvision.models.resnet.ResNet(
            torchvision.models.resnet.Bottleneck, [1] * 4, 5, width_per_group=16
        ),
        images(2, 3, 32, 32),
    ),
    "vgg": (lambda: models.vgg11(), images(2, 3, 32, 32)),
    "flat": (flat, images(*IMAGE)),
    "depthwise-se": (depthwise, images(*IMAGE)),
    "densenet": (Dense, images(*IMAGE)),
    "shuffle": (Shuffled, images(*IMAGE)),
    "transposed": (up_and_down, images(*IMAGE)),
    "weight-norm": (normed(weight_norm), images(*IMAGE)),
    "weight-norm-hook": (normed(old_weight_norm), images(*IMAGE)),
    "weight-norm-whole": (normed(lambda layer: weight_norm(layer, dim=None)), images(*IMAGE)),
    "group-norm": (group_norms, images(*IMAGE)),
    "lstm": (lambda: Recurrent(nn.LSTM), words),
    "lstm-projected": (lambda: Recurrent(nn.LSTM, proj_size=6, bidirectional=True), words),
    "lstm-layer-norm": (lambda: Recurrent(nn.LSTM, norm=True, bidirectional=True), words),
    "gru": (lambda: Recurrent(nn.GRU), words),
    "gru-cell": (Cell, images(3, 4, 4)),
    "raw": (Raw, images(40, 6)),
    "experts": (Experts, images(10, 6)),
    "twice": (Twice, images(8, 4)),
    "tied-autoencoder": (TiedAutoencoder, images(30, 4)),
    "vit": (Vision, images(*IMAGE)),
    "vit-rms": (lambda: Vision(nn.RMSNorm), images(*IMAGE)),
    "vit-own-rms": (lambda: Vision(OwnRMS), images(*IMAGE)),
    "vit-own-layer-norm": (lambda: Vision(OwnLayerNorm), images(*IMAGE)),
    "gpt-tied": (Language, words),
    "gpt-tied-twice": (lambda: nn.Sequential(Language(), OnlyTrained()), words),
    "gpt-tied-rms": (lambda: Language(nn.RMSNorm), words),
    "gpt-tied-own-rms": (lambda: Language(OwnRMS), words),
    "gpt-tied-reversed": (lambda: Language(Reversed), words),
    "swin": (lambda: swin(1), images(2, 3, 16, 16)),
    "swin-v2": (lambda: swin(2), images(2, 3, 16, 16)),
    "global-response": (GlobalResponse, images(*IMAGE)),
    "weight-through-tanh": (lambda: OfWeights(lambda weight: -2 * weight.tanh()), images(*IMAGE)),
    "convnext": (convnext, images(2, 3, 32, 32)),
}
PARTLY = {
    "unbiased": (
        lambda: Vision(UnbiasedLayerNorm),
        images(*IMAGE),
        "one less than the number",
        "blocks.0.norm1",
    ),
    "tied-unnormed": (lambda: Language(last=False), words, "both makes and reads", "blocks.0.norm1"),
    "standardized": (
        lambda: OfWeights(standardized),
        images(*IMAGE),
        "normalizes weights by statistics",
        "",
    ),
    "weight-plus-one": (
        lambda: OfWeights(lambda weight: weight + 1),
        images(*IMAGE),
        "could be zero there",
        "",
    ),
    "tied-plus-one": (lambda: Language(PlusOne), words, "both makes and reads", "blocks.0.norm1"),
    "weight-through-relu": (
        lambda: OfWeights(torch.relu),
        images(*IMAGE),
        "no weight of its own could be zero",
        "",
    ),
    "spectral": (normed(spectral_norm), images(*IMAGE), "training mode", "2"),
    "spectral-hook": (normed(old_spectral_norm), images(*IMAGE), "training mode", "2"),
}


@dataclass
class Case:
    dense: nn.Module
    plan: PruningPlan
    example: Tensor
    small: nn.Module  # other values than the dense model's, as after training


def planned(build: Callable[[], nn.Module], example: Callable[[], Tensor], ratio: float = 0.5) -> Case:
    torch.manual_seed(0)
    dense = scramble_(build()).double()
    x = example()
    plan = plan_pruning(dense, x, ratio=ratio)
    return Case(dense, plan, x, scramble_(plan.extract(dense), seed=2))


@pytest.fixture(scope="module", params=EXACT)
def case(request) -> Case:
    return planned(*EXACT[request.param])


def fused(case: Case, complement: str = "preserve") -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fuse_(copied(case.dense), copied(case.small), case.plan, complement)


def logits(model: nn.Module, x: Tensor, training: bool) -> Tensor:
    torch.manual_seed(0)
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    return model(x)


class NoReLU(TorchFunctionMode):
    """Activations with a slope everywhere: a ReLU that is off on all inputs would hide what has no gradient for good."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ("relu", "relu_", "hardswish", "hardswish_"):
            return F.leaky_relu(args[0], 0.1)
        return func(*args, **(kwargs or {}))


def difference(dense: nn.Module, case: Case, training: bool) -> float:
    """Relative to the largest output."""
    with torch.no_grad():
        ours, theirs = (logits(model, case.example, training) for model in (dense, copied(case.small)))
    return float((ours - theirs).abs().max() / theirs.abs().max())


def gradients(dense: nn.Module, case: Case, steps: int) -> dict[str, Tensor]:
    """Of the parameters that lose channels, at the last of so many steps."""
    optimizer = torch.optim.SGD(dense.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        with NoReLU():
            out = logits(dense, case.example, training=True)
        target = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).double()
        (out - target).square().mean().backward()
        grads = {name: p.grad.clone() for name, p in dense.named_parameters() if name in case.plan.kept}
        optimizer.step()
    return grads


def alive(gradient: Tensor) -> float:
    """The part of the elements with a gradient."""
    return float((gradient != 0).double().mean())


@pytest.mark.parametrize("training", [False, True])
def test_the_fused_network_computes_what_the_small_one_does(case, training):
    assert not case.plan.not_preserved
    assert difference(fused(case, "keep"), case, training) > 1e-4  # the law is not empty
    assert difference(fused(case), case, training) < 1e-9


def test_all_pruned_weights_are_trained_from_the_second_step_on(case):
    grads, usual = (gradients(fused(case, complement), case, steps=2) for complement in ("preserve", "keep"))
    # Some have none in any case: borders of a kernel on an image of one pixel, a bias of keys that the code clears.
    dead = {n: alive(g) for n, g in grads.items() if g.ndim > 1 and alive(g) < 0.99 * min(1, alive(usual[n]))}
    assert dead == {}


def test_cutting_what_was_fused_gives_the_small_network_to_the_bit(case):
    back = case.plan.extract(fused(case)).state_dict()
    rounded = {
        name for name in back if name.endswith(("weight_g", "original0"))
    }  # gains, as of every complement
    for name, tensor in case.small.state_dict().items():
        if name in rounded:
            torch.testing.assert_close(back[name], tensor, rtol=1e-12, atol=0)
        else:
            assert torch.equal(back[name], tensor)


def test_saved_plans_fuse_the_same(case, tmp_path):
    case.plan.save(tmp_path / "plan.json")
    loaded = PruningPlan.load(tmp_path / "plan.json")
    assert loaded == case.plan
    other = loaded.fuse_(copied(case.dense), copied(case.small), "preserve")
    ours = fused(case).state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("name", PARTLY)
def test_what_is_not_kept_is_named_and_told_once(name):
    build, example, why, module = PARTLY[name]
    case = planned(build, example)
    assert why in case.plan.not_preserved[module]
    with pytest.warns(UserWarning, match=r"plan\.not_preserved") as told:
        dense = case.plan.fuse_(copied(case.dense), copied(case.small), "preserve")
    assert len(told) == 1
    assert told[0].filename == __file__
    back = case.plan.extract(dense).state_dict()
    assert all(torch.allclose(back[n], tensor) for n, tensor in case.small.state_dict().items())
    if name.startswith("spectral"):
        assert difference(dense, case, training=False) < 1e-9
    assert difference(dense, case, training=True) > 1e-6


def test_statistics_are_kept_where_each_channel_can_be_there_equally_often():
    for ratio, exact in ((0.5, True), (0.75, True), (0.25, False)):
        case = planned(*EXACT["vit"], ratio=ratio)
        norms = [name for name, module in case.dense.named_modules() if isinstance(module, nn.LayerNorm)]
        assert list(case.plan.not_preserved) == ([] if exact else norms)
    assert case.plan.not_preserved["norm"] == (
        "takes statistics over 16 channels, which are not 12 kept ones equally often"
    )
    # The nearest that there is: channels that are there once and twice change the statistics less than others would.
    with pytest.warns(UserWarning, match="and 2 more"):
        preserved = case.plan.fuse_(copied(case.dense), copied(case.small), "preserve")
    kept = difference(fused(case, "keep"), case, training=False)
    assert difference(preserved, case, training=False) < kept / 4


def test_other_rows_have_a_gradient_after_one_step_and_never_with_zeros():
    case = planned(lambda: models.resnet8(), images(8, 3, 16, 16))
    name = "stage1.0.conv1.weight"
    outside = [o for o in range(16) if o not in case.plan.kept[name][0]]
    first, second = (gradients(fused(case), case, steps)[name] for steps in (1, 2))
    assert (first[outside] == 0).all()
    assert alive(first[case.plan.kept[name][0],]) > 0.99
    assert alive(second) > 0.99
    assert alive(gradients(fused(case, "zero"), case, steps=5)[name][outside]) == 0


def test_a_real_network_is_trained_whole():
    # Weights as they are drawn, and ReLU as it is.
    dense = models.resnet20(in_channels=1).double()
    x = torch.randn(32, 1, 14, 14).double()
    plan = plan_pruning(dense, x)
    plan.fuse_(dense, plan.extract(models.resnet20(in_channels=1).double()), "preserve")
    optimizer = torch.optim.SGD(dense.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(dense(x), torch.arange(32) % 10).backward()
        alive_ = {n: alive(p.grad) for n, p in dense.named_parameters() if n in plan.kept}
        optimizer.step()
    assert min(alive_.values()) > 0.99


def test_what_is_outside_keeps_its_values_but_for_what_the_kept_outputs_read():
    case = planned(lambda: models.resnet8(), images(*IMAGE))
    before, after = case.dense.state_dict(), fused(case).state_dict()
    for name, tensor in after.items():
        axes = case.plan.kept.get(name, {})
        changed = torch.ones(tensor.shape, dtype=torch.bool)
        if 0 in axes:
            rows = torch.zeros(len(tensor), dtype=torch.bool)
            rows[list(axes[0])] = True
            changed[~rows] = False
        assert torch.equal(tensor[~changed], before[name][~changed])
        if 1 in axes:
            columns = [i for i in range(tensor.shape[1]) if i not in axes[1]]
            rows = list(axes.get(0, range(len(tensor))))
            assert (tensor[rows][:, columns] == 0).all()


def test_a_tied_embedding_keeps_its_values_where_a_norm_is_before_the_classifier():
    case = planned(*EXACT["gpt-tied"])
    dense = fused(case)
    outside = [i for i in range(16) if i not in case.plan.kept["table.weight"][1]]
    assert (dense.table.weight[:, outside] != 0).all()
    assert (dense.norm.weight[outside] == 0).all()
    assert (dense.norm.bias[outside] == 0).all()


def test_rules_from_outside_say_over_what_they_sum_or_are_understood():
    @torch.library.custom_op("preserved::project", mutates_args=())
    def project(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight

    @project.register_fake
    def _(x, weight):
        return x.new_empty(len(x), weight.shape[1])

    project.register_autograd(
        lambda ctx, g: (g @ ctx.saved_tensors[1].T, ctx.saved_tensors[0].T @ g),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )

    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(10, 3)
            self.weight = nn.Parameter(torch.empty(8, 10))

        def forward(self, x):
            return self.last(torch.ops.preserved.project(self.first(x).tanh(), self.weight).tanh())

    def linked(call, x, weight):
        call.link(x.axes[1], weight.axes[0])
        call.writes(weight, 1)
        return Value((x.axes[0], weight.axes[1]))

    def said(call, x, weight):
        call.sums((weight, 0), (x, 1))
        return linked(call, x, weight)

    for rule in (linked, said):
        register_rule("preserved::project")(rule)
        case = planned(Projected, images(8, 6))
        assert case.plan.reads["weight"] == ((0,),)
        assert difference(fused(case), case, training=False) < 1e-9


def test_exported_programs_are_fused_the_same():
    torch.manual_seed(0)
    dense = scramble_(Vision()).double()
    x = torch.randn(IMAGE).double()
    plan = plan_pruning(dense, x, expressed_by="program")
    small = scramble_(plan.extract_program(dense, x).module(), seed=2)
    before = small(x)
    whole = plan.fuse_(copied(dense), small, "preserve")
    torch.testing.assert_close(whole.eval()(x), before, rtol=1e-9, atol=1e-9)


def test_plans_of_several_steps_keep_the_function():
    for build, example in (EXACT["vit"], EXACT["resnet-B"], EXACT["lstm-layer-norm"]):
        torch.manual_seed(0)
        dense, x = scramble_(build()).double(), example()
        first = plan_pruning(dense, x, ratio=0.5)
        second = plan_pruning(first.extract(dense), x, ratio=0.5)
        both = compose(first, second)
        assert not both.not_preserved
        case = Case(dense, both, x, scramble_(both.extract(dense), seed=2))
        assert difference(fused(case), case, training=False) < 1e-9


def test_a_complement_that_is_none_is_refused_by_all_names():
    case = planned(*EXACT["twice"])
    with pytest.raises(ValueError, match="one of keep, reinit, zero, preserve or a module, got 'net2net'"):
        case.plan.fuse_(case.dense, case.small, "net2net")


def test_nothing_is_written_where_it_cannot_be_done():
    case = planned(*EXACT["vit"])
    before = {name: tensor.clone() for name, tensor in case.dense.state_dict().items()}
    damaged = replace(case.plan, reads={"head.weight": ((0,),)})
    copying = replace(case.plan, copies={"head.weight": {1: (0,)}})
    for plan, message in ((damaged, "reads must be of axes"), (copying, "copies must name an index")):
        with pytest.raises(ValueError, match=message):
            plan.fuse_(case.dense, case.small, "preserve")
    with pytest.raises(ValueError, match="small must fit"):
        case.plan.fuse_(case.dense, copied(case.small).float(), "preserve")
    partly = planned(*PARTLY["unbiased"][:2])
    start = {name: tensor.clone() for name, tensor in partly.dense.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="not_preserved"):
            partly.plan.fuse_(partly.dense, partly.small, "preserve")
    assert all(torch.equal(start[name], tensor) for name, tensor in partly.dense.state_dict().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in case.dense.state_dict().items())


def test_attention_with_shorter_heads_is_named_as_not_preserved() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    dense = nn.Sequential(nn.Linear(8, 32), layer, nn.Linear(32, 5)).double().eval()
    tokens = torch.randn(3, 6, 8, dtype=torch.float64)
    whole = plan_pruning(dense, (tokens,), ratio=0.5)
    inside = plan_pruning(dense, (tokens,), ratio=0.5, heads="inside")
    assert "1.self_attn" not in whole.not_preserved
    attention = [path for path in inside.not_preserved if "attn" in path or path == "1"]
    assert attention
    small = inside.extract(dense)
    with pytest.warns(UserWarning, match="not_preserved"):
        inside.fuse_(dense, small, "preserve")


@pytest.mark.parametrize("name", WRITTEN_NORMS)
def test_norms_written_by_hand_are_kept_or_named(name):
    case = planned(lambda: Between(WRITTEN_NORMS[name]), images(2, 3, 6, 6))
    means = ("layer norm", "in steps", "variance", "variance and mean", "channels last", "global response")
    if name in (*means, "in another precision"):
        assert difference(fused(case), case, training=True) < (1e-9 if name in means else 1e-5)
    else:
        why = "adds up" if name.startswith("length") else "one less than the number of channels"
        assert [why in reason for reason in case.plan.not_preserved.values()] == [True]
