"""Pruning a file without training: predicted costs, refitted layers, and a trained network."""

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
import numpy as np
import onnx
from onnx_oracle import as_bfloat16, assert_close, export, floats, network, run
from torch import nn
from torch.nn import functional

import prunefuse.onnx
from prunefuse.data import load
from prunefuse.onnx.runtime import Feeds, FileNetwork
from prunefuse.pruning import prune_without_finetuning
from prunefuse.pruning._obspa.readers import find_readers
from prunefuse.pruning._obspa.refit import costs

sys.path.append(str(Path(__file__).parents[1] / "pruning"))
from pruning_oracle import scramble_


def constants(path):
    return {
        x.name: onnx.numpy_helper.to_array(x).astype(np.float64) for x in onnx.load(path).graph.initializer
    }


def values(path, names, feed):
    """What a file computes on the way."""
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    other = path.with_name(f"{path.stem}-values.onnx")
    onnx.save(model, other)
    return [torch.from_numpy(x).double() for x in run(other, **feed)]


def conv_options(text):
    """Attributes of a Conv as :func:`rows` wants them."""
    return {"strides": 1, "dilations": 1, "group": 1, "pads": (0, 0, 0, 0), **text}


def rows(h, kernel, options):
    """(groups, columns, positions): what a convolution multiplies its kernels with, by PyTorch's own unfolding."""
    top, left, bottom, right = options["pads"]
    h = functional.pad(h, (left, right, top, bottom))
    parts = h.chunk(options["group"], 1)
    unfolded = [
        functional.unfold(x, kernel, stride=options["strides"], dilation=options["dilations"]) for x in parts
    ]
    return torch.stack([x.movedim(0, 1).flatten(1) for x in unfolded])


def whole(*shape, dtype=np.float32, seed=0):
    """Small integers, with which layers compute exactly."""
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(dtype)


def predicted(path, x):
    """What removing each channel is predicted to cost the layers that read it."""
    model = prunefuse.onnx.read(path)
    traced = prunefuse.onnx.reader.trace(model, prunefuse.onnx.reader.example_shapes(model))
    readers, _ = find_readers(traced)
    return costs(FileNetwork(model, readers), readers, Feeds(x, model), 0, 2**30)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("transposed", [0, 1])
def test_the_predicted_increase_of_the_loss_of_a_product_is_the_true_one(tmp_path, transposed, biased):
    text = f"""(double[N, 4] x) => (double[N, 3] y) {{
        a = Gemm (x, w1)
        h = Relu (a)
        y = Gemm <transB = {transposed}> (h, w2{", b2" * biased}) }}"""
    w2 = np.random.default_rng(5).normal(size=(3, 6) if transposed else (6, 3))
    weights = {
        "w1": whole(4, 6, dtype=np.float64),
        "w2": w2,
        **({"b2": floats(3).astype(float)} if biased else {}),
    }
    path = network(tmp_path / "net.onnx", text, weights)
    x = whole(200, 4, dtype=np.float64, seed=1)
    cost = predicted(path, x)["w2"][1 if transposed else 0]
    h = torch.from_numpy(np.maximum(x @ weights["w1"], 0))
    design = functional.pad(h, (0, 1), value=1.0) if biased else h
    y = h @ torch.from_numpy(w2.T if transposed else w2)
    for channel in range(6):
        left = design[:, [c for c in range(design.shape[1]) if c != channel]]
        best = torch.linalg.lstsq(left, y, driver="gelsd").solution
        assert float(cost[channel]) == pytest.approx(float((y - left @ best).square().sum()), rel=1e-8)


CONVOLUTIONS = [
    ({}, (3, 3)),
    ({"strides": (2, 1), "pads": (1, 0, 2, 1)}, (3, 2)),
    ({"dilations": (2, 1), "pads": (1, 1, 1, 1)}, (2, 3)),
    ({"group": 2, "strides": (2, 2)}, (2, 2)),
]


