"""Files that converters made of networks of other frameworks; docs/frameworks.md says how."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from peer_packages import skip_without

skip_without("onnx_ir")
skip_without("onnxruntime")
from onnx_oracle import assert_pruning_is_masking, floats, run

import prunefuse.onnx

HERE = Path(__file__).parent / "converted"


@pytest.mark.parametrize(
    ("name", "inputs", "notes"),
    [
        ("tf2onnx", {"x": (3, 8, 8, 3)}, 0),
        ("jax2onnx", {"in_0": (3, 8, 8, 3)}, 0),
        ("skl2onnx", {"X": (3, 64)}, 1),  # of the probabilities, which are an output
    ],
)
def test_converted_files(tmp_path, name, inputs, notes):
    path = Path(shutil.copy(HERE / f"{name}.onnx", tmp_path))
    plan = assert_pruning_is_masking(path, **{key: floats(*shape) for key, shape in inputs.items()})
    assert plan.params[1] < 0.5 * plan.params[0]
    assert len(plan.notes) == notes


@pytest.mark.parametrize(
    ("name", "shape"), [("tf2onnx", (64, 8, 8, 3)), ("jax2onnx", (64, 8, 8, 3)), ("skl2onnx", (256, 64))]
)
def test_converted_files_without_training(tmp_path, name, shape):
    path, x = HERE / f"{name}.onnx", floats(*shape)
    small, cut = tmp_path / "small.onnx", tmp_path / "cut.onnx"
    plan = prunefuse.onnx.prune_without_finetuning(path, small, x)
    prunefuse.onnx.write(path, cut, plan)
    (feed,) = ({value.name: x} for value in prunefuse.onnx.read(path).graph.inputs)
    wanted, ours, theirs = (run(file, **feed)[-1] for file in (path, small, cut))
    assert np.square(ours - wanted).sum() < 0.7 * np.square(theirs - wanted).sum()
