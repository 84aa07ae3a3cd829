"""What a forward pass costs: fvcore's counter, with handles for the contractions that fvcore does not know.

FLOPs are 2 per multiply-add of contractions: convolutions, linear maps, products of matrices, attention, recurrent layers.
Pointwise operators, norms, pooling and softmax are free. fvcore counts multiply-adds, and so do all handles here;
`flops_per_input` makes FLOPs of them, and nothing else does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunefuse._attention import unfused_attention
from prunefuse._inputs import Inputs, checked_inputs, outputs_in
from prunefuse.training._modes import evaluating

Handle = Callable[[Sequence[Any], Sequence[Any]], float]
"""Inputs and outputs of a call in a graph of torch.jit -> its multiply-adds."""

# Operators with weights that are no contraction, beside those that are pointwise or give a view of their input.
_FREE = """
    _weight_norm batch_norm group_norm instance_norm layer_norm rms_norm linalg_vector_norm norm
    cumsum mean softmax std_mean sum topk var_mean adaptive_avg_pool2d grid_sampler
    upsample_bicubic2d upsample_bilinear2d upsample_nearest2d
    clone embedding embedding_bag flip index_select pad repeat repeat_interleave tile tril triu
"""


def flops_per_input(
    model: nn.Module, example: Any = None, *, example_kwargs: Mapping[str, Any] | None = None
) -> float:
    """The FLOPs of one forward pass in evaluation mode: 2 per multiply-add of contractions.

    >>> from prunefuse.training import flops_per_input
    >>> flops_per_input(torch.nn.Linear(100, 10), torch.zeros(1, 100))
    2000.0

    fvcore counts, with the handles of this module. Operators that these do not know are counted by the formula that is
    registered with `torch.utils.flop_counter.register_flop_formula`, as those of prunefuse are.

    Args:
        model: The network; left as it was.
        example: A batch of one input, or the inputs in order, on the model's device. They may hold tensors in any way, as
            those of `prunefuse.plan_pruning` may.
        example_kwargs: More inputs, by name.

    Warns:
        UserWarning: Operators that nobody counts take weights; the message names them.
    """
    uncounted: set[str] = set()
    inputs = checked_inputs(model, example, example_kwargs)
    with warnings.catch_warnings(), evaluating(model), unfused_attention(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecation of torch.jit, which fvcore is made of
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(_OfTensors(model, inputs), tuple(inputs.tensors))
        analysis.clear_op_handles().set_op_handle(**_handles())
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        multiply_adds = analysis.total()
        if strangers := [name for name in analysis.unsupported_ops() if not _is_free(name)]:
            analysis.set_op_handle(
                **{name: _stranger(name, len(inputs.tensors), uncounted) for name in strangers}
            )
            multiply_adds = analysis.total()
    if uncounted:
        warnings.warn(
            f"the FLOPs of {type(model).__name__} lack operators with weights that have no formula: "
            f"{', '.join(sorted(uncounted))}; torch.utils.flop_counter.register_flop_formula gives one to an operator",
            stacklevel=2,
        )
    return 2.0 * float(multiply_adds)


class _OfTensors(nn.Module):
    """A model as torch.jit can trace it: tensors go in and come out, whatever holds them."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model, self._inputs = model, inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the model returns for these in place of the tensors of its inputs."""
        place = {id(x): tensor for x, tensor in zip(self._inputs.tensors, tensors, strict=True)}
        return tuple(outputs_in(self._inputs.map(lambda x: place[id(x)]).run(self.model)))


def _handles() -> dict[str, Handle]:
    """The operators that are counted, by the names that torch.jit gives them."""
    from fvcore.nn import jit_handles as known

    handles = {
        "_convolution": lambda inputs, outputs: sum(known.conv_flop_jit(inputs, outputs).values()),
        "_convolution_mode": _same_convolution,
        "linear": known.linear_flop_jit,
        "bilinear": _bilinear,
        "scaled_dot_product_attention": _attention,
        **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner"), _product(0)),
        **dict.fromkeys(("addmm", "baddbmm", "addmv"), _product(1)),
        **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
        **{name: _by_parts(name) for name in ("einsum", "tensordot", "linalg_multi_dot")},
    }
    return {f"aten::{name}": handle for name, handle in handles.items()}


def _shape(value: Any) -> list[int]:
    sizes: list[int] = value.type().sizes()
    return sizes


