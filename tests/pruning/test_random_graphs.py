"""The masking oracle on random networks: cutting channels out equals zeroing them, whatever the wiring."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pruning_oracle import assert_pruning_is_masking, assert_same_function, masked, scramble_
from torch import nn

from prunefuse.fusion import fuse_
from prunefuse.models import ChannelPad
from prunefuse.pruning import plan_pruning

KINDS = (
    *("conv", "conv", "norm", "unary", "add", "add", "cat", "pad", "pool", "gate", "channels_last", "scale"),
    *("same_conv_again", "grouped", "chunk", "slice", "layer_norm", "round_trip", "multiply", "stack"),
    *("groups", "group_norm", "shuffle", "transposed", "heads", "packed_heads", "multihead"),
)


class Heads(nn.Module):
    """Attention over pixels; the heads together are as wide as they like, or, packed, as wide as the input."""

    def __init__(self, channels: int, heads: int, packed: bool) -> None:
        super().__init__()
        self.heads, self.packed = heads, packed
        inner = channels if packed else 2 * heads
        self.qkv = nn.Linear(channels, 3 * inner)
        self.scale = (inner // heads) ** -0.5
        self.out = nn.Linear(inner, channels)

    def forward(self, x):
        n, c, h, w = x.shape
        qkv = self.qkv(x.flatten(2).transpose(1, 2)).reshape(n, h * w, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(n, h * w, c if self.packed else -1)
        return self.out(y).transpose(1, 2).reshape(n, -1, h, w)


class MultiHead(nn.MultiheadAttention):
    """PyTorch's own attention, over pixels."""

    def forward(self, x):
        y = x.flatten(2).transpose(1, 2)
        return super().forward(y, y, y, need_weights=False)[0].transpose(1, 2).unflatten(2, x.shape[2:])


