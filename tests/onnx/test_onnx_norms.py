"""Norms that are written out in files: pruned as PyTorch prunes the models that the files are of."""

import pytest
from peer_packages import skip_without

skip_without("onnx_ir")
skip_without("onnxruntime")
import numpy as np
import torch
from onnx_oracle import assert_close, assert_pruning_is_masking, export, floats, network, run
from torch import nn

import prunefuse.onnx


def layer_norm(x, axis):
    x = x - x.mean(axis, keepdim=True)
    return x / (x.pow(2).mean(axis, keepdim=True) + 1e-6).sqrt()


def rms_norm(x, axis):
    return x * torch.rsqrt((x * x).mean(axis, keepdim=True) + 1e-6)


def l2_norm(x, axis):
    return nn.functional.normalize(x, dim=axis)


def l2_norm_of_squares(x, axis):
    return x / (x.square().sum(axis, keepdim=True) + 1e-6).sqrt()


def response_norm(x, axis):
    space = tuple(a for a in range(1, x.ndim) if a != axis % x.ndim)
    size = x.norm(p=2, dim=space, keepdim=True)
    return x * (size / (size.mean(axis, keepdim=True) + 1e-6)) + x


class Norm(nn.Module):
    def __init__(self, function, width, axis):
        super().__init__()
        self.function, self.axis = function, axis
        shape = (width, 1, 1) if axis == 1 else (width,)
        self.scale, self.shift = nn.Parameter(torch.rand(shape) + 0.5), nn.Parameter(torch.rand(shape))

    def forward(self, x):
        return self.function(x, self.axis) * self.scale + self.shift


def model_with(function, axis):
    if axis == 1:
        layers = [
            nn.Conv2d(3, 12, 3),
            Norm(function, 12, 1),
            nn.ReLU(),
            nn.Conv2d(12, 8, 1),
            Norm(function, 8, 1),
            nn.Conv2d(8, 2, 1),
        ]
        return nn.Sequential(*layers), floats(2, 3, 6, 6)
    layers = [
        nn.Linear(5, 12),
        Norm(function, 12, -1),
        nn.ReLU(),
        nn.Linear(12, 8),
        Norm(function, 8, -1),
        nn.Linear(8, 2),
    ]
    return nn.Sequential(*layers), floats(2, 4, 5)


@pytest.mark.parametrize("exporter", ["legacy", "current"])
@pytest.mark.parametrize("axis", [1, -1], ids=["images", "tokens"])
@pytest.mark.parametrize("function", [layer_norm, rms_norm, l2_norm, l2_norm_of_squares, response_norm])
def test_norms_by_hand_are_pruned_as_those_of_the_model(function, axis, exporter, tmp_path):
    torch.manual_seed(0)
    model, x = model_with(function, axis)
    plan = prunefuse.plan_pruning(model, torch.from_numpy(x), ratio=0.5)
    widths = {layer.name: layer.width_after for layer in plan.layers}
    assert (widths["0"], widths["3"], widths["5"]) == (6, 4, 2)
    path = export(model, torch.from_numpy(x), tmp_path / "net.onnx", exporter)
    of_file = prunefuse.onnx.prune(path, tmp_path / "small.onnx", ratio=0.5)
    assert of_file.params == plan.params
    with torch.no_grad():
        assert_close(run(tmp_path / "small.onnx", x=x), [plan.extract(model)(torch.from_numpy(x)).numpy()])


NOT_NORMS = {
    "softmax": "e = Exp (b)\n s = ReduceSum <keepdims = 1> (e, axes)\n c = Div (e, s)",
    "a mean that gates": "s = ReduceMean <axes = [1], keepdims = 1> (b)\n t = Sigmoid (s)\n c = Mul (b, t)",
    "a mean by a count": (
        "q = Mul (b, b)\n s = ReduceSum <keepdims = 1> (q, axes)\n m = Div (s, eight)\n r = Sqrt (m)\n c = Div (b, r)"
    ),
}


@pytest.mark.parametrize("middle", NOT_NORMS.values(), ids=NOT_NORMS.keys())
def test_other_uses_of_statistics_keep_their_channels(middle, tmp_path):
    text = f"""(float[N, 3, 8, 8] x) => (float[N, 5, 6, 6] y) {{
        a = Conv (x, w1)
        b = Relu (a)
        {middle}
        y = Conv (c, w2) }}"""
    weights = {
        "w1": (8, 3, 3, 3),
        "w2": (5, 8, 1, 1),
        "axes": np.array([1]),
        "eight": np.array(8, dtype=np.float32),
    }
    path = network(tmp_path / "net.onnx", text, weights)
    with pytest.raises(ValueError, match="nothing was pruned"):
        prunefuse.onnx.plan(path, ratio=0.5)


def test_branches_that_nobody_reads_keep_nothing(tmp_path):
    text = """(float[N, 3, 8, 8] x) => (float[N, 5, 6, 6] y) {
        a = Conv (x, w1)
        d = ReduceMax <axes = [1], keepdims = 0> (a)
        e = Conv (a, w3)
        f = Reshape (e, flat)
        s = Shape (f)
        b = Relu (a)
        y = Conv (b, w2) }"""
    weights = {
        "w1": (8, 3, 3, 3),
        "w2": (5, 8, 1, 1),
        "w3": (4, 8, 1, 1),
        "flat": np.array([-1, 4 * 36]),
    }
    path = network(tmp_path / "net.onnx", text, weights)
    plan = assert_pruning_is_masking(path, x=floats(2, 3, 8, 8))
    assert [layer.width_after for layer in plan.layers] == [4, 5]
    assert "w3" not in prunefuse.onnx.read(tmp_path / "net-small.onnx").graph.initializers
