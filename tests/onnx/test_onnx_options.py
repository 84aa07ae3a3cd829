"""Criteria, targets and counts of a file are those of the PyTorch model that it was exported from."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from peer_packages import skip_without

skip_without("onnx_ir")
skip_without("onnxruntime")
skip_without("onnxscript")
import numpy as np
import onnx
from onnx_oracle import as_bfloat16, assert_pruning_is_masking, export, floats, network

import prunefuse
import prunefuse.onnx
from prunefuse.pruning import Target

sys.path.append(str(Path(__file__).parents[1] / "pruning"))
from pruning_oracle import scramble_

OPTIONS = {
    "spa": {"preset": "spa", "ratio": 0.4},
    "least part": {"preset": "spa", "ratio": 0.9, "min_fraction": 0.3},
    "flops": {"target": Target("flops", 0.5)},
    "parameters": {"target": Target("parameters", at_most=3_000), "preset": "spa", "criterion": "l1"},
    "global": {"ranking": "global", "normalization": "mean", "ratio": 0.3},
    "counts": {"round_to": 8, "min_channels": 8, "ratio": 0.4, "rounding": "ceil"},
    "ratios": {"ratios": {"one*": 0.5, "body.two": 0.25}, "ratio": 0.75},
    "scales": {"criterion": "bn_scale", "aggregation": "max"},
    "function": {"criterion": lambda weight, gradient: weight.abs().sqrt(), "scope": "coupled", "aggregation": "l2"},
    "ignored": {"ignore": "body.*", "target": Target("flops", 0.7)},
    "scores": {"scores": {"stem.weight": {0: torch.arange(16.0)}}},
}  # fmt: skip


class Network(torch.nn.Module):
    """All convolutions have biases: for those that have none the exporter writes zeros."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(16)
        self.one = torch.nn.Conv2d(16, 24, 3, stride=2)
        self.body = torch.nn.ModuleDict(
            {"two": torch.nn.Conv2d(24, 24, 3, padding=1), "norm": torch.nn.BatchNorm2d(24)}
        )
        self.head = torch.nn.Linear(24, 10)

    def forward(self, x):
        x = self.one(self.norm(self.stem(x)).relu())
        x = x + self.body["norm"](self.body["two"](x.relu())).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model, x = scramble_(Network()), torch.randn(1, 3, 16, 16)
    path = tmp_path_factory.mktemp("file") / "net.onnx"
    return model, x, export(model, x, path, "unoptimized", external_data=False)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_file_loses_what_the_model_loses(exported, tmp_path, name):
    model, x, file = exported
    path = shutil.copy(file, tmp_path / "net.onnx")
    plan = assert_pruning_is_masking(path, OPTIONS[name], x=x.numpy())
    theirs = prunefuse.plan_pruning(model, x, **OPTIONS[name])
    assert plan.kept == theirs.kept
    assert (plan.flops, plan.params) == (theirs.flops, theirs.params)
    assert (plan.ratio, plan.ranking, plan.criterion) == (theirs.ratio, theirs.ranking, theirs.criterion)


def test_memory_counts_weights_and_activations(tmp_path):
    text = """(float[N, 16] x) => (float[N, 4] y) {
        a = MatMul (x, w1)
        b = Add (a, bias)
        c = Relu (b)
        y = MatMul (c, w2) }"""
    path = network(tmp_path / "net.onnx", text, {"w1": (16, 64), "bias": (64,), "w2": (64, 4)})
    plan = assert_pruning_is_masking(path, {"target": Target("memory", 0.5)}, x=floats(3, 16))
    width = len(plan.kept["w2"][0])

    def memory(width: int) -> int:  # two hidden tensors at once
        return 4 * (16 * width + width + 4 * width + 2 * width)

    assert memory(width) <= memory(64) / 2 < memory(width + 1)
    assert any("memory at most" in note for note in plan.notes)


def test_shapes_in_the_order_of_the_inputs(tmp_path):
    text = """(float[N, A] x, float[N, A] z) => (float[N, 4] y) {
        s = Add (x, z)
        a = MatMul (s, w1)
        y = MatMul (a, w2) }"""
    path = network(tmp_path / "net.onnx", text, {"w1": (6, 8), "w2": (8, 4)})
    assert prunefuse.onnx.plan(path, shapes=[(1, 6), (1, 6)]).inputs[1].shape == (1, 6)
    with pytest.raises(ValueError, match="shapes must be of the inputs x, z, got 3"):
        prunefuse.onnx.plan(path, shapes=[(1, 6)] * 3)


def test_weights_in_bfloat16_are_ranked(tmp_path):
    path = network(tmp_path / "net.onnx", "(float[2, 6] x) => (float[2, 4] y) { a = MatMul (x, w1) y = MatMul (a, w2) }",
                   {"w1": (6, 8), "w2": (8, 4)})  # fmt: skip
    weight = onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    as_bfloat16(path)
    plan = prunefuse.onnx.prune(path, tmp_path / "small.onnx")
    assert plan.kept["w1"][1] == tuple(sorted(np.argsort(-np.linalg.norm(weight, axis=0))[:4].tolist()))
