"""The layers that read channels, as matrices: which they are, and what goes in and out of them as a model runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from prunefuse.pruning._graph.couplings import Ids, Place, Value
from prunefuse.pruning._graph.trace import Record, Trace

_MATRICES = {
    **{f"aten::conv{d}d": 1 for d in (1, 2, 3)},
    "aten::linear": 1,
    **{f"aten::{name}": 0 for name in ("matmul", "mm", "addmm")},
}
"""Operator -> the axis of its weight that reads channels."""
_OTHERS = {
    *(f"aten::conv_transpose{d}d" for d in (1, 2, 3)),
    *(f"aten::{name}" for name in ("einsum", "bmm", "baddbmm", "lstm", "gru", "rnn_tanh", "rnn_relu")),
    *(f"aten::{name}" for name in ("bilinear", "tensordot", "inner", "linalg_vecdot", "mv", "dot", "vdot")),
    "onnx::Conv",  # with a computed bias; and of products those with factors or a transposed input:
    "onnx::Gemm",  # others have the names above
}
"""Operators that read channels in ways that are not made up for."""
_APPLIED = {
    torch.ops.aten.convolution: (0, 1, 2),
    torch.ops.aten.addmm: (1, 2, 0),
    torch.ops.aten.mm: (0, 1, None),
    torch.ops.aten.bmm: (0, 1, None),
}
"""What those come down to when they run -> positions of input, weight and bias."""
_CHUNK = 2**23  # elements of an unfolded input at once: 64 MiB


@dataclass(frozen=True, eq=False)
class Reader:
    """A weight that mixes channels: a convolution or linear map, as a matrix for each of its groups.

    Attributes:
        weight: Its name.
        axis: The axis that reads; the other one of the first two writes.
        bias: The name of its bias, which is the weight of one more input that is always 1; None if it has none.
        groups: Of a grouped convolution; else 1.
        channels: The coupled channel of each index of the axis; 0 = stays.
    """

    weight: str
    axis: int
    bias: str | None
    groups: int
    channels: Ids

    def matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Weights and bias in a model: (groups, rows, columns) float64; kernel positions run fastest."""
        weight = tensors[self.weight].detach().double()
        weight = weight.reshape(self.groups, len(weight) // self.groups, -1) if self.axis else weight.T[None]
        if self.bias is None:
            return weight
        bias = tensors[self.bias].detach().double().reshape(self.groups, -1, 1)
        return torch.cat([weight, bias], 2)

    def write_(self, tensors: Mapping[str, Tensor], matrix: Tensor) -> None:
        """Set weights and bias in a model to those of a matrix, as from :meth:`matrix`."""
        weight = tensors[self.weight]
        with torch.no_grad():
            if self.bias is not None:
                tensors[self.bias].copy_(matrix[:, :, -1].flatten())
                matrix = matrix[:, :, :-1]
            weight.copy_(matrix.reshape(weight.shape) if self.axis else matrix[0].T)

    def labels(self, columns: int) -> Ids:
        """The coupled channel of each column of the matrix."""
        own = columns - (self.bias is not None)
        labels = np.repeat(self.channels, own // len(self.channels))
        return np.append(labels, np.zeros(columns - own, dtype=np.int64))


@dataclass(frozen=True)
class Application:
    """One time that a reader is applied.

    Attributes:
        reader: It.
        x: Its input, (..., I) or (N, I, ...).
        output: What came out, (..., O) or (N, O, ...).
        added: The bias that is in it, if any.
        geometry: Of a convolution: kernel, stride, padding and dilation.
    """

    reader: Reader
    x: Tensor
    output: Tensor
    added: Tensor | None
    geometry: tuple[Sequence[int], ...] | None

    def inputs(self) -> Iterator[Tensor]:
        """Xᵀ in blocks: (groups, rows, columns) float64; a convolution sees a row at every position."""
        if self.geometry is None:
            yield self._with_bias(self.x.reshape(1, -1, self.x.shape[-1]))
            return
        kernel, stride, padding, dilation = self.geometry
        columns = self.x.shape[1] * math.prod(kernel)
        sides = [amount for amount in reversed(padding) for _ in range(2)]
        for x in self.x.split(max(1, _CHUNK // (columns * math.prod(self.output.shape[2:])))):
            x = functional.pad(x, sides)
            for d, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
                x = x.unfold(2 + d, gap * (size - 1) + 1, step)[..., ::gap]
            # (N, groups, C / groups, positions..., kernel...) -> (groups, N, positions..., C / groups, kernel...)
            x = x.unflatten(1, (self.reader.groups, -1)).movedim(1, 0).movedim(2, 2 + len(kernel))
            yield self._with_bias(x.reshape(self.reader.groups, -1, columns // self.reader.groups))

    def outputs(self, bias: Tensor | None) -> Tensor:
        """Yᵀ: (rows, O) float64, with this bias in place of the one that is in it."""
        rows = (self.output if self.geometry is None else self.output.movedim(1, -1)).double()
        rows = rows.reshape(-1, rows.shape[-1])
        if self.added is not None:
            rows = rows - self.added.double()
        return rows if bias is None else rows + bias.double()

    def _with_bias(self, rows: Tensor) -> Tensor:
        rows = rows.double()
        return rows if self.reader.bias is None else functional.pad(rows, (0, 1), value=1.0)


class Enough(Exception):
    """Raised by what watches a model run, when it needs no more of it."""


class Watch(TorchDispatchMode):
    """While it lasts, says when one of some readers is applied, also by functions that no module hook sees."""

    def __init__(
        self, readers: Sequence[Reader], tensors: Mapping[str, Tensor], tell: Callable[[Application], None]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._readers = {tensors[reader.weight].data_ptr(): reader for reader in readers}
        self._tell = tell

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator; tell if its weight is a reader's."""
        output = func(*args, **(kwargs or {}))
        if (at := _APPLIED.get(func.overloadpacket)) is not None:
            x, weight = args[at[0]], args[at[1]]
            if (reader := self._readers.get(weight.data_ptr())) is not None:
                convolves = func.overloadpacket is torch.ops.aten.convolution
                geometry = (weight.shape[2:], *args[3:6]) if convolves else None
                added = None if at[2] is None else args[at[2]]
                self._tell(Application(reader, x, output, added, geometry))
        return output


def find_readers(traced: Trace) -> tuple[list[Reader], dict[str, str]]:
    """The layers whose inputs may lose channels.

    Args:
        traced: The trace of a model.

    Returns:
        The readers, in the order of their first calls; and name of a weight -> why the channels that it writes must
        stay: something reads them that cannot make up for their loss.
    """
    component = traced.component
    users: dict[str, set[tuple[str, str | None]]] = {}
    for call in traced.calls:
        weight = _weight(call)
        for name in {value.name for value in call.inputs} - {None}:
            users.setdefault(str(name), set()).add((call.op, weight.name if weight else None))
    readers: dict[str, Reader] = {}
    stuck: dict[int, str] = {}
    for call in traced.calls:
        weight, axis = _weight(call), _MATRICES.get(call.op)
        if weight and axis is not None and weight.name and len(users[weight.name]) == 1:
            channels = component[weight.axes[axis]]
            if channels.any():
                bias = _bias(call)
                alone = bias and bias.name and len(bias.axes) == 1 and len(users[bias.name]) == 1
                groups = _groups(call, weight) if len(weight.axes) > 2 else 1
                reader = Reader(weight.name, axis, bias.name if bias and alone else None, groups, channels)
                readers.setdefault(weight.name, reader)
        else:
            where = str(Place(call.op, call.module))
            stuck |= {int(c): where for ids in _read_by(call, traced) for c in component[ids]}
    stuck.pop(0, None)
    whole = {
        name: stuck[int(c)]
        for name, axis in traced.writers.items()
        for c in component[traced.tensors[name].axes[axis]]
        if int(c) in stuck
    }
    return list(readers.values()), whole


def _read_by(call: Record, traced: Trace) -> list[Ids]:
    """The axes of weights along which a call sums channels."""
    if call.op in ("aten::matmul", "aten::mm"):
        left, right = call.inputs[:2]  # of tensors computed from data, the axis that is summed over stays
        return [left.axes[-1], right.axes[-2]]
    if call.op in _MATRICES:
        value = call.inputs[2 if call.op == "aten::addmm" else 1]
        return [value.axes[_MATRICES[call.op]]]
    if call.op not in _OTHERS:
        return []
    weights = [value for value in call.inputs if value.name is not None and len(value.axes) > 1]
    return [
        ids
        for value in weights
        for axis, ids in enumerate(value.axes)
        if axis != traced.writers.get(value.name or "")
    ]


def _weight(call: Record) -> Value | None:
    """The matrix or kernel on the right of a call that is one of ``_MATRICES``."""
    if call.op not in _MATRICES:
        return None
    weight = call.inputs[2 if call.op == "aten::addmm" else 1]
    return weight if len(weight.axes) == 2 or "conv" in call.op else None


def _bias(call: Record) -> Value | None:
    if call.op == "aten::addmm":
        return call.inputs[0]
    has_bias = call.op not in ("aten::matmul", "aten::mm") and len(call.inputs) > 2
    return call.inputs[2] if has_bias else None


def _groups(call: Record, weight: Value) -> int:
    x = call.inputs[0]
    channel = len(call.outputs[0].axes) - len(weight.axes) + 1
    return len(x.axes[channel]) // len(weight.axes[1])
