"""What is read, what is written and what is refused."""

import re

import pytest
from peer_packages import skip_without

skip_without("onnx_ir")
skip_without("onnxruntime")
import numpy as np
import onnx
from onnx_oracle import assert_close, assert_pruning_is_masking, floats, network, numbers, run

import prunefuse.onnx
from prunefuse.pruning import PruningPlan, Target, register_rule
from prunefuse.pruning._graph.couplings import Value
from prunefuse.pruning._rules.registry import find_rule

CHAIN = """(float[N, 3, 8, 8] x) => (float[N, 6, H, W] y) {
    b = Conv (x, first__weight, first__bias)
    c = Relu (b)
    d = Conv (c, second__weight)
    e = Relu (d)
    y = Conv (e, third__weight) }"""
WEIGHTS = {
    "first.weight": (8, 3, 3, 3), "first.bias": (8,), "second.weight": (10, 8, 1, 1), "third.weight": (6, 10, 1, 1)
}  # fmt: skip
X = floats(2, 3, 8, 8)


@pytest.fixture
def chain(tmp_path):
    return network(tmp_path / "net.onnx", CHAIN, WEIGHTS)


def test_the_largest_channels_are_kept(chain):
    weight = onnx.numpy_helper.to_array(onnx.load(chain).graph.initializer[0]).reshape(8, -1)
    for criterion, order in (("l1", 1), ("l2", 2)):
        plan = prunefuse.onnx.plan(chain, criterion=criterion)
        best = np.argsort(-np.linalg.norm(weight, order, axis=1))[:4]
        assert plan.kept["first.weight"][0] == tuple(sorted(best.tolist()))


def test_random_channels_follow_the_seed(chain):
    picks = {
        seed: prunefuse.onnx.plan(chain, criterion="random", seed=seed).kept["second.weight"][0]
        for seed in range(5)
    }
    assert picks[1] == prunefuse.onnx.plan(chain, criterion="random", seed=1).kept["second.weight"][0]
    assert len(set(picks.values())) > 1


def test_ratio_and_rounding(chain):
    for ratio, rounding, first, second in [(0.3, "floor", 5, 7), (0.3, "ceil", 6, 7), (0.9, "floor", 1, 1)]:
        plan = prunefuse.onnx.plan(chain, ratio=ratio, rounding=rounding)
        assert (len(plan.kept["first.bias"][0]), len(plan.kept["third.weight"][1])) == (first, second)


@pytest.mark.parametrize("pattern", ["first", "first.weight", "fir*", "b"])
def test_ignored_layers_keep_their_outputs(chain, pattern):
    plan = prunefuse.onnx.plan(chain, ignore=pattern)
    assert {name: list(axes) for name, axes in plan.kept.items()} == {
        "second.weight": [0],
        "third.weight": [1],
    }


def test_a_plan_is_saved_and_cuts_a_file_with_other_values(chain, tmp_path):
    prunefuse.onnx.plan(chain).save(tmp_path / "plan.json")
    plan = PruningPlan.load(tmp_path / "plan.json")
    other = network(tmp_path / "other.onnx", CHAIN, WEIGHTS, seed=7)
    prunefuse.onnx.write(other, tmp_path / "small.onnx", plan)
    arrays = [
        {x.name: onnx.numpy_helper.to_array(x) for x in onnx.load(path).graph.initializer}
        for path in (other, tmp_path / "small.onnx")
    ]
    kept = plan.kept["second.weight"]
    np.testing.assert_array_equal(
        arrays[1]["second.weight"], arrays[0]["second.weight"][np.ix_(kept[0], kept[1])]
    )
    assert "10 -> 5" in plan.summary()


def test_a_plan_for_another_network_is_refused(chain, tmp_path):
    other = network(tmp_path / "other.onnx", CHAIN, {**WEIGHTS, "third.weight": (6, 12, 1, 1)})
    with pytest.raises(ValueError, match="another network"):
        prunefuse.onnx.write(other, tmp_path / "small.onnx", prunefuse.onnx.plan(chain))
    assert not (tmp_path / "small.onnx").exists()