def conv(inputs, output, options):
    written = ", ".join(f"{k} = {list(v) if isinstance(v, tuple) else v}" for k, v in options.items())
    return f"{output} = Conv {f'<{written}>' if written else ''} ({inputs})"


@pytest.mark.parametrize(("options", "kernel"), CONVOLUTIONS)
def test_the_predicted_increase_of_the_loss_of_a_convolution_is_the_true_one(tmp_path, options, kernel):
    text = f"""(float[N, 3, 7, 7] x) => (float[N, 4, H, W] y) {{
        a = Conv (x, w1)
        h = Relu (a)
        {conv("h, w2", "y", options)} }}"""
    full = conv_options(options)
    w1, w2 = whole(6, 3, 1, 1), floats(4, 6 // full["group"], *kernel)
    path = network(tmp_path / "net.onnx", text, {"w1": w1, "w2": w2})
    x = whole(60, 3, 7, 7, seed=1)
    cost = predicted(path, x)["w2"][1]
    h = functional.conv2d(torch.from_numpy(x).double(), torch.from_numpy(w1).double()).relu()
    design = rows(h, kernel, full).mT
    own = torch.from_numpy(w2).double().flatten(1).unflatten(0, (full["group"], -1))
    y = design @ own.mT
    inputs, positions = 6 // full["group"], kernel[0] * kernel[1]
    assert len(cost) == inputs
    for channel in range(inputs):
        left = [c for c in range(inputs * positions) if c // positions != channel]
        true = 0.0
        for g in range(full["group"]):
            best = torch.linalg.lstsq(design[g][:, left], y[g], driver="gelsd").solution
            true += float((y[g] - design[g][:, left] @ best).square().sum())
        assert float(cost[channel]) == pytest.approx(true, rel=1e-8)


def assert_best(design, matrix, wanted):
    """No other matrix comes nearer: (samples, columns), (rows, columns), (samples, rows)."""
    best = torch.linalg.lstsq(design, wanted, driver="gelsd").solution
    least = float((design @ best - wanted).square().sum())
    got = float((design @ matrix.T - wanted).square().sum())
    assert got <= least * (1 + 1e-4) + 1e-9 * float(wanted.square().sum())


@pytest.mark.parametrize(("options", "kernel"), CONVOLUTIONS)
@pytest.mark.parametrize("biased", [False, True])
def test_convolutions_are_refitted_and_never_worse_than_deletion(tmp_path, options, kernel, biased):
    bias = ", b2" * biased
    text = f"""(float[N, 3, 7, 7] x) => (float[N, 4, H, W] y) {{
        a = Conv (x, w1)
        h = Tanh (a)
        {conv(f"h, w2{bias}", "y", options)} }}"""
    full = conv_options(options)
    weights = {"w1": (8, 3, 1, 1), "w2": (4, 8 // full["group"], *kernel), **({"b2": (4,)} if biased else {})}
    path = network(tmp_path / "net.onnx", text, weights)
    x, small, deleted = floats(100, 3, 7, 7), tmp_path / "small.onnx", tmp_path / "deleted.onnx"
    plan = prunefuse.onnx.prune_without_finetuning(path, small, x, damping=0)
    assert plan.criterion == "obspa"
    prunefuse.onnx.write(path, deleted, plan)
    wanted, ours, cut = (torch.from_numpy(run(file, x=x)[0]).double() for file in (path, small, deleted))
    assert (ours - wanted).square().sum() < 0.9 * (cut - wanted).square().sum()
    (h,) = values(small, ["h"], {"x": x})
    assert h.shape[1] == 4
    written = constants(small)
    matrix = torch.from_numpy(written["w2"]).flatten(1).unflatten(0, (full["group"], -1))
    for g, design in enumerate(rows(h, kernel, full).mT):
        outputs = wanted.chunk(full["group"], 1)[g].movedim(1, -1).flatten(0, -2)
        own = matrix[g]
        if biased:
            design = functional.pad(design, (0, 1), value=1.0)
            mine = torch.from_numpy(written["b2"]).unflatten(0, (full["group"], -1))[g]
            own = torch.cat([own, mine[:, None]], 1)
        assert_best(design, own, outputs)


@pytest.mark.parametrize("how", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding_is_what_the_runtime_does(tmp_path, how):
    text = f"""(float[N, 3, 8, 7] x) => (float[N, 4, H, W] y) {{
        a = Conv (x, w1)
        h = Tanh (a)
        y = Conv <auto_pad = "{how}", strides = [2, 2]> (h, w2) }}"""
    path = network(tmp_path / "net.onnx", text, {"w1": (6, 3, 1, 1), "w2": (4, 6, 3, 2)})
    x = floats(80, 3, 8, 7)
    prunefuse.onnx.prune_without_finetuning(path, tmp_path / "small.onnx", x, damping=0)
    pads = {"SAME_UPPER": (0, 0, 1, 1), "SAME_LOWER": (1, 1, 0, 0), "VALID": (0, 0, 0, 0)}[how]
    (h,) = values(tmp_path / "small.onnx", ["h"], {"x": x})
    (design,) = rows(h, (3, 2), conv_options({"strides": (2, 2), "pads": pads})).mT
    matrix = torch.from_numpy(constants(tmp_path / "small.onnx")["w2"]).flatten(1)
    wanted = torch.from_numpy(run(path, x=x)[0]).double().movedim(1, -1).flatten(0, -2)
    assert_best(design, matrix, wanted)


PRODUCTS = {
    "gemm": ("b = Gemm (h, w2, b2)", True, False),
    "transposed gemm": ("b = Gemm <transB = 1> (h, w2, b2)", True, True),
    "gemm without bias": ("b = Gemm (h, w2)", False, False),
    "matmul": ("b = MatMul (h, w2)", False, False),
    "matmul and add": ("m = MatMul (h, w2) \n b = Add (b2, m)", True, False),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_refitted(tmp_path, name):
    line, biased, transposed = PRODUCTS[name]
    text = f"""(float[N, 5] x) => (float[N, 3] y) {{
        a = MatMul (x, w1)
        h = Tanh (a)
        {line}
        k = Sigmoid (b)
        y = MatMul (k, w3) }}"""
    weights = {"w1": (5, 10), "w2": (8, 10) if transposed else (10, 8), "b2": (8,), "w3": (8, 3)}
    path = network(
        tmp_path / "net.onnx", text, weights if biased else {k: v for k, v in weights.items() if k != "b2"}
    )
    x = floats(300, 5)
    plan = prunefuse.onnx.prune_without_finetuning(path, tmp_path / "small.onnx", x, damping=0)
    h, k = values(tmp_path / "small.onnx", ["h", "k"], {"x": x})
    (b,) = values(path, ["b"], {"x": x})
    assert (h.shape[1], k.shape[1]) == (5, 4)
    written = {name: torch.from_numpy(array) for name, array in constants(tmp_path / "small.onnx").items()}
    matrix = written["w2"] if transposed else written["w2"].T
    if biased:
        h, matrix = functional.pad(h, (0, 1), value=1.0), torch.cat([matrix, written["b2"][:, None]], 1)
    assert_best(h, matrix, b[:, plan.kept["w2"][0 if transposed else 1]])
    assert_best(k, written["w3"].T, torch.from_numpy(run(path, x=x)[0]).double())


class Network(nn.Module):
    """With biases: for convolutions without, the exporter writes zeros, which are fitted as well."""

    def __init__(self, inputs=3, width=16):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width)
        self.one, self.first = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.two, self.second = nn.Conv2d(width, width, 3, padding=1, groups=2), nn.BatchNorm2d(width)
        self.last, self.head = nn.Conv2d(width, width, 3, stride=2), nn.Linear(9 * width, 10)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.second(self.two(self.first(self.one(x)).relu()))
        return self.head(self.last(x.relu()).relu().flatten(1))


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    "options", [{}, {"combine": "median"}, {"fit_to": "own"}, {"combine": "mean", "fit_to": "own"}]
)
def test_the_file_becomes_what_the_model_becomes(tmp_path, options):
    model, x = scramble_(Network()).eval(), torch.randn(256, 3, 8, 8)
    path = export(model, x[:2], tmp_path / "net.onnx", "unoptimized")
    plan = prunefuse.onnx.prune_without_finetuning(
        path, tmp_path / "small.onnx", x.numpy(), ratio=0.4, **options
    )
    theirs, small = prune_without_finetuning(model, x[:2], x, ratio=0.4, **options)
    assert plan.kept == theirs.kept
    with torch.no_grad():
        assert_close(
            run(tmp_path / "small.onnx", x=x[:2].numpy()), [small.eval()(x[:2]).numpy()], tolerance=1e-3
        )


@pytest.fixture(scope="module")
def digits():
    """A network trained for seconds, calibration images, test images and labels."""
    data = load("digits")
    x, y = map(torch.stack, zip(*((x, torch.as_tensor(y)) for x, y in data.pool), strict=True))
    test_x, test_y = map(torch.stack, zip(*((x, torch.as_tensor(y)) for x, y in data.test), strict=True))
    torch.manual_seed(0)
    model = Network(1)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(6):
        for some in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[some]), y[some]).backward()
            optimizer.step()
    return model.eval(), x[:512].numpy(), test_x.numpy(), test_y.numpy()


@pytest.mark.parametrize("exporter", ["legacy", "unoptimized"])
def test_a_trained_network_keeps_its_accuracy_where_deletion_does_not(tmp_path, digits, exporter):
    model, images, x, labels = digits
    path, small, cut, l1 = (tmp_path / f"{name}.onnx" for name in ("net", "small", "cut", "l1"))
    torch.onnx.export(model, (torch.from_numpy(x[:4]),), path, input_names=["x"], **(
        {"dynamo": False, "dynamic_axes": {"x": {0: "n"}}} if exporter == "legacy" else
        {"dynamo": True, "optimize": False, "verbose": False, "dynamic_shapes": ({0: torch.export.Dim("n")},)}
    ))  # fmt: skip
    before = constants(path) if exporter == "legacy" else {}
    assert any("running_mean" in name for name in constants(path)) == (exporter == "unoptimized")
    plan = prunefuse.onnx.prune_without_finetuning(path, small, images, ratio=0.5)
    prunefuse.onnx.write(path, cut, plan)
    assert prunefuse.onnx.prune(path, l1, ratio=0.5, criterion="l1").flops == plan.flops
    accuracy = {
        file.stem: float((run(file, x=x)[0].argmax(1) == labels).mean()) for file in (path, small, cut, l1)
    }
    assert accuracy["net"] > 0.95
    assert accuracy["small"] > accuracy["net"] - 0.05
    assert accuracy["small"] > max(accuracy["cut"], accuracy["l1"]) + 0.05
    if before:
        after = constants(path)
        assert all(np.array_equal(before[name], after[name]) for name in before)


CHAIN = """(float[N, 5] x, float[N, 5] z) => (float[N, 3] y) {
    s = Add (x, z)
    a = MatMul (s, w1)
    h = Tanh (a)
    y = MatMul (h, w2) }"""


@pytest.fixture
def chain(tmp_path):
    return network(tmp_path / "net.onnx", CHAIN, {"w1": (5, 8), "w2": (8, 3)})


def test_the_form_of_the_inputs_and_the_memory_do_not_matter(chain, tmp_path):
    x, z = floats(100, 5), floats(100, 5, seed=2)
    forms = [
        {"x": x, "z": z},
        {"x": x.astype(np.float64), "z": torch.from_numpy(z)},
        [{"x": x[:3], "z": z[:3], "label": 0}, {"x": x[3:], "z": z[3:]}],
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(*map(torch.from_numpy, (x, z)), torch.zeros(100)), batch_size=30
        ),
    ]
    results = []
    for number, form in enumerate(forms):
        out = tmp_path / f"{number}.onnx"
        plan = prunefuse.onnx.prune_without_finetuning(chain, out, form, memory=number)
        results.append((plan, constants(out)["w2"]))
    for plan, weight in results[1:]:
        assert plan == results[0][0]
        np.testing.assert_allclose(weight, results[0][1], rtol=1e-4, atol=1e-6)


def test_a_fixed_batch_is_kept_to_and_data_outside_stays_outside(tmp_path):
    text = "(float[4, 5] x) => (float[4, 3] y) { a = MatMul (x, w1) h = Tanh (a) y = MatMul (h, w2) }"
    path = network(tmp_path / "net.onnx", text, {"w1": (5, 800), "w2": (800, 3)})
    onnx.save(onnx.load(path), tmp_path / "out.onnx", save_as_external_data=True, location="out.data")
    prunefuse.onnx.prune_without_finetuning(tmp_path / "out.onnx", tmp_path / "small.onnx", floats(40, 5))
    assert (tmp_path / "small.onnx.data").exists()
    assert run(tmp_path / "small.onnx", x=floats(4, 5))[0].shape == (4, 3)
    with pytest.raises(
        ValueError, match=r"calibration must be arrays of equally many samples, in batches of 4"
    ):
        prunefuse.onnx.prune_without_finetuning(path, tmp_path / "other.onnx", floats(42, 5))


def test_what_cannot_be_made_up_for_stays(tmp_path):
    text = """(float[N, 5] x) => (float[N, 3] y, float[N, 2] u) {
        a = MatMul (x, w1)
        h = Tanh (a)
        y = Gemm <alpha = 2.0> (h, w2)
        b = MatMul (x, w3)
        k = Tanh (b)
        u = MatMul (k, w4) }"""
    weights = {"w1": (5, 8), "w2": (8, 3), "w3": (5, 8), "w4": (8, 2)}
    path = network(tmp_path / "net.onnx", text, weights)
    plan = prunefuse.onnx.prune_without_finetuning(path, tmp_path / "small.onnx", floats(40, 5))
    assert set(plan.kept) == {"w3", "w4"}
    assert any(note.startswith("w1: read by Gemm") for note in plan.notes)


@pytest.mark.parametrize(
    ("calibration", "options", "error", "words"),
    [
        (iter([1]), {}, TypeError, "calibration must be an array, arrays by input name or something"),
        ([], {}, ValueError, "calibration must be at least one batch"),
        (floats(9, 5), {}, TypeError, "calibration must be an array for each of x, z, got x"),
        ([{"x": floats(9, 5)}], {}, TypeError, "calibration must be an array for each of x, z, got x"),
        (
            {"x": floats(9, 5), "z": floats(8, 5)},
            {},
            ValueError,
            "calibration must be arrays of equally many",
        ),
        (
            {"x": floats(9, 5) + 1j, "z": floats(9, 5)},
            {},
            TypeError,
            "calibration must be float32 for the input x",
        ),
        (
            {"x": floats(9, 4), "z": floats(9, 5)},
            {},
            ValueError,
            "calibration must be what onnxruntime can run",
        ),
        (
            [[floats(2, 5)] * 2],
            {"damping": 0},
            ValueError,
            "damping must be larger, or calibration must be more inputs",
        ),
        ([[floats(2, 5)] * 2], {"damping": -1}, ValueError, "damping must be"),
        (
            [[floats(2, 5)] * 2],
            {"combine": "max"},
            ValueError,
            "combine must be one of sum, mean, median, got 'max'",
        ),
        (
            [[floats(2, 5)] * 2],
            {"fit_to": "small"},
            ValueError,
            "fit_to must be one of dense, own, got 'small'",
        ),
        (
            [[floats(2, 5)] * 2],
            {"criterion": "l1"},
            TypeError,
            "criterion must be left out: channels are ranked by the calibration",
        ),
    ],
)
def test_wrong_arguments_are_named(chain, tmp_path, calibration, options, error, words):
    with pytest.raises(error, match=words):
        prunefuse.onnx.prune_without_finetuning(chain, tmp_path / "small.onnx", calibration, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("shared", ["bias", "weight and bias"])
def test_shared_constants(tmp_path, shared):
    other = "w3" if shared == "bias" else "w2"
    text = f"""(float[N, 5] x) => (float[N, 3] y, float[N, 3] u) {{
        a = MatMul (x, w1)
        h = Tanh (a)
        k = Sin (a)
        m = MatMul (h, w2)
        y = Add (m, b)
        n = MatMul (k, {other})
        u = Add (n, b) }}"""
    path = network(tmp_path / "net.onnx", text, {"w1": (5, 8), "w2": (8, 3), "w3": (8, 3), "b": (3,)})
    x = floats(300, 5)
    prunefuse.onnx.prune_without_finetuning(path, tmp_path / "small.onnx", x, damping=0)
    h, k = values(tmp_path / "small.onnx", ["h", "k"], {"x": x})
    assert h.shape[1] == 4
    y, u = (torch.from_numpy(array).double() for array in run(path, x=x))
    before, after = constants(path), constants(tmp_path / "small.onnx")
    first, second, bias = (torch.from_numpy(after[name]) for name in ("w2", "w3", "b"))
    if shared == "bias":  # it cannot follow two layers
        assert np.array_equal(before["b"], after["b"])
        assert_best(h, first.T, y - bias)
        assert_best(k, second.T, u - bias)
    else:
        design = functional.pad(torch.cat([h, k]), (0, 1), value=1.0)
        assert_best(design, torch.cat([first, bias[None]]).T, torch.cat([y, u]))


def test_what_the_runtime_does_not_run_is_refused(tmp_path):
    text = """(float[2, 5] x) => (float[2, 3] y) {
        g = com.example.Gate (x)
        a = MatMul (g, w1)
        h = Tanh (a)
        y = MatMul (h, w2) }"""
    path = network(tmp_path / "net.onnx", text, {"w1": (5, 8), "w2": (8, 3)}, domains=["com.example"])
    model = onnx.load(path)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("g", onnx.TensorProto.FLOAT, [2, 5]))
    onnx.save(model, path)
    with pytest.raises(ValueError, match="path must be a network that onnxruntime can run"):
        prunefuse.onnx.prune_without_finetuning(path, tmp_path / "small.onnx", floats(40, 5))
    with pytest.raises(FileExistsError, match="out must be a new file, got"):
        prunefuse.onnx.prune_without_finetuning(path, path, floats(40, 5))
    as_bfloat16(path)
    with pytest.raises(
        ValueError, match=r"path must have weights that onnxruntime runs, got torch\.bfloat16 w2"
    ):
        prunefuse.onnx.prune_without_finetuning(path, tmp_path / "small.onnx", floats(40, 5))


def test_a_network_with_nothing_to_make_up_for(tmp_path):
    path = network(
        tmp_path / "net.onnx", "(float[N, 5] x) => (float[N, 3] y) { y = MatMul (x, w) }", {"w": (5, 3)}
    )
    with pytest.raises(
        ValueError, match="path must have a convolution or matrix product that reads channels"
    ):
        prunefuse.onnx.prune_without_finetuning(path, tmp_path / "small.onnx", floats(40, 5))


def test_without_the_runtime_it_says_so(chain, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="calibration needs the package onnxruntime"):
        prunefuse.onnx.prune_without_finetuning(
            chain, tmp_path / "small.onnx", {"x": floats(9, 5), "z": floats(9, 5)}
        )
