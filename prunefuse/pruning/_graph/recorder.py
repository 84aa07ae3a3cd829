"""The graph of a run: every operator that the model calls. On shapes alone that takes milliseconds."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_pre_dispatch, enable_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from prunefuse._attention import unfused_attention
from prunefuse._inputs import Inputs, outputs_in
from prunefuse.pruning._graph.copies import held_tensors, named_tensors
from prunefuse.pruning._graph.leaks import Made
from prunefuse.pruning._graph.program import Program, depends_on_values

# Operators whose one output is like their first input, and whose shapes PyTorch finds slowly, by decomposition.
_LIKE_INPUT = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        "batch_norm",
        "instance_norm",
        "layer_norm",
        "group_norm",
        "dropout",
        "alpha_dropout",
        "feature_dropout",
    )
)


def record(model: nn.Module, inputs: Inputs, running: Sequence[str], made: Made) -> Program:
    """The graph of one run of ``model``, which it changes, as training would; its operators are those of torch.export.

    Args:
        model: A model, which may be on the meta device.
        inputs: Its inputs, where it is.
        running: The modules that are running, while they do; see `running_modules`.
        made: Is told of all tensors that the run makes.

    Raises:
        Exception: what the model or an operator raises, as where Python looks at values.
    """
    types = {path: type(module) for path, module in model.named_modules()}

    def stack() -> dict[str, tuple[str, type]]:
        path = running[-1] if running else ""
        return {path: (path, types[path])}

    recorder = _Recorder(stack, made)
    tensors = named_tensors(model)
    held = {recorder.placeholder(tensor).name: name for name, tensor in tensors.items()}
    for x in inputs.tensors:
        recorder.placeholder(x)
    attributes = {id(tensor): (name, tensor) for name, tensor in held_tensors(model)}
    with (
        _without_values() if inputs.tensors[0].is_meta else nullcontext(),
        unfused_attention(),
        _recording(recorder),
    ):
        outputs = outputs_in(inputs.run(model))
    returned = [recorder.node_of(x) for x in outputs]
    recorder.graph.output(tuple(returned))
    constants = {
        node.name: attributes.get(id(value), (f"{next(iter(node.meta['nn_module_stack']))}.{node.name}",))[0]
        for node, value in recorder.constants
    }
    by_values = _where_values_count(recorder.graph)
    return Program(recorder.graph, held, constants, {node.name for node in returned}, by_values)


def _where_values_count(graph: fx.Graph) -> str:
    """The first call that gives Python a number of the inputs or the weights, or makes sizes of them; "" if none does."""
    computed: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not computed.isdisjoint(node.all_input_nodes):
            computed.add(node)
            if depends_on_values(node):
                name = str(node.target).removeprefix("aten.").partition(".")[0]
                path = next(iter(node.meta["nn_module_stack"]))
                what = "numpy" if name == "resolve_neg" else name
                return f"{what} in {path or 'the model'}"
    return ""


class _Recorder(SchemaCheckMode):
    """Runs every operator that is called, before autograd and composite operators take it apart, and notes it.

    PyTorch lets three kinds of modes in there. This one is only by name a schema check: it does nothing of it.
    """

    def __init__(self, stack: Callable[[], Mapping[str, Any]], made: Made) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)
        self.graph = fx.Graph()
        self.constants: list[tuple[fx.Node, Tensor]] = []
        # Not held: a factory's tensor that somebody holds is copied on its way to Python, and nobody knows the copy.
        self._nodes = WeakTensorKeyDictionary()
        self._made: dict[Any, tuple[tuple[int, ...], tuple[int, ...], torch.dtype]] = {}
        self._placeholders = 0
        self._stack = stack
        self._all = made

    def placeholder(self, tensor: Tensor) -> fx.Node:
        """A tensor that is there before the run."""
        node = self.graph.placeholder(f"x{self._placeholders}")
        self._placeholders += 1
        self._know(tensor, node)
        return node

    def node_of(self, tensor: Tensor) -> fx.Node:
        """Where a tensor comes from; one that comes from nowhere is a constant."""
        known: fx.Node | None = self._nodes.get(tensor)
        if known is not None:
            return known
        node = self.graph.get_attr(f"constant{len(self.constants)}")
        node.meta["nn_module_stack"] = self._stack()
        self.constants.append((node, tensor))
        self._know(tensor, node)
        return node

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given, named = self._nodes_in(args), self._nodes_in(kwargs)
        with torch._C._DisablePythonDispatcher():  # there are no symbols, so that kernels in C++ do
            result = self._result(func, args, kwargs)
        node = self.graph.call_function(func, given, named)
        node.meta["nn_module_stack"] = self._stack()
        if isinstance(result, Tensor):
            self._know(result, node)
            return result
        if isinstance(result, list | tuple):
            node.meta["val"] = tuple(map(_like, result))
            for place, part in enumerate(result):
                if isinstance(part, Tensor):
                    item = self.graph.call_function(operator.getitem, (node, place))
                    item.meta["nn_module_stack"] = node.meta["nn_module_stack"]
                    self._know(part, item)
        else:
            node.meta["val"] = result
        return result

    def _nodes_in(self, value: Any) -> Any:
        """Arguments of an operator, with nodes in the place of tensors."""
        kind = type(value)
        if kind is tuple or kind is list:
            return kind([self._nodes_in(x) for x in value])
        if kind is dict:
            return {name: self._nodes_in(x) for name, x in value.items()}
        return self.node_of(value) if isinstance(value, Tensor) else value

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator gives; without values as it gave for such inputs before, which PyTorch finds slowly in Python."""
        if func in _LIKE_INPUT and isinstance(args[0], Tensor) and args[0].is_meta:
            return torch.empty_like(args[0])
        if not _makes_new(func):
            return func(*args, **kwargs)
        key: list[Any] = [func]
        if not (_add_kinds(key, args) and _add_kinds(key, kwargs)):
            return func(*args, **kwargs)
        known = tuple(key)
        if (made := self._made.get(known)) is None:
            result = func(*args, **kwargs)
            if isinstance(result, Tensor) and type(result) is Tensor and result.is_meta:
                self._made[known] = (tuple(result.shape), result.stride(), result.dtype)
            return result
        shape, strides, dtype = made
        return torch.empty_strided(shape, strides, dtype=dtype, device="meta")

    def _know(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta["val"] = _like(tensor)
        self._nodes[tensor] = node
        if tensor.is_meta and node.op == "call_function":
            self._all.append(weakref.ref(tensor))


@cache
def _makes_new(func: Any) -> bool:
    """Whether an operator gives one new tensor and writes into none."""
    schema = getattr(func, "_schema", None)
    if schema is None or schema.is_mutable or len(schema.returns) != 1:
        return False
    return schema.returns[0].alias_info is None


def _add_kinds(key: list[Any], value: Any) -> bool:
    """Add what a result's shape depends on of arguments to a key; whether that is known."""
    kind = type(value)
    if kind is tuple or kind is list:
        key.append((kind, len(value)))
        return all(_add_kinds(key, x) for x in value)
    if kind is dict:
        key.append((kind, *value))
        return all(_add_kinds(key, x) for x in value.values())
    if kind is Tensor or kind is nn.Parameter:
        key.append((value.shape, value.stride(), value.dtype))
        return bool(value.is_meta)
    key.append((kind, value))
    return value is None or isinstance(value, _PLAIN)


_PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


def _like(value: Any) -> Any:
    """A tensor of the same shape, strides and type, without values; what is no tensor is itself."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


@contextmanager
def _recording(recorder: _Recorder) -> Iterator[None]:
    with enable_pre_dispatch(), enable_python_dispatcher(), recorder:
        yield


@contextmanager
def _without_values() -> Iterator[None]:
    """While it lasts, new tensors are without values too, and there are no gradients."""
    with torch.no_grad(), torch.device("meta"):
        yield
