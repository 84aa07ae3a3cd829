"""Concrete shapes of a graph's tensors, and the numbers that it computes from shapes: node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Numbers = npt.NDArray[np.generic]
_NUMBERS = 64
"""Vectors (of integers, also matrices) of up to so many are sizes, or what sizes are made from; others are data."""


class Shapes:
    """What is known of the tensors of a model so far; :meth:`visit` goes one node further.

    Attributes:
        shapes: Of every tensor seen that has one.
        numbers: Values of short vectors that depend on nothing but constants and shapes.
    """

    def __init__(self, model: ir.Model, inputs: Mapping[str, Sequence[int]]) -> None:
        self.opsets = [helper.make_opsetid(domain, v) for domain, v in model.graph.opset_imports.items()]
        self.shapes: dict[ir.Value, tuple[int, ...]] = {}
        self.numbers: dict[ir.Value, Numbers] = {}
        self._types: dict[ir.Value, onnx.TypeProto] = {}
        for value in model.graph.inputs:
            if value.name in inputs:
                self._learn(value, value.dtype, tuple(inputs[value.name]))

    def _learn(self, value: ir.Value, dtype: ir.DataType | None, shape: tuple[int, ...]) -> None:
        self.shapes[value] = shape
        self._types[value] = helper.make_tensor_type_proto(int(dtype or ir.DataType.FLOAT), shape)

    def learn(self, value: ir.Value) -> None:
        """Take in a constant, when it is first used."""
        tensor = value.const_value
        if value in self._types or tensor is None:
            return
        self._learn(value, tensor.dtype, tuple(map(int, tensor.shape)))
        if tensor.size <= _NUMBERS and _is_sizes(array := tensor.numpy()):
            self.numbers[value] = array

    def visit(self, node: ir.Node) -> None:
        """Find out what the node's outputs are like, from its inputs.

        Raises:
            ValueError: the inputs do not fit together.
        """
        inputs = [value for value in node.inputs if value is not None]
        for value in inputs:
            self.learn(value)
        self._infer(node, inputs)
        for value in node.outputs:
            if value not in self.shapes and value.shape is not None and value.shape.is_static():
                self._learn(value, value.dtype, tuple(map(int, value.shape)))
        self._compute(node, inputs)

    def _infer(self, node: ir.Node, inputs: list[ir.Value]) -> None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = next((opset.version for opset in self.opsets if opset.domain in (domain, node.domain)), 1)
        if not onnx.defs.has(node.op_type, version, domain) or any(
            value not in self._types for value in inputs
        ):
            return
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return
        schema = onnx.defs.get_schema(node.op_type, version, domain)
        if not schema.has_type_and_shape_inference_function:  # group and mean-variance normalization
            dtype = ir.DataType(self._types[inputs[0]].tensor_type.elem_type)
            self._learn(node.outputs[0], dtype, self.shapes[inputs[0]])
            return
        types = {str(value.name): self._types[value] for value in inputs}
        data = {
            str(value.name): numpy_helper.from_array(self.numbers[value], str(value.name))
            for value in inputs
            if value in self.numbers
        }
        proto = ir.serde.serialize_node(node)
        try:
            outputs = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=self.opsets
            )
        except onnx.shape_inference.InferenceError as error:
            raise ValueError(f"{node.name} ({node.op_type}): {error}") from error
        for value in node.outputs:
            inferred = outputs.get(str(value.name))
            if inferred is not None and inferred.tensor_type.HasField("shape"):
                dims = inferred.tensor_type.shape.dim
                if all(dim.HasField("dim_value") for dim in dims):
                    shape = tuple(dim.dim_value for dim in dims)
                    self._learn(value, ir.DataType(inferred.tensor_type.elem_type), shape)

    def _compute(self, node: ir.Node, inputs: list[ir.Value]) -> None:
        """The numbers of the node's outputs, if they follow from numbers or shapes."""
        if node.op_type == "Shape":
            of = self.shapes.get(inputs[0])
            attributes = {name: attribute.as_int() for name, attribute in node.attributes.items()}
            if of is not None:
                part = of[attributes.get("start", 0) : attributes.get("end", len(of))]
                self.numbers[node.outputs[0]] = np.array(part, dtype=np.int64)
        elif node.op_type == "Size" and inputs[0] in self.shapes:
            self.numbers[node.outputs[0]] = np.array(np.prod(self.shapes[inputs[0]], dtype=np.int64))
        elif inputs and all(value in self.numbers for value in inputs):
            results = evaluate(node, [self.numbers[value] for value in inputs], self.opsets)
            if results is not None and all(
                result.size <= _NUMBERS and _is_sizes(result) for result in results
            ):
                for value, result in zip(node.outputs, results, strict=True):
                    self.numbers[value] = result
                    self._learn(value, value.dtype or ir.DataType.from_numpy(result.dtype), result.shape)


def _is_sizes(array: Numbers) -> bool:
    return array.ndim < 2 or (array.ndim == 2 and array.dtype.kind == "i")


def evaluate(
    node: ir.Node, inputs: Sequence[Numbers], opsets: Sequence[onnx.OperatorSetIdProto]
) -> list[Numbers] | None:
    """Outputs of one node, by ONNX's reference; None if it cannot, or the result is a matter of chance."""
    if node.op_type.startswith(("Random", "Bernoulli", "Multinomial", "Dropout")) or node.domain not in (
        "",
        "ai.onnx",
    ):
        return None
    names = [str(value.name) for value in node.inputs if value is not None]
    unknown = onnx.TypeProto()
    graph = helper.make_graph(
        [ir.serde.serialize_node(node)],
        "node",
        [onnx.ValueInfoProto(name=name, type=unknown) for name in dict.fromkeys(names)],
        [onnx.ValueInfoProto(name=str(value.name), type=unknown) for value in node.outputs],
    )
    try:
        evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets))
        results = evaluator.run(None, dict(zip(names, inputs, strict=True)))
    except Exception:  # whatever the reference does not know, or finds wrong
        return None
    return [np.asarray(result) for result in results]


def captured(node: ir.Node) -> list[ir.Value]:
    """The tensors that the bodies of a node (If, Loop, Scan) take from outside."""
    bodies = [
        body
        for attribute in node.attributes.values()
        for body in (
            [attribute.value]
            if attribute.type == ir.AttributeType.GRAPH
            else attribute.value
            if attribute.type == ir.AttributeType.GRAPHS
            else []
        )
    ]
    inside = [inner for body in bodies for inner in body.all_nodes()]
    used = [value for inner in inside for value in inner.inputs if value is not None]
    used += [value for body in bodies for value in body.outputs]
    return [value for value in dict.fromkeys(used) if value.graph is node.graph]
