"""The graph of a run: every operator that the model calls. On shapes alone that takes milliseconds."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_pre_dispatch, enable_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.utils._python_dispatch import TorchDispatchMode

from prunefuse._attention import unfused_attention
from prunefuse._inputs import Inputs, outputs_in
from prunefuse.pruning._graph.constants import READS, constant_value
from prunefuse.pruning._graph.copies import held_tensors, named_tensors
from prunefuse.pruning._graph.leaks import Made
from prunefuse.pruning._graph.program import Program, depends_on_values
from prunefuse.pruning._graph.shapes import Asked, Kind, bare_tensor, kind_of, like_input


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
    stacks = {path: {path: (path, type(module))} for path, module in model.named_modules()}

    def stack() -> dict[str, tuple[str, type]]:
        return stacks[running[-1] if running else ""]

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
        # By id, and not held: a factory's tensor that somebody holds is copied on its way to Python, and nobody knows the copy.
        self._nodes: dict[int, tuple[weakref.ref[Tensor], fx.Node]] = {}
        self._bare: dict[Kind, Tensor] = {}
        self._placeholders = self._calls = 0
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
        known = self._nodes.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        node = self.graph.get_attr(f"constant{len(self.constants)}")
        node.meta["nn_module_stack"] = self._stack()
        self.constants.append((node, tensor))
        self._know(tensor, node)
        return node

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # modes see every look at a shape as well
            asked = Asked(func)
            given, named = self._given(args, asked), self._given(kwargs, asked)
            result = asked.known()
            if result is None:
                result = like_input(func, args)
            if result is None and func in READS and args[0].is_meta:
                result = _read(func, given[0])
        if result is None:
            with torch._C._DisablePythonDispatcher():  # there are no symbols, so that kernels in C++ do
                result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            asked.note(result)
            self._note(func, given, named, result)
        return result

    def _note(self, func: Any, given: Any, named: Any, result: Any) -> None:
        node = self._call(func, given, named)
        if isinstance(result, Tensor):
            self._know(result, node)
        elif isinstance(result, list | tuple):
            node.meta["val"] = tuple(map(self._like, result))
            for place, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._know(part, self._call(operator.getitem, (node, place), {}))
        else:
            node.meta["val"] = result

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        # With a name, and with arguments later, PyTorch neither makes one of the operator's nor goes through all arguments.
        node = self.graph.create_node("call_function", func, name=f"call{self._calls}")
        self._calls += 1
        node.args = args
        if kwargs:
            node.kwargs = kwargs
        node.meta["nn_module_stack"] = self._stack()
        return node

    def _given(self, value: Any, asked: Asked) -> Any:
        """Arguments of an operator, with nodes in the place of tensors; also told to what is asked."""
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            asked.of_tensor(value)
            return self.node_of(value)
        if kind is tuple or kind is list:
            asked.of_container(kind, len(value))
            return kind([self._given(x, asked) for x in value])
        if kind is dict:
            asked.of_container(kind, tuple(value))
            return {name: self._given(x, asked) for name, x in value.items()}
        asked.of_other(kind, value)
        return self.node_of(value) if isinstance(value, Tensor) else value

    def _know(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta["val"] = self._like(tensor)
        reference = weakref.ref(tensor)
        self._nodes[id(tensor)] = reference, node
        if tensor.is_meta and node.op == "call_function":
            self._all.append(reference)

    def _like(self, value: Any) -> Any:
        """A tensor of the same shape, strides and type, without values, one for all of them; what is no tensor is itself."""
        if not isinstance(value, Tensor):
            return value
        kind = kind_of(value)
        if (bare := self._bare.get(kind)) is None:
            bare = self._bare[kind] = bare_tensor(kind)
        return bare


def _read(func: Any, node: fx.Node) -> Any:
    """The number that Python asks for, if it depends on neither inputs nor weights; None if it does."""
    value = constant_value(node)
    return None if value is None else func(value)


@contextmanager
def _recording(recorder: _Recorder) -> Iterator[None]:
    with enable_pre_dispatch(), enable_python_dispatcher(), recorder:
        yield


@contextmanager
def _without_values() -> Iterator[None]:
    """While it lasts, new tensors are without values too, and there are no gradients."""
    with torch.no_grad(), torch.device("meta"):
        yield