class RandomNet(nn.Module):
    """A chain of random steps on (N, C, 4, 4) values, each taking any earlier values."""

    def __init__(self, steps, flatten: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.program = []
        channels = [3]
        convolutions = []  # (layer, input channels)
        for kind, a, b, width in steps:
            a, b = a % len(channels), b % len(channels)
            n = channels[a]
            layer: nn.Module = nn.Identity()
            if kind == "conv":
                layer, out = nn.Conv2d(n, width, 3, padding=1, bias=width % 2 == 0), width
                convolutions.append((layer, n))
            elif kind == "same_conv_again":
                usable = [conv for conv, inputs in convolutions if inputs == n]
                layer = usable[width % len(usable)] if usable else nn.Conv2d(n, n, 1)
                out = layer.out_channels
            elif kind == "grouped":
                layer, out = nn.Conv2d(n, n, 3, padding=1, groups=n), n
            elif kind == "groups":
                layer, out = nn.Conv2d(n, n, 3, padding=1, groups=math.gcd(n, width)), n
            elif kind == "group_norm":
                layer, out = nn.GroupNorm(math.gcd(n, width), n), n
            elif kind == "shuffle":
                layer, out = nn.ChannelShuffle(math.gcd(n, width)), n
            elif kind == "transposed":
                layer, out = nn.ConvTranspose2d(n, width, 3, padding=1), width
            elif kind in ("heads", "packed_heads"):
                packed = kind == "packed_heads"
                layer, out = Heads(n, math.gcd(n, width) if packed else 1 + width % 4, packed), n
            elif kind == "multihead":
                layer, out = MultiHead(n, math.gcd(n, width), batch_first=True), n
            elif kind == "norm":
                layer, out = nn.BatchNorm2d(n, affine=width % 3 > 0), n
            elif kind == "unary":
                layer, out = (nn.ReLU(inplace=False), nn.Sigmoid(), nn.PReLU(n), nn.GELU())[width % 4], n
            elif kind in ("add", "multiply"):
                layer, out = nn.Conv2d(channels[b], n, 1) if channels[b] != n else nn.Identity(), n
            elif kind == "cat":
                out = n + channels[b]
            elif kind == "pad":
                layer, out = ChannelPad(width % 3, b % 4), n + width % 3 + b % 4
            elif kind == "pool":
                layer, out = (nn.MaxPool2d, nn.AvgPool2d)[width % 2](3, stride=1, padding=1), n
            elif kind == "gate":
                layer, out = nn.Sequential(nn.Conv2d(n, width, 1), nn.ReLU(), nn.Conv2d(width, n, 1)), n
            elif kind in ("channels_last", "layer_norm"):
                layer = nn.Linear(n, width) if kind == "channels_last" else nn.LayerNorm(n)
                out = width if kind == "channels_last" else n
            else:
                out = n // 2 if kind == "slice" and n > 1 else n
            if kind == "scale":
                self.register_parameter(f"scale{len(channels)}", nn.Parameter(torch.ones(n, 1, 1)))
            self.layers.append(layer)
            self.program.append((kind, a, b))
            channels.append(out)
        self.flatten = flatten
        self.fc = nn.Linear(channels[-1] * (16 if flatten else 1), 2)

    def forward(self, x):
        values = [x]
        for index, ((kind, a, b), layer) in enumerate(zip(self.program, self.layers, strict=True)):
            y = values[a]
            if kind == "add":
                y = y + layer(values[b])
            elif kind == "multiply":
                y = y * layer(values[b])
            elif kind == "cat":
                y = torch.cat([y, values[b]], 1)
            elif kind == "gate":
                y = y * layer(y.mean((2, 3), keepdim=True)).sigmoid()
            elif kind in ("channels_last", "layer_norm"):
                y = layer(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            elif kind == "scale":
                y = y * getattr(self, f"scale{index + 1}")
            elif kind == "chunk":
                y = torch.cat(y.chunk(2, 1)[::-1], 1)
            elif kind == "slice":
                y = y[:, : y.size(1) // 2] if y.size(1) > 1 else y
            elif kind == "round_trip":
                y = y.flatten(2).transpose(1, 2).reshape(len(y), 4, 4, -1).permute(0, 3, 1, 2).contiguous()
            elif kind == "stack":
                y = torch.stack([y, F.relu(y)], 2).sum(2)
            else:
                y = layer(y)
            values.append(y)
        y = values[-1].relu()
        return self.fc(y.flatten(1) if self.flatten else y.mean((2, 3)))


step = st.tuples(st.sampled_from(KINDS), st.integers(0, 8), st.integers(0, 8), st.integers(1, 7))


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(step, min_size=3, max_size=9),
    flatten=st.booleans(),
    ratio=st.sampled_from([0.3, 0.5, 0.9]),
    rounding=st.sampled_from(["floor", "nearest", "ceil"]),
)
def test_pruning_is_masking_and_fuses_back(steps, flatten, ratio, rounding):
    # Two convolutions in front that nothing else reads give every network something to prune.
    front = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 1))
    model = scramble_(nn.Sequential(front, RandomNet(steps, flatten))).double()
    image = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    plan = plan_pruning(model, image, ratio=ratio, rounding=rounding)
    small = assert_pruning_is_masking(model, plan, image)
    scramble_(small, seed=1)
    fused = fuse_(model, small, plan, "zero")
    statistics = any(isinstance(module, nn.LayerNorm | nn.GroupNorm) for module in model.modules())
    assert_same_function(masked(fused, plan) if statistics else fused, small, image)
    assert statistics or not plan.not_preserved
    if not plan.not_preserved:
        dense = fuse_(scramble_(copy.deepcopy(model), seed=2), small, plan, "preserve")
        assert_same_function(dense, small, image)
        with torch.no_grad():
            torch.testing.assert_close(
                dense.train()(image), copy.deepcopy(small).train()(image), rtol=1e-9, atol=1e-9
            )
    back = plan.extract(model).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in small.state_dict().items())
