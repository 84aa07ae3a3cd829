"""Files that converters made of networks of other frameworks; docs/frameworks.md says how."""

import shutil
from pathlib import Path

import pytest
from peer_packages import skip_without

skip_without("onnx_ir")
skip_without("onnxruntime")
from onnx_oracle import assert_pruning_is_masking, floats

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
