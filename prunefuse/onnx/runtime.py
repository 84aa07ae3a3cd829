"""A file's network as it runs in onnxruntime: what goes in and out of the nodes that mix channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from onnx import helper
from torch import Tensor
from torch.nn import functional

from prunefuse.onnx.layers import Product, constant_sizes, product
from prunefuse.onnx.planner import as_tensor
from prunefuse.onnx.shapes import captured
from prunefuse.pruning._graph.export import first_line
from prunefuse.pruning._obspa.readers import Application, Enough, Reader
from prunefuse.pruning._obspa.refit import Norm, Run
from prunefuse.pruning.obspa import BATCH

Feed: TypeAlias = dict[str, npt.NDArray[np.generic]]
"""Input name -> its values."""
_MOST = 2**31 - 2**20
"""Bytes of constants that a network may have to be run in parts."""


class Feeds:
    """The inputs of a file, batch by batch, as often as wanted.

    Args:
        calibration: An array, for a network of one input; arrays by the names of the inputs; or batches that can be
            read several times, each of them an array, arrays by name, or a tuple that begins with the inputs in order.
        model: The network.

    Raises:
        TypeError: they are something else.
        ValueError: arrays do not go together.
    """

    def __init__(self, calibration: Any, model: ir.Model) -> None:
        self._inputs = {str(value.name): value for value in model.graph.inputs if not value.is_initializer()}
        if hasattr(calibration, "shape") or isinstance(calibration, Mapping):
            calibration = self._split(self._feed(calibration))
        if isinstance(calibration, Iterator) or not isinstance(calibration, Iterable):
            raise TypeError(
                "calibration must be an array, arrays by input name or something that gives batches as often as it "
                f"is read (a list, a data loader), got {type(calibration).__name__}"
            )
        self._source: Iterable[Any] = calibration

    def __iter__(self) -> Iterator[Feed]:
        """Every batch."""
        empty = True
        for batch in self._source:
            yield self._feed(batch)
            empty = False
        if empty:
            raise ValueError("calibration must be at least one batch, got none")

    def _feed(self, batch: Any) -> Feed:
        if hasattr(batch, "shape"):
            batch = (batch,)
        if isinstance(batch, list | tuple):
            batch = dict(zip(self._inputs, batch, strict=False))
        if not isinstance(batch, Mapping) or not batch.keys() >= self._inputs.keys():
            got = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
            raise TypeError(f"calibration must be an array for each of {', '.join(self._inputs)}, got {got}")
        feed: Feed = {}
        for name, value in self._inputs.items():
            array = np.asarray(batch[name])
            dtype = array.dtype if value.dtype is None else value.dtype.numpy()
            if not np.can_cast(array.dtype, dtype, "same_kind"):
                raise TypeError(f"calibration must be {dtype} for the input {name}, got {array.dtype}")
            feed[name] = array.astype(dtype)
        return feed

    def _split(self, whole: Feed) -> list[Feed]:
        """As many samples at once as the file says, or :data:`BATCH`."""
        said = {value.shape[0] for value in self._inputs.values() if value.shape}
        size = next((n for n in said if isinstance(n, int)), BATCH)
        counts = sorted({len(array) for array in whole.values() if array.ndim})
        if len(counts) != 1 or (size in said and counts[0] % size):
            raise ValueError(
                f"calibration must be arrays of equally many samples, in batches of {size}, got {counts}"
            )
        return [
            {name: x[i : i + size] if x.ndim else x for name, x in whole.items()}
            for i in range(0, counts[0], size)
        ]


class FileNetwork:
    """A network that :func:`prunefuse.onnx.read` has prepared, as :mod:`prunefuse.pruning._obspa.refit` sees it.

    What is written into ``tensors`` is in the network.

    Raises:
        ValueError: onnxruntime is not installed, or the network has weights that it does not run.
    """

    def __init__(self, model: ir.Model, readers: Sequence[Reader]) -> None:
        ir.external_data.load_to_model(model)
        tensors = [x.const_value for x in model.graph.initializers.values()]
        size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        if size > _MOST:
            raise ValueError(
                f"path must be a network with at most 2 GiB of constants to calibrate, got {size:,} bytes"
            )
        self._model = model
        names = {reader.weight for reader in readers}
        self._products = [
            (node, layer)
            for node in model.graph
            if (layer := product(node)) is not None and layer.weight.name in names
        ]
        self._norms = {norm: node for node in model.graph if (norm := _norm(node)) is not None}
        constants = [x for _, layer in self._products for x in (layer.weight, layer.added) if x is not None]
        constants += [x for node in self._norms.values() for x in node.inputs[3:5] if x is not None]
        self.tensors: dict[str, Tensor] = {}
        for value in dict.fromkeys(constants):
            tensor = as_tensor(value)
            if tensor.dtype not in (torch.float16, torch.float32, torch.float64):
                raise ValueError(
                    f"path must have weights that onnxruntime runs, got {tensor.dtype} {value.name}"
                )
            self.tensors[str(value.name)] = tensor
            value.const_value = ir.Tensor(tensor.numpy(), name=value.name)  # of the same memory

    def steps(self, readers: Sequence[Reader]) -> dict[Reader | Norm, int]:
        """Readers and batch norms, in the order of the nodes, and how many nodes they are."""
        by_weight = {reader.weight: reader for reader in readers}
        places: dict[ir.Node, Reader | Norm] = {node: norm for norm, node in self._norms.items()}
        places |= {node: by_weight[str(layer.weight.name)] for node, layer in self._products}
        steps: dict[Reader | Norm, int] = {}
        for node in self._model.graph:
            if node in places:
                steps[places[node]] = steps.get(places[node], 0) + 1
        return steps

    def watch_readers(self, readers: Sequence[Reader], tell: Callable[[Application], None]) -> Run:
        """See :class:`prunefuse.pruning._obspa.refit.Network`."""
        by_weight = {reader.weight: reader for reader in readers}
        applied = [
            (by_weight[str(layer.weight.name)], node, layer)
            for node, layer in self._products
            if layer.weight.name in by_weight
        ]
        part = self._part([value for _, _, layer in applied for value in (layer.x, layer.out)])

        def run(feed: Feed) -> None:
            tensors = part(feed)
            for reader, node, layer in applied:
                try:
                    tell(self._application(reader, node, layer, tensors))
                except Enough:
                    return

        return run

    def watch_norm(self, norm: Norm, tell: Callable[[Tensor], None]) -> Run:
        """See :class:`prunefuse.pruning._obspa.refit.Network`."""
        value = self._norms[norm].inputs[0]
        assert value is not None
        part = self._part([value])

        def run(feed: Feed) -> None:
            try:
                tell(part(feed)[value])
            except Enough:
                return

        return run

    def _application(
        self, reader: Reader, node: ir.Node, layer: Product, tensors: Mapping[ir.Value, Tensor]
    ) -> Application:
        x, out = tensors[layer.x], tensors[layer.out]
        added = None if layer.added is None else self.tensors[str(layer.added.name)]
        if node.op_type != "Conv":
            return Application(reader, x, out, added, None)
        kernel = (constant_sizes(layer.weight) or [])[2:]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        ones = [1] * len(kernel)
        strides, gaps = attributes.get("strides", ones), attributes.get("dilations", ones)
        pads = attributes.get("pads", [0] * (2 * len(kernel)))
        if (how := attributes.get("auto_pad", "NOTSET")).startswith("SAME"):
            spans = [gap * (size - 1) + 1 for size, gap in zip(kernel, gaps, strict=True)]
            wide = zip(out.shape[2:], strides, spans, x.shape[2:], strict=True)
            totals = [max(0, (n - 1) * stride + span - size) for n, stride, span, size in wide]
            less, more = [n // 2 for n in totals], [n - n // 2 for n in totals]
            pads = less + more if how == "SAME_UPPER" else more + less
        dims = range(len(kernel))
        sides = [pads[d + end * len(kernel)] for d in reversed(dims) for end in (0, 1)]
        return Application(
            reader, functional.pad(x, sides), out, added, (kernel, strides, [0 for _ in dims], gaps)
        )

    def _part(self, values: Sequence[ir.Value]) -> Callable[[Feed], dict[ir.Value, Tensor]]:
        """The part of the network, as it is now, that computes some tensors."""
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(f"calibration needs the package onnxruntime: {error}") from error
        inside: dict[ir.Node, None] = {}
        waiting: list[ir.Value] = list(values)
        used: dict[ir.Value, None] = {}
        while waiting:
            node = waiting.pop().producer()
            if node is not None and node not in inside:
                inside[node] = None
                sources = [x for x in (*node.inputs, *captured(node)) if x is not None]
                used |= dict.fromkeys(x for x in sources if x.is_initializer())
                waiting += sources
        inputs = [value for value in self._model.graph.inputs if not value.is_initializer()]
        outputs = {str(value.name): value for value in values if value not in inputs}
        graph = helper.make_graph(
            [ir.serde.serialize_node(node) for node in self._model.graph if node in inside],
            "part",
            [ir.serde.serialize_value(value) for value in inputs],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [_constant(x) for x in used if x.const_value is not None],
        )
        opsets = [helper.make_opsetid(name, n) for name, n in self._model.graph.opset_imports.items()]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=self._model.ir_version)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = None
        if outputs:
            try:
                session = onnxruntime.InferenceSession(
                    proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # its own kinds
                raise ValueError(
                    f"path must be a network that onnxruntime can run: {first_line(error)}"
                ) from error

        def run(feed: Feed) -> dict[ir.Value, Tensor]:
            try:
                arrays = session.run(list(outputs), feed) if session else []
            except Exception as error:
                raise ValueError(
                    f"calibration must be what onnxruntime can run: {first_line(error)}"
                ) from error
            arrays_by_name = {**feed, **dict(zip(outputs, arrays, strict=True))}
            return {value: torch.from_numpy(arrays_by_name[str(value.name)]) for value in values}

        return run


def _constant(value: ir.Value) -> onnx.TensorProto:
    proto = ir.serde.serialize_tensor(value.const_value)
    proto.name = value.name
    return proto


def _norm(node: ir.Node) -> Norm | None:
    """A batch norm with statistics that are no other's: shared ones cannot follow two of them."""
    if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
        return None
    mean, var = node.inputs[3:5]
    if mean is None or var is None or any(not x.is_initializer() or len(x.uses()) > 1 for x in (mean, var)):
        return None
    return Norm(str(mean.name), str(var.name))
