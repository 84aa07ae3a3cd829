"""FLOPs are the same number wherever they are counted: by fvcore, by a pruning plan, by torch's counter."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import prunefuse
from prunefuse.pruning import Target, plan_pruning
from prunefuse.training import flops_per_input

IMAGE = torch.zeros(1, 3, 32, 32)
TOKENS = torch.arange(6)[None]


class Decoder(nn.Module):
    """One causal layer whose 8 query heads share 4 heads of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 24)
        self.q, self.k, self.v = nn.Linear(24, 32), nn.Linear(24, 16), nn.Linear(24, 16)
        self.out, self.head = nn.Linear(32, 24), nn.Linear(24, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        attended = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.head(x + self.out(attended.transpose(1, 2).flatten(2)))


class Attending(nn.Module):
    """`nn.MultiheadAttention` with the mean of its weights as a second result, so by plain products, or without."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.weights = weights
        self.embed, self.head = nn.Embedding(11, 24), nn.Linear(24, 3)
        self.attend = nn.MultiheadAttention(24, 8, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.attend(x, x, x, need_weights=self.weights)[0])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: int) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(11, 8), kind(8, 12, 2, batch_first=True, **options)
        self.head = nn.Linear(options.get("proj_size", 12), 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens))[0])


class Mixer(nn.Module):
    """Mixes 16 tokens channel by channel: what a weight is applied to loses channels too."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix, self.head = nn.Conv2d(3, 10, 8, 8), nn.Linear(16, 16), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.patch(x).flatten(2)).mean(-1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), IMAGE),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25), IMAGE),
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=10), IMAGE),
    "upsampling": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, padding="same", groups=4)),
        IMAGE,
    ),
    "mixer": (Mixer, IMAGE),
    "vit": (
        lambda: torchvision.models.VisionTransformer(16, 4, 2, 8, 32, 64, num_classes=10),
        IMAGE[..., :16, :16],
    ),
    "swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=10),
        IMAGE,
    ),
    "MultiheadAttention": (lambda: Attending(False), TOKENS),
    "MultiheadAttention with weights": (lambda: Attending(True), TOKENS),
    "decoder with grouped queries": (Decoder, TOKENS),
    "LSTM": (lambda: Recurrent(nn.LSTM), TOKENS),
    "LSTM with projections": (lambda: Recurrent(nn.LSTM, proj_size=4), TOKENS),
    "GRU": (lambda: Recurrent(nn.GRU), TOKENS),
    "RNN": (lambda: Recurrent(nn.RNN), TOKENS),
}


def counted_by_torch(model: nn.Module, example: Tensor) -> int:
    """FLOPs by torch's counter.

    It has no formula for attention in one operator on the CPU and for oneDNN's recurrent layers, and takes them for free,
    so these run in their parts.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.mkldnn.flags(enabled=False),
            FlopCounterMode(display=False) as counter,
        ):
            model.eval()(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_and_torchs_counter_count_what_fvcore_counts(name: str) -> None:
    build, example = NETWORKS[name]
    model = build()
    plan = plan_pruning(model, example, ratio=0.5)
    for planned, network in zip(plan.flops, (model, plan.extract(model)), strict=True):
        assert planned == flops_per_input(network, example) == counted_by_torch(network, example)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_half_of_a_transformers_flops_is_half_with_attention(name: str) -> None:
    build, example = NETWORKS[name]
    model = build() if name == "swin" else torchvision.models.VisionTransformer(16, 2, 2, 16, 64, 96)
    plan = plan_pruning(model, example, target=Target("flops", 0.5))
    reached = flops_per_input(plan.extract(model), example) / flops_per_input(model, example)
    assert reached == plan.flops[1] / plan.flops[0]
    assert 0.45 < reached <= 0.5


class Computes(nn.Module):
    """A function of an input and a weight."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