def test_a_pruned_file_can_be_pruned_again(tmp_path):
    text = """(float[N, 3, 4, 4] x) => (float[N, 5] y) {
        b = Conv (x, w1)
        s = Shape (x)
        n = Slice (s, zero, one)
        t = Concat <axis = 0> (n, rest)
        c = Reshape (b, t)
        y = MatMul (c, w2) }"""
    weights = {"w1": (8, 3, 3, 3), "zero": numbers(0), "one": numbers(1), "rest": numbers(32), "w2": (32, 5)}
    path = network(tmp_path / "net.onnx", text, weights)
    assert_pruning_is_masking(path, x=floats(3, 3, 4, 4))
    plan = assert_pruning_is_masking(tmp_path / "net-small.onnx", x=floats(3, 3, 4, 4))
    assert plan.kept["w1"][0] == tuple(plan.kept["w1"][0])
    assert len(plan.kept["w1"][0]) == 2


def test_nothing_is_overwritten(chain, tmp_path):
    before = chain.read_bytes()
    with pytest.raises(FileExistsError, match=r"got .*net\.onnx, which exists"):
        prunefuse.onnx.prune(chain, chain)
    (tmp_path / "out.onnx.data").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"out\.onnx\.data, which exists"):
        prunefuse.onnx.prune(chain, tmp_path / "out.onnx")
    assert chain.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "out.onnx.data"]


