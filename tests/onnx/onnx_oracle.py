"""The oracle of pruned files: the dense file with the removed channels set to zero gives the same outputs."""

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch

import prunefuse.onnx


def run(path, **inputs):
    """What a file computes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, inputs)


def assert_close(ours, theirs, tolerance=2e-5):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert np.isfinite(a).all()
        scale = np.abs(b).max()
        assert scale > 1e-4
        assert np.abs(a - b).max() <= tolerance * scale


def masked(path, plan, out):
    """Write the dense file with zeros wherever the plan removes something."""
    model = prunefuse.onnx.read(path)
    for name, axes in plan.kept.items():
        value = model.graph.initializers[name]
        array = value.const_value.numpy().copy()
        for axis, kept in axes.items():
            gone = np.setdiff1d(np.arange(array.shape[axis]), kept)
            np.moveaxis(array, axis, 0)[gone] = 0
        value.const_value = onnx_ir.tensor(array, name=name)
    onnx_ir.save(model, out, external_data=f"{out.name}.data")


def assert_pruning_is_masking(path, planning=None, **inputs):
    """Prunes half of the channels, or as ``planning`` says, beside the file; returns the plan."""
    small, dense, zeroed = (
        path.with_name(f"{path.stem}-{kind}.onnx") for kind in ("small", "dense", "zeroed")
    )
    plan = prunefuse.onnx.prune(path, small, **planning or {})
    assert plan.params[1] < plan.params[0]
    onnx.checker.check_model(small, full_check=True)
    masked(path, plan, zeroed)
    assert_close(run(small, **inputs), run(zeroed, **inputs))
    onnx_ir.save(prunefuse.onnx.read(path), dense, external_data=f"{dense.name}.data")
    assert_close(run(dense, **inputs), run(path, **inputs))  # what reading rewrites computes the same
    return plan


def export(model, x, path, exporter, **options):
    """A file by one of PyTorch's exporters, in evaluation mode."""
    options["input_names"] = ["x"]
    if exporter == "legacy":
        torch.onnx.export(model.eval(), (x,), path, dynamo=False, opset_version=17, **options)
    else:
        optimize = exporter == "current"
        torch.onnx.export(model.eval(), (x,), path, dynamo=True, optimize=optimize, verbose=False, **options)
    return path


def network(path, text, weights, opset=17, domains=(), seed=0):
    """Write a file: a graph in ONNX's text form, and its weights as arrays, or shapes to be filled with random numbers."""
    generator = np.random.default_rng(seed)
    imports = ", ".join([f'"" : {opset}', *(f'"{domain}" : 1' for domain in domains)])
    model = onnx.parser.parse_model(f"<ir_version: 9, opset_import: [{imports}]> g {text}")
    for node in model.graph.node:  # the text form has no dots in names
        node.input[:] = [name.replace("__", ".") for name in node.input]
    for name, weight in weights.items():
        if isinstance(weight, tuple):
            scale = max(1, int(np.prod(weight[1:]))) ** -0.5
            weight = (generator.normal(size=weight) * scale + 0.05).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(weight), name))
    onnx.save(model, path)
    return path


def as_bfloat16(path):
    """Rewrite a file of float32 in bfloat16."""
    model = onnx.load(path)
    kind = onnx.TensorProto.BFLOAT16
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.type.tensor_type.elem_type = kind
    for tensor in model.graph.initializer:
        values = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        bits = values.bfloat16().view(torch.int16).numpy().tobytes()
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, kind, values.shape, bits, raw=True))
    onnx.save(model, path)


def numbers(*values):
    """Sizes, as ONNX has them."""
    return np.array(values, dtype=np.int64)


def floats(*shape, seed=1):
    """An input."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
