"""Hand-built graphs in the idioms of converters: each is pruned, and computes what the masked file does."""

import pytest
from peer_packages import skip_without

skip_without("onnx_ir")
skip_without("onnxruntime")
import numpy as np
from onnx_oracle import assert_pruning_is_masking, floats, network, numbers

IMAGE = {"w1": (8, 3, 3, 3), "w2": (6, 8, 1, 1)}
"""A convolution to 8 channels, which a graph turns into something for another one to 6."""

GRAPHS = {
    # TensorFlow's converter: channels last, a transpose around each convolution, MatMul + Add.
    "channels last": (
        """(float[N, 8, 8, 3] x) => (float[N, 5] y) {
        a = Transpose <perm = [0, 3, 1, 2]> (x)
        b = Conv <pads = [1, 1, 1, 1]> (a, w1)
        c = Transpose <perm = [0, 2, 3, 1]> (b)
        d = Add (c, bias1)
        e = Relu (d)
        f = Transpose <perm = [0, 3, 1, 2]> (e)
        g = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (f)
        h = Transpose <perm = [0, 2, 3, 1]> (g)
        i = Reshape (h, flat)
        j = MatMul (i, w2)
        k = Add (j, bias2)
        l = Relu (k)
        m = MatMul (l, w3)
        y = Add (bias3, m) }""",
        {
            "w1": (8, 3, 3, 3),
            "bias1": (8,),
            "flat": numbers(-1, 128),
            "w2": (128, 12),
            "bias2": (12,),
            "w3": (12, 5),
            "bias3": (5,),
        },
    ),
    # A flattening whose size the graph computes from shapes: N stays open.
    "computed sizes": (
        """(float[N, 8, 8, 3] x) => (float[N, 5] y) {
        a = Transpose <perm = [0, 3, 1, 2]> (x)
        b = Conv (a, w1)
        s = Shape (x)
        n = Slice (s, zero, one)
        t = Concat <axis = 0> (n, rest)
        c = Reshape (b, t)
        y = MatMul (c, w2) }""",
        {"w1": (8, 3, 3, 3), "zero": numbers(0), "one": numbers(1), "rest": numbers(288), "w2": (288, 5)},
    ),
    # JAX's converters: Gemm without transposition, dot_general as Einsum, means as sums, weights on the left.
    "einsum": (
        """(float[2, 6] x) => (float[5, 2] y) {
        a = Gemm (x, w1, bias1)
        b = Einsum <equation = "bi,io->bo"> (a, w2)
        c = Tanh (b)
        d = Transpose (c)
        y = MatMul (w3, d) }""",
        {"w1": (6, 8), "bias1": (8,), "w2": (8, 8), "w3": (5, 8)},
    ),
    "transposed weights": (
        """(float[2, 6] x) => (float[2, 5] y) {
        t = Transpose (w1)
        a = MatMul (x, t)
        y = Gemm <transB = 1> (a, w2) }""",
        {"w1": (8, 6), "w2": (5, 8)},
    ),
}
MIDDLES = {
    "group convolution": ("c = Conv <group = 2> (b, g)", {"g": (8, 4, 1, 1)}),
    "depthwise": ("c = Conv <group = 8, pads = [1, 1, 1, 1]> (b, g)", {"g": (8, 1, 3, 3)}),
    "transposed convolution": ("c = ConvTranspose <strides = [2, 2]> (b, g)", {"g": (8, 8, 2, 2)}),
    "batch norm": (
        "c = BatchNormalization (b, s, t, m, v)",
        {"s": (8,), "t": (8,), "m": (8,), "v": np.linspace(0.5, 2, 8, dtype=np.float32)},
    ),
    "instance norm": ("c = InstanceNormalization (b, s, t)", {"s": (8,), "t": (8,)}),
    "branches": ("d = Sigmoid (b) \n e = Mul (b, d) \n c = Max (b, e)", {}),
    "slope": ("c = PRelu (b, s)", {"s": (8, 1, 1)}),
    "slices": (
        "d = Slice (b, s, m, one) \n e = Slice (b, m, n, one) \n f = Mul (d, e) \n c = Concat <axis = 1> (f, f)",
        {"s": numbers(0), "m": numbers(4), "n": numbers(8), "one": numbers(1)},
    ),
    "split": (
        "d, e = Split <axis = 1> (b, s) \n c = Concat <axis = 1> (e, d)",
        {"s": numbers(4, 4)},
    ),
    "shuffle": (
        "d = Reshape (b, s) \n e = Transpose <perm = [0, 2, 1, 3, 4]> (d) \n c = Reshape (e, t)",
        {"s": numbers(0, 2, 4, 6, 6), "t": numbers(0, -1, 6, 6)},
    ),
    "squeezed": ("p = GlobalAveragePool (b) \n d = Squeeze (p, a) \n c = Unsqueeze (d, a)", {"a": numbers(2, 3)}),
    "mean": ("c = ReduceMean <axes = [2, 3]> (b)", {}),
    "resized": ("c = Resize <mode = \"nearest\"> (b, , , s)", {"s": numbers(2, 8, 12, 12)}),
    "expanded": ("p = GlobalMaxPool (b) \n c = Expand (p, s)", {"s": numbers(2, 8, 3, 3)}),
    "padded": ("c = Pad (b, p)", {"p": numbers(0, 0, 1, 1, 0, 0, 1, 1)}),
    "tiled": ("d = Tile (b, r) \n c = Conv (d, g)", {"r": numbers(1, 2, 1, 1), "g": (8, 16, 1, 1)}),
    "depth to space": ("d = Conv (b, g) \n c = DepthToSpace <blocksize = 2> (d)", {"g": (32, 8, 1, 1)}),
    "pixel shuffle": ("d = Conv (b, g) \n c = DepthToSpace <blocksize = 2, mode = \"CRD\"> (d)", {"g": (32, 8, 1, 1)}),
    "space to depth": ("d = SpaceToDepth <blocksize = 2> (b) \n c = Conv (d, g)", {"g": (8, 32, 1, 1)}),
    "softmax of positions": ("c = Softmax <axis = 3> (b)", {}),
    "cast": ("d = Cast <to = 11> (b) \n e = Cast <to = 1> (d) \n c = Clip (e, lo, hi)", {
        "lo": np.float32(-1), "hi": np.float32(1)
    }),
    "where": ("d = Less (b, zero) \n c = Where (d, zero, b)", {"zero": np.float32(0)}),
    "concatenated": ("d = Conv (b, g) \n e = Concat <axis = 1> (b, d) \n c = Conv (e, h)", {
        "g": (4, 8, 1, 1), "h": (8, 12, 1, 1)
    }),
    "shortcut padded with channels": (
        "p = Pad (b, n) \n d = Conv (b, g) \n e = Add (d, p) \n c = Conv (e, h)",
        {"n": numbers(0, 2, 0, 0, 0, 2, 0, 0), "g": (12, 8, 1, 1), "h": (8, 12, 1, 1)},
    ),
}  # fmt: skip