def test_a_result_that_is_not_valid_is_not_written(chain, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise onnx.checker.ValidationError("no")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(RuntimeError, match="not valid: no"):
        prunefuse.onnx.prune(chain, tmp_path / "out.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_a_rule_that_lies_is_found_out(chain, tmp_path):
    right = find_rule("onnx::Relu")
    register_rule("onnx::Relu")(lambda call, x: Value(tuple(map(call.trace.couplings.fresh, x.shape))))
    try:
        with pytest.raises(RuntimeError, match="cannot couple axes of"):
            prunefuse.onnx.prune(chain, tmp_path / "out.onnx")
    finally:
        register_rule("onnx::Relu")(right)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


CUSTOM = """(float[2, 3, 8, 8] x) => (float[2, 6, 6, 6] y) {
    b = Conv (x, w1)
    c = Conv (b, w2)
    d = com.example.Gate (c)
    y = Conv (d, w3) }"""


def test_operators_of_others_are_named_until_they_have_a_rule(tmp_path):
    weights = {"w1": (4, 3, 3, 3), "w2": (8, 4, 1, 1), "w3": (6, 8, 1, 1)}
    path = network(tmp_path / "net.onnx", CUSTOM, weights, domains=["com.example"])
    plan = prunefuse.onnx.plan(path)
    assert set(plan.kept) == {"w1", "w2"}
    assert any("com.example::Gate" in note and "unknown shape" in note for note in plan.notes)

    model = onnx.load(path)
    value = onnx.helper.make_tensor_value_info("d", onnx.TensorProto.FLOAT, [2, 8, 6, 6])
    model.graph.value_info.append(value)
    onnx.save(model, path)
    assert any("no rule for com.example::Gate" in note for note in prunefuse.onnx.plan(path).notes)

    register_rule("com.example::Gate")(lambda call, x: x)
    assert set(prunefuse.onnx.plan(path).kept) == {"w1", "w2", "w3"}


def test_what_the_body_of_a_loop_takes_from_outside_stays(tmp_path):
    text = """(float[2, 6] x, bool choice) => (float[2, 5] y) {
        a = MatMul (x, w1)
        b = MatMul (a, w2)
        c = If (choice) <
            then_branch = yes () => (float[2, 8] t) { t = Identity (b) },
            else_branch = no () => (float[2, 8] e) { e = Neg (b) }>
        y = MatMul (c, w3) }"""
    path = network(tmp_path / "net.onnx", text, {"w1": (6, 4), "w2": (4, 8), "w3": (8, 5)})
    plan = assert_pruning_is_masking(path, x=floats(2, 6), choice=np.array(False))
    assert set(plan.kept) == {"w1", "w2"}
    assert any("body of its own" in note for note in plan.notes)


def test_a_function_of_the_file_is_looked_into(tmp_path):
    path = tmp_path / "net.onnx"
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 17, "mine" : 1]>
        g (float[2, 6] x, float[6, 8] w1, float[8, 5] w2) => (float[2, 5] y) {
            a = MatMul (x, w1)
            b = mine.gate (a)
            y = MatMul (b, w2)
        }
        <domain: "mine", opset_import: ["" : 17]> gate (a) => (c) { b = Sigmoid (a) \n c = Mul (a, b) }""")
    for value in list(model.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        model.graph.initializer.append(onnx.numpy_helper.from_array(floats(*shape), value.name))
    onnx.save(model, path)  # the weights are inputs as well, as in files of old versions
    assert len(assert_pruning_is_masking(path, x=floats(2, 6)).kept["w1"][1]) == 4


def test_sizes_that_the_file_leaves_open_are_asked_for(tmp_path):
    text = CHAIN.replace("float[N, 3, 8, 8] x", "float[N, 3, A, B] x")
    path = network(tmp_path / "net.onnx", text, WEIGHTS)
    with pytest.raises(
        ValueError, match=r"shapes must have all sizes of the input x of shape .*, such as shapes={'x'"
    ):
        prunefuse.onnx.plan(path)
    for shapes, why in [
        ({"z": (1,)}, "must be of the inputs x"),
        ({"x": (1, 4, 8, 8)}, "shapes must fit the input x of"),
    ]:
        with pytest.raises(ValueError, match=why):
            prunefuse.onnx.plan(path, shapes=shapes)
    prunefuse.onnx.prune(path, tmp_path / "small.onnx", shapes={"x": (1, 3, 8, 8)})
    assert run(tmp_path / "small.onnx", x=floats(2, 3, 12, 9))[0].shape == (2, 6, 10, 7)


def test_half_precision(tmp_path):
    model = onnx.load(network(tmp_path / "float.onnx", CHAIN, WEIGHTS))
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, tmp_path / "net.onnx")
    plan = prunefuse.onnx.prune(tmp_path / "net.onnx", tmp_path / "small.onnx")
    assert plan.inputs[0].dtype == "float16"
    prunefuse.onnx.prune(tmp_path / "float.onnx", tmp_path / "small-float.onnx")
    results = [run(tmp_path / name, x=X.astype(dtype)) for name, dtype in [
        ("small.onnx", np.float16), ("small-float.onnx", np.float32)
    ]]  # fmt: skip
    assert_close([results[0][0].astype(np.float32)], results[1], tolerance=1e-2)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"ratio": 1}, ValueError, "ratio must be in [0, 1), got 1"),
    ({"ratio": "half"}, TypeError, "ratio must be a number, got str"),
    ({"criterion": "l3"}, ValueError, "criterion must be one of l2, l1, random, bn_scale, got 'l3'"),
    ({"rounding": "up"}, ValueError, "rounding must be one of"),
    ({"ignore": "nothing"}, ValueError, "ignore must match nodes or tensors of the file, got 'nothing'"),
    ({"ignore": [3]}, TypeError, "ignore must be names, got int"),
    ({"ratio": 0.5, "target": Target("flops", 0.5)}, ValueError, "target must be left out beside a ratio, got both"),
    ({"target": Target("latency", 0.5)}, ValueError, "target must be parameters, flops or memory for an ONNX file"),
    ({"target": Target("flops", 0.0001)}, ValueError, " for flops, got 2.563: so much is left of the dense model"),
    ({"ratios": {"nothing": 0.5}}, ValueError, "ratios must match nodes or tensors of the file, got 'nothing'"),
    ({"ratios": {"b": 1.5}}, ValueError, "ratios['b'] must be in [0, 1), got 1.5"),
    ({"preset": "none"}, ValueError, "preset must be one of prunefuse, spa"),
    ({"round_to": 0}, ValueError, "round_to must be at least 1"),
    ({"ignore": "*"}, ValueError, "nothing was pruned at ratio 0.5"),
])  # fmt: skip
def test_bad_arguments(chain, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        prunefuse.onnx.plan(chain, **arguments)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        prunefuse.onnx.plan(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ValueError, match="path must be an ONNX file"):
        prunefuse.onnx.plan(tmp_path / "text.onnx")


def test_weights_that_are_not_finite_cannot_be_ranked(tmp_path):
    weight = floats(8, 3, 3, 3)
    weight[2, 0, 0, 0] = np.nan
    path = network(tmp_path / "net.onnx", CHAIN, {**WEIGHTS, "first.weight": weight})
    with pytest.raises(ValueError, match=r"first\.weight has values that are not finite"):
        prunefuse.onnx.plan(path)


def test_a_plan_says_what_is_coupled(tmp_path):
    text = """(float[N, 4] x) => (float[N, 3] y) {
        a = Gemm (x, w1, b1)
        h = Relu (a)
        r = MatMul (h, w2)
        s = Add (a, r)
        y = MatMul (s, w3)
    }"""
    weights = {"w1": floats(4, 8), "b1": floats(8), "w2": floats(8, 8), "w3": floats(8, 3)}
    plan = prunefuse.onnx.plan(network(tmp_path / "net.onnx", text, weights))
    told = plan.explain("w1")
    assert "output channels (dim 1): 4 of 8 stay" in told
    assert "all 4 stay, as inputs of the network" in told
    lines = [" ".join(line.split()) for line in told.splitlines()]
    assert "w2, w3 dim 0, reads them" in lines
    assert "w1, w2 dim 1, makes them" in lines
    assert any(line.startswith("Add in Add") and "residual" in line for line in lines)
    node = next(layer.name for layer in plan.layers if layer.type == "Gemm")
    assert plan.explain(node).startswith(f"{node} (Gemm)\n\noutput channels (w1, dim 1): 4 of 8 stay")
    with pytest.raises(
        ValueError, match="name must be a layer or a tensor of the network, got 'w5'; near are w"
    ):
        plan.explain("w5")
    plan.save(tmp_path / "plan.json")
    loaded = PruningPlan.load(tmp_path / "plan.json")
    assert prunefuse.onnx.explain(tmp_path / "net.onnx", loaded, "w1") == told
    with pytest.raises(ValueError, match=r"prunefuse\.onnx\.explain\(path, plan, 'w1'\)"):
        loaded.explain("w1")
    other = network(tmp_path / "other.onnx", CHAIN, WEIGHTS)
    with pytest.raises(ValueError, match="another network"):
        prunefuse.onnx.explain(other, loaded, "w1")


def two_products(path, shape, listed=()):
    """x @ transposed first weight, relu, @ second weight; ``listed`` are weights that are inputs too, as in old files."""
    generator = np.random.default_rng(0)
    weights = {
        "one": generator.normal(size=(20, 6)).astype("f"),
        "two": generator.normal(size=(20, 3)).astype("f"),
    }
    info = onnx.helper.make_tensor_value_info
    x = info("x", onnx.TensorProto.FLOAT, ["n", 6])
    if isinstance(shape, int):
        x.type.tensor_type.shape.dim[0].dim_value = shape
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            node("Transpose", ["one"], ["turned"], perm=[1, 0]),
            node("MatMul", ["x", "turned"], ["h"]),
            node("Relu", ["h"], ["r"]),
            node("MatMul", ["r", "two"], ["y"]),
        ],
        "net",
        [x, *(info(name, onnx.TensorProto.FLOAT, weights[name].shape) for name in listed)],
        [info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(
        onnx.helper.make_model(
            graph, ir_version=3 if listed else 7, opset_imports=[onnx.helper.make_opsetid("", 11)]
        ),
        path,
    )
    return path


def test_weights_that_are_listed_as_inputs_are_weights(tmp_path):
    path = two_products(tmp_path / "old.onnx", 2, listed=("one", "two"))
    assert prunefuse.onnx.plan(path, ratio=0.5).params == (180, 90)


def test_a_size_of_minus_one_is_open(tmp_path):
    path = two_products(tmp_path / "open.onnx", -1)
    assert prunefuse.onnx.plan(path, ratio=0.5, shapes={"x": (4, 6)}).params == (180, 90)
    assert prunefuse.onnx.plan(path, ratio=0.5).inputs[0].shape == (1, 6)


@pytest.mark.parametrize("opset", [7, 9])
def test_an_output_that_nobody_reads_keeps_nothing(tmp_path, opset):
    body = """(float[1, 3, 8, 8] x) => (float[1, 4, 6, 6] y) {
        h = Conv (x, a)
        r, mask = Dropout (h)
        y = Conv (r, b) }"""
    path = network(tmp_path / "net.onnx", body, {"a": (16, 3, 3, 3), "b": (4, 16, 1, 1)}, opset=opset)
    plan = prunefuse.onnx.plan(path)
    assert (plan.params, plan.notes) == ((496, 248), ())
