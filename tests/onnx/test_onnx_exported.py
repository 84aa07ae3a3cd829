"""Files exported from PyTorch by the current exporter, with and without its optimizer, and by the legacy one."""

import logging
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peer_packages import skip_without

skip_without("onnx_ir")
skip_without("onnxruntime")
skip_without("onnxscript")
import torchvision
from onnx_oracle import assert_close, assert_pruning_is_masking, export, run

import prunefuse
import prunefuse.onnx
from prunefuse.models import build
from prunefuse.training import flops_per_input

sys.path.append(str(Path(__file__).parents[1] / "pruning"))
from pruning_oracle import scramble_

EXPORTERS = ("current", "unoptimized", "legacy")
NETWORKS = {
    "resnet8": lambda: build("resnet8", 10, 3),
    "shufflenet": lambda: torchvision.models.ShuffleNetV2([1, 1, 1], [8, 16, 32, 64, 64], num_classes=10),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=10),
    "mobilenet": lambda: torchvision.models.MobileNetV2(
        10, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]]
    ),
}


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_convolutional_networks_lose_half_of_every_axis(tmp_path, name, exporter):
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    path = export(scramble_(NETWORKS[name]()), x, tmp_path / "net.onnx", exporter)
    plan = assert_pruning_is_masking(path, x=x.numpy())
    assert plan.notes == ()
    assert plan.params[1] < 0.35 * plan.params[0]


def test_the_file_loses_what_the_pytorch_model_loses(tmp_path):
    model, x = scramble_(build("resnet8", 10, 3)), torch.randn(1, 3, 32, 32)
    plan = prunefuse.onnx.plan(export(model, x, tmp_path / "net.onnx", "unoptimized"))
    theirs = prunefuse.plan_pruning(model, x)
    own = {name: axes for name, axes in plan.kept.items() if name in dict(model.named_parameters())}
    assert own == {name: theirs.kept[name] for name in own}
    assert set(own) == set(theirs.kept) & set(dict(model.named_parameters()))
    assert plan.flops == theirs.flops


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_transformer_loses_whole_heads_and_computes_what_the_small_pytorch_model_does(tmp_path, exporter):
    vit = torchvision.models.VisionTransformer(16, 8, 2, 4, 32, 64, num_classes=10)
    model, x = scramble_(vit), torch.randn(1, 3, 16, 16)
    plan = prunefuse.onnx.prune(
        export(model, x, tmp_path / "net.onnx", exporter), tmp_path / "small.onnx", ratio=0.5
    )
    theirs = prunefuse.plan_pruning(model, x, ratio=0.5)
    assert plan.flops == theirs.flops
    small = theirs.extract(model).eval()
    with torch.no_grad():
        assert_close(run(tmp_path / "small.onnx", x=x.numpy()), [small(x).numpy()])


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_recurrent_layers_have_the_flops_of_pytorchs(tmp_path, kind):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = kind(6, 5, 2, bidirectional=True), torch.nn.Linear(10, 3)

        def forward(self, x):
            return self.head(self.layer(x)[0])

    model, x = Net(), torch.randn(1, 4, 6)
    plan = prunefuse.onnx.plan(export(model, x, tmp_path / "net.onnx", "legacy"), ratio=0)
    assert plan.flops[0] == flops_per_input(model, x)


@pytest.mark.parametrize("exporter", ["current", "legacy"])
def test_open_sizes_stay_open(tmp_path, exporter):
    layers = (torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, 10))
    x = torch.randn(2, 3, 8, 8)
    open_ = {"dynamic_axes": {"x": {0: "batch"}}} if exporter == "legacy" else {
        "dynamic_shapes": ({0: torch.export.Dim("batch")},)
    }  # fmt: skip
    path = export(torch.nn.Sequential(*layers), x, tmp_path / "net.onnx", exporter, **open_)
    assert_pruning_is_masking(path, x=torch.randn(5, 3, 8, 8).numpy())


def test_tensors_outside_of_the_file_stay_outside(tmp_path):
    path = export(build("vgg11_bn", 10, 3), torch.randn(1, 3, 32, 32), tmp_path / "net.onnx", "current")
    assert (tmp_path / "net.onnx.data").exists()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert_pruning_is_masking(path, x=torch.randn(1, 3, 32, 32).numpy())
    sizes = [(tmp_path / f"net{kind}.onnx.data").stat().st_size for kind in ("", "-small")]
    assert sizes[1] < 0.3 * sizes[0]
    assert (tmp_path / "net-small.onnx").stat().st_size < 100_000
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