VERSIONS = {
    "slice by attributes": (9, "c = Slice <axes = [2], starts = [1], ends = [5]> (b)", {}),
    "channels sliced by attributes": (
        9, "d = Slice <axes = [1], starts = [4], ends = [9]> (b) \n c = Concat <axis = 1> (d, d)", {}
    ),
    "pad by attribute": (9, "c = Pad <pads = [0, 0, 1, 0, 0, 0, 0, 2]> (b)", {}),
    "split by attribute": (9, "d, e = Split <axis = 1, split = [4, 4]> (b) \n c = Concat <axis = 1> (e, d)", {}),
    "upsample": (9, "c = Upsample (b, s)", {"s": np.array([1, 1, 2, 2], dtype=np.float32)}),
    "softmax of a tail": (11, "c = Softmax <axis = 2> (b)", {}),
    "dropout": (13, "c, unused = Dropout (b)", {}),
    "split in two": (18, "d, e = Split <axis = 1, num_outputs = 2> (b) \n c = Concat <axis = 1> (e, d)", {}),
    "pad some axes": (18, "c = Pad (b, p, , a)", {"p": numbers(1, 2), "a": numbers(-1)}),
    "mean of given axes": (18, "c = ReduceMean (b, a)", {"a": numbers(-1, -2)}),
    "constant of a computed shape": (18, "s = Shape (b) \n d = ConstantOfShape (s) \n c = Add (d, b)", {}),
    "constant of a given shape": (
        18, "d = ConstantOfShape <value = float[1] {2.0}> (s) \n e = Add (d, b) \n f = Shape (x) \n g = Gather (f, i) \n "
        "h = Cast <to = 1> (g) \n c = Mul (e, h)", {"s": numbers(2, 8, 6, 6), "i": numbers(0)}
    ),
    "sums along and backwards": (
        18, "d = CumSum (b, a) \n c = Slice (d, start, end, w, step)",
        {"a": np.array(3), "start": numbers(-1), "end": numbers(-9), "w": numbers(3), "step": numbers(-1)},
    ),
    "triangle": (18, "c = Trilu (b)", {}),
    "group norm": (21, "c = GroupNormalization <num_groups = 8> (b, s, t)", {"s": (8,), "t": (8,)}),
}  # fmt: skip