X = torch.ones(1, 5, 8)
# Multiply-adds. For what is marked, torch's counter has no formula: products with vectors, bilinear maps.
PRODUCTS: dict[str, tuple[Computes, int, bool]] = {
    "broadcast": (Computes(lambda x, w: w @ x.mT, 7, 3, 8), 7 * 3 * 8 * 5, True),
    "baddbmm": (Computes(lambda x, w: torch.baddbmm(w, x, x.mT), 1, 5, 5), 5 * 8 * 5, True),
    "tensordot": (Computes(lambda x, w: torch.tensordot(x, w, dims=([2], [0])), 8, 3), 5 * 8 * 3, True),
    "inner": (Computes(torch.inner, 3, 8), 5 * 8 * 3, True),
    "einsum": (Computes(lambda x, w: torch.einsum("bti,oi->bto", x, w), 3, 8), 5 * 8 * 3, True),
    # First (3, 8) with (8, 2), whose sum over 8 leaves (3, 2), ... : pairs from the left, where no path is given.
    "einsum of three": (
        Computes(lambda x, w: torch.ops.aten.einsum("bti,oi,on->btn", [x, w, w[:, :2]]), 3, 8),
        5 * 8 * 3 + 5 * 3 * 2,
        True,
    ),
    "einsum by a path": (
        Computes(
            lambda x, w: torch.ops.aten.einsum("bti,oi,on->btn", [x, w, w[:, :2]], path=[1, 2, 0, 1]), 3, 8
        ),
        3 * 8 * 2 + 5 * 8 * 2,
        True,
    ),
    "einsum without a sum": (Computes(lambda x, w: torch.einsum("bti,i->bti", x, w), 8), 0, True),
    "pointwise": (Computes(lambda x, w: (x * w).softmax(-1) + w, 5, 8), 0, True),
    "vector": (Computes(lambda x, w: x @ w, 8), 5 * 8, False),
    "vector first": (Computes(lambda x, w: w @ x, 5), 5 * 8, False),
    "mv": (Computes(lambda x, w: torch.mv(x[0], w), 8), 5 * 8, False),
    "bilinear": (Computes(lambda x, w: nn.functional.bilinear(x, x, w), 3, 8, 8), 5 * 3 * 8 * 8, False),
}


@pytest.mark.filterwarnings("error:the FLOPs")
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_by_hand(name: str) -> None:
    model, multiply_adds, counts = PRODUCTS[name]
    assert flops_per_input(model, X) == 2 * multiply_adds
    assert plan_pruning(model, X, ratio=0).flops == (2 * multiply_adds, 2 * multiply_adds)
    assert counted_by_torch(model, X) == (2 * multiply_adds if counts else 0)


class Padded(nn.TransformerEncoder):
    """The last two tokens are padding."""

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.arange(x.shape[1])[None] >= x.shape[1] - 2
        return super().forward(x, src_key_padding_mask=padding)


def test_masked_attention_counts_in_full() -> None:
    """In evaluation mode PyTorch runs this encoder as one operator a layer, on the samples without their padding."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    encoder = Padded(layer, 1)
    weights = sum(weight.numel() for weight in encoder.parameters() if weight.ndim == 2)
    assert flops_per_input(encoder, X) == 2 * (5 * weights + 2 * 5 * 5 * 8)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.fixture
def library():
    """An operator of two tensors, ``prunefuse_test::mixed``, for one test."""
    library = torch.library.Library("prunefuse_test", "FRAGMENT")
    library.define("mixed(Tensor x, Tensor w) -> Tensor")
    library.impl("mixed", torch.matmul, "CPU")
    yield torch.ops.prunefuse_test.mixed
    library._destroy()


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor) -> Tensor:
        return x @ w @ w


def test_an_operator_with_weights_that_nobody_counts_is_named(library) -> None:
    model = Computes(lambda x, w: Twice.apply(library(library(x, w), w), w.t()), 8, 8)
    with pytest.warns(
        UserWarning, match=r"the FLOPs of Computes lack .* no formula: Twice, prunefuse_test::mixed;"
    ) as told:
        assert flops_per_input(model, X) == 0
    assert len(told) == 1


def test_an_operator_without_weights_is_not_worth_a_warning(library) -> None:
    model = Computes(lambda x, w: library(x, x.mT) + w, 5, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert flops_per_input(model, X) == 0


@pytest.mark.filterwarnings("error:the FLOPs")
def test_an_operator_is_counted_by_the_formula_that_it_is_given(library) -> None:
    @register_flop_formula(library)
    def formula(x: tuple[int, ...], w: tuple[int, ...], **_: object) -> int:
        return 7 * x[1] * w[0]

    assert flops_per_input(Computes(library, 8, 3), X) == 7 * 5 * 8


@pytest.mark.filterwarnings("error:the FLOPs")
def test_operators_of_prunefuse_count_by_their_formulas() -> None:
    model = Computes(lambda x, w: prunefuse.score((x @ w)[0], "entropy"), 8, 3)
    scorer = Computes(lambda x, _: prunefuse.score(x[0], "entropy"))
    with FlopCounterMode(display=False) as counter:
        prunefuse.score(torch.ones(5, 3), "entropy")
    assert flops_per_input(model, X) == 2 * 5 * 8 * 3 + counter.get_total_flops()
    assert flops_per_input(scorer, X) == 8 / 3 * counter.get_total_flops() > 0