def _same_convolution(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """A convolution whose padding is a word: every output is made by the weights of its channel."""
    return math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])


def _product(first: int) -> Handle:
    """A product of matrices or vectors: input number ``first`` is summed over its last axis, for every output."""

    def count(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        return math.prod(_shape(outputs[0])) * _shape(inputs[first])[-1]

    return count


def _bilinear(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Every output is a sum over all pairs of features, with a weight each."""
    return math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[2])[1:])


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Queries (..., H, L, E), keys (..., S, E), values (..., S, D): both products in full, whatever a mask hides."""
    (*_, keys, width), (*rows, values) = _shape(inputs[1]), _shape(outputs[0])
    return math.prod(rows) * keys * (width + values)


def _recurrent(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Every matrix of the layer is applied to each step of the sequences."""
    lists = (value.node().inputs() for value in inputs if value.node().kind() == "prim::ListConstruct")
    weights = (_shape(weight) for values in lists for weight in values if weight.isCompleteTensor())
    applied = sum(math.prod(shape) for shape in weights if len(shape) == 2)
    return math.prod(_shape(inputs[0])[:-1]) * applied


def _by_parts(name: str) -> Handle:
    """What torch's counter finds in the parts that PyTorch makes the operator of."""

    def count(inputs: Sequence[Any], outputs: Sequence[Any]) -> float:
        from torch.utils.flop_counter import FlopCounterMode

        operator = getattr(torch.ops.aten, name).default
        given = list(zip(operator._schema.arguments, map(_argument, inputs), strict=True))
        options = {formal.name: value for formal, value in given if formal.kwarg_only}
        with FlopCounterMode(display=False) as counter:
            operator(*(value for formal, value in given if not formal.kwarg_only), **options)
        return float(counter.get_total_flops()) / 2

    return count


def _stranger(name: str, examples: int, uncounted: set[str]) -> Handle:
    """By the registered formula; without one nothing, and its name goes to ``uncounted`` if it takes a weight."""
    from torch.utils.flop_counter import flop_registry

    formula = flop_registry.get(_operator(name))

    def count(inputs: Sequence[Any], outputs: Sequence[Any]) -> float:
        if formula is not None:
            results = tuple(map(_argument, outputs))
            return (
                float(formula(*map(_argument, inputs), out_val=results[0] if len(results) == 1 else results))
                / 2
            )
        if any(_is_weight(value, examples) for value in inputs):
            uncounted.add(name.removeprefix("prim::PythonOp."))
        return 0

    return count


def _operator(name: str) -> Any:
    namespace, _, short = name.partition("::")
    return getattr(getattr(torch.ops, namespace), short, None)


def _is_free(name: str) -> bool:
    """Whether an operator of PyTorch is known to multiply nothing: pointwise, or it only moves elements."""
    if not name.startswith("aten::"):
        return False
    known = name.removeprefix("aten::").rstrip("_") in _FREE.split()
    return (
        known
        or _gives_view(name)
        or any(torch.Tag.pointwise in overload.tags for overload in _overloads(name))
    )


def _gives_view(name: str) -> bool:
    """Whether what an operator gives is a view of what it takes."""
    made = (value for overload in _overloads(name) for value in overload._schema.returns)
    return any(value.alias_info and not value.alias_info.is_write for value in made)


def _overloads(name: str) -> list[Any]:
    packet = _operator(name) if name.startswith("aten::") else None
    return [getattr(packet, kind) for kind in packet.overloads()] if packet is not None else []


def _is_weight(value: Any, examples: int) -> bool:
    """Whether a tensor of two or more axes is a parameter or buffer, which the graph takes after the examples, or a view."""
    node = value.node()
    if node.kind() != "prim::Param":
        return _gives_view(node.kind()) and _is_weight(next(node.inputs()), examples)
    given = [x.debugName() for x in node.outputs()][:examples]
    return value.isCompleteTensor() and len(_shape(value)) > 1 and value.debugName() not in given


def _argument(value: Any) -> Any:
    """What is given to an operator: tensors as ones without values."""
    if value.isCompleteTensor():
        return torch.empty(_shape(value), dtype=value.type().dtype(), device="meta")
    if value.node().kind() == "prim::ListConstruct":
        return list(map(_argument, value.node().inputs()))
    return value.toIValue()