@pytest.mark.parametrize("name", VERSIONS)
def test_operators_of_several_versions(tmp_path, name):
    opset, middle, weights = VERSIONS[name]
    text = f"(float[2, 3, 8, 8] x) => (float[N, 6, H, W] y) {{ b = Conv (x, w1) \n {middle} \n y = Conv (c, w2) }}"
    path = network(tmp_path / "net.onnx", text, {**IMAGE, **weights}, opset)
    plan = assert_pruning_is_masking(path, x=floats(2, 3, 8, 8))
    assert len(plan.kept["w1"][0]) == 4
    assert plan.notes == ()


@pytest.mark.parametrize("name", GRAPHS)
def test_idioms_of_converters(tmp_path, name):
    text, weights = GRAPHS[name]
    shape = (2, 6) if "float[2, 6]" in text else (3, 8, 8, 3)
    plan = assert_pruning_is_masking(network(tmp_path / "net.onnx", text, weights), x=floats(*shape))
    assert plan.notes == ()


@pytest.mark.parametrize("name", MIDDLES)
def test_operators_between_convolutions(tmp_path, name):
    middle, weights = MIDDLES[name]
    text = f"(float[2, 3, 8, 8] x) => (float[N, 6, H, W] y) {{ b = Conv (x, w1) \n {middle} \n y = Conv (c, w2) }}"
    path = network(tmp_path / "net.onnx", text, {**IMAGE, **weights})
    plan = assert_pruning_is_masking(path, x=floats(2, 3, 8, 8))
    for weight in {"w1", "g", "h"} & {"w1", *weights}:
        width = {**IMAGE, **weights}[weight][0]
        assert len(plan.kept[weight][0]) == width // 2
    assert plan.notes == ()


@pytest.mark.parametrize(("text", "why"), [
    ("c = LRN <size = 3> (b)", "no rule for onnx::LRN"),
    ("c = ReduceMean <axes = [1]> (b)", "reduces over channels"),
    ("c = Softmax <axis = 1> (b)", "normalizes over channels"),
    ("c = Gather <axis = 1> (b, picks)", "picks channels by index"),
])  # fmt: skip
def test_what_looks_at_all_channels_keeps_them_and_is_named(tmp_path, text, why):
    chain = f"a = Conv (x, w0) \n b = Conv (a, w1) \n {text} \n y = Conv (c, w2)"
    text = f"(float[2, 3, 8, 8] x) => (float[N, 6, H, W] y) {{ {chain} }}"
    weights = {"w0": (4, 3, 1, 1), "w1": (8, 4, 3, 3), "w2": (6, 1 if "Mean" in text else 8, 1, 1)}
    path = network(tmp_path / "net.onnx", text, {**weights, "picks": numbers(*range(8))[::-1].copy()})
    plan = assert_pruning_is_masking(path, x=floats(2, 3, 8, 8))
    assert set(plan.kept) == {"w0", "w1"}
    assert list(plan.kept["w1"]) == [1]
    assert any(why in note for note in plan.notes)


def test_embeddings_lose_columns_and_keep_rows(tmp_path):
    text = """(int64[2, 7] x) => (float[2, 7, 5] y) {
        a = Gather (table, x)
        b = MatMul (a, w1)
        c = Relu (b)
        y = MatMul (c, w2) }"""
    path = network(tmp_path / "net.onnx", text, {"table": (11, 8), "w1": (8, 6), "w2": (6, 5)})
    plan = assert_pruning_is_masking(path, x=np.arange(14).reshape(2, 7) % 11)
    assert {name: list(axes) for name, axes in plan.kept.items()} == {"table": [1], "w1": [0, 1], "w2": [0]}


def test_attention_loses_whole_heads(tmp_path):
    def project(name):
        return f"{name}0 = MatMul (x, w{name}) \n {name}1 = Reshape ({name}0, heads) \n"

    text = f"""(float[2, 5, 6] x) => (float[2, 5, 6] y) {{
        {project("q")} {project("k")} {project("v")}
        q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
        k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
        v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
        s = MatMul (q2, k2)
        p = Softmax <axis = -1> (s)
        o = MatMul (p, v2)
        o1 = Transpose <perm = [0, 2, 1, 3]> (o)
        o2 = Reshape (o1, merged)
        y = MatMul (o2, wo) }}"""
    weights = {"wq": (6, 16), "wk": (6, 16), "wv": (6, 16), "wo": (16, 6)}
    sizes = {"heads": numbers(0, 0, 4, 4), "merged": numbers(0, 0, 16)}
    plan = assert_pruning_is_masking(
        network(tmp_path / "net.onnx", text, {**weights, **sizes}), x=floats(2, 5, 6)
    )
    assert len({plan.kept[f"w{name}"][1] for name in "qkv"}) == 1
    kept = np.array(plan.kept["wq"][1])
    assert (kept.reshape(2, 4) // 4 == kept.reshape(2, 4)[:, :1] // 4).all()
