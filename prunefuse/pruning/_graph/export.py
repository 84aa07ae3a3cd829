"""Exporting or recording models: from copies, in silence, with errors that name the module."""

from __future__ import annotations

import gc
import io
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from prunefuse._inputs import Inputs
from prunefuse._seeds import isolated
from prunefuse.errors import CaptureError as CaptureError
from prunefuse.pruning._graph.copies import copied, cut, hollow, named_tensors
from prunefuse.pruning._graph.leaks import Made, forget
from prunefuse.pruning._graph.program import READS, Program, makes_sizes
from prunefuse.pruning._graph.recorder import record
from prunefuse.pruning._graph.remembered import forgetting

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram


@contextmanager
def running_modules(model: nn.Module) -> Iterator[list[str]]:
    """Follow which modules of ``model`` are running; after an error the last path is where it happened."""
    running: list[str] = []

    def entering(path: str) -> Callable[..., None]:
        return lambda *_: running.append(path)

    def leaving(*_: object) -> None:
        running.pop()

    handles = []
    for path, module in model.named_modules():
        handles += [module.register_forward_pre_hook(entering(path)), module.register_forward_hook(leaving)]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def quiet() -> Iterator[None]:
    """While it lasts torch logs no warnings and errors; on an exception nothing reaches ``sys.stderr`` either.

    An exporter that fails prints the graph so far, and meta kernels log their tracebacks; the exception says it
    all. What the model itself writes to ``sys.stderr`` is passed on at the end of a block that does not fail.
    """
    import torch._subclasses.fake_tensor
    import torch.export._trace  # noqa: F401  (their loggers are among those below)

    def below_warning(record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING

    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]
    loggers = [logging.getLogger(name) for name in names]
    written = io.StringIO()
    for logger in loggers:
        logger.addFilter(below_warning)
    try:
        with redirect_stderr(written):
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(below_warning)
    if text := written.getvalue():
        print(text, end="", file=sys.stderr)


def describe(model: nn.Module, running: list[str]) -> str:
    """Name the innermost running module: ``'stage1.0.conv1' (Conv2d)``."""
    path = running[-1] if running else ""
    kind = type(model.get_submodule(path)).__name__
    return f"module {path!r} ({kind})" if path else f"the model itself ({kind})"


def export(
    model: nn.Module, inputs: Inputs, training: bool = False, dynamic_shapes: Any = None
) -> ExportedProgram:
    """The graph of ``model`` in evaluation mode, or all of it in training mode, from a copy.

    Raises:
        RuntimeError: the model cannot be copied or exported; the message names the module and the reason.
    """
    return _export(_copied(model, copied), inputs, training, dynamic_shapes)


@dataclass
class Exporter:
    """Gets the graphs of a model for planning: by a run on shapes alone, else on the example inputs, else by export.

    Attributes:
        model: The dense model.
        inputs: Its example inputs.
        exported: Whether it must be torch.export that makes the graphs.
        seconds: What it took so far.
        way: How the graph in evaluation mode was made, "shapes", "values" or "export".
        values: Whether torch.export needed a copy with values.
        training_refusal: Why there is none in training mode.
        by_values: The first call in it, in evaluation mode, that shows Python values, or makes sizes of them.
    """

    model: nn.Module
    inputs: Inputs
    exported: bool = False
    seconds: float = 0.0
    way: Literal["shapes", "values", "export"] = "export"
    values: bool = False
    training_refusal: str = ""
    by_values: str = ""

    def dense(self) -> Program:
        """The graph of the model in evaluation mode.

        Raises:
            RuntimeError: as of :func:`export`.
        """
        program, self.way = self._first_that_works(self.inputs, training=False)
        self.by_values = program.by_values
        return program

    def dense_in_training(self) -> Program | None:
        """Its graph in training mode; None if there is none, as for a model that needs targets there."""
        inputs = self.inputs
        if inputs.batch == 1:  # batch norm cannot train on one sample
            inputs = inputs.map(lambda x: torch.cat([x, x]) if x.ndim and len(x) == 1 else x)
        try:
            return self._first_that_works(inputs, training=True)[0]
        except CaptureError as error:
            self.training_refusal = str(error)
            return None

    def _first_that_works(
        self, inputs: Inputs, training: bool
    ) -> tuple[Program, Literal["shapes", "values", "export"]]:
        if not self.exported:
            try:
                whole = dict.fromkeys(named_tensors(self.model), ())
                return self._timed(
                    record_shapes, lambda: cut(self.model, whole, {}, "meta"), inputs, training
                ), "shapes"
            except Exception:  # of any kind: code meets tensors that it never saw
                pass
            model = _copied(self.model, copied)
            try:
                program = self._timed(_record, model, inputs, training)
                if program.by_values and not any(map(makes_sizes, program.graph.nodes)):
                    # What code only looks at, torch.export may know without: then the graph holds for all values.
                    try:
                        return self._exported(inputs, training), "export"
                    except CaptureError:
                        pass
                return program, "values"
            except CaptureError as error:
                try:
                    return self._exported(inputs, training), "export"
                except CaptureError:
                    raise error from None
        return self._exported(inputs, training), "export"

    def small(
        self,
        kept: Mapping[str, Sequence[Tensor | None]],
        attributes: Mapping[str, Mapping[str, int | tuple[int, ...]]],
    ) -> Program:
        """The graph of the model that is cut first, in evaluation mode; see :func:`cut`."""
        if self.way == "shapes":
            # What the dense model could run, the small one can if it fits.
            return self._timed(
                record_shapes, lambda: cut(self.model, kept, attributes, "meta"), self.inputs, False
            )
        by_run = self.way == "values"
        small = cut(self.model, kept, attributes, by_run or self.values)
        return self._timed(_record if by_run else _exported, small, self.inputs, False)

    def _exported(self, inputs: Inputs, training: bool) -> Program:
        program = self._without_values(inputs, training)
        if program is None:
            program = self._timed(_exported, _copied(self.model, copied), inputs, training)
        if program.has_unknown_sizes():
            raise CaptureError(
                "torch.export captures the model, but the sizes of some of its tensors depend on values, which "
                'only expressed_by="module" can follow',
                "",
            )
        return program

    def _without_values(self, inputs: Inputs, training: bool) -> Program | None:
        if not self.values:
            try:
                return self._timed(_exported, _copied(self.model, hollow), inputs, training)
            except CaptureError:
                self.values = True
        return None

    def _timed(
        self,
        way: Callable[[Any, Inputs, bool], Program],
        model: nn.Module | Callable[[], nn.Module],
        inputs: Inputs,
        training: bool,
    ) -> Program:
        start = time.perf_counter()
        try:
            return way(model, inputs, training)
        finally:
            self.seconds += time.perf_counter() - start


def _copied(model: nn.Module, copier: Callable[[nn.Module], nn.Module]) -> nn.Module:
    try:
        return copier(model)
    except Exception as error:
        raise RuntimeError(f"{type(model).__name__} cannot be copied: {first_line(error)}") from error


def _exported(model: nn.Module, inputs: Inputs, training: bool) -> Program:
    return Program.of(_export(model, inputs, training))


def record_shapes(copy: Callable[[], nn.Module], inputs: Inputs, training: bool) -> Program:
    """The graph of one run on shapes alone, of a copy of a model on the meta device."""
    made: Made = []
    failure = None
    try:
        program = _record(copy(), inputs.on_meta(), training, made)
    except CaptureError as error:
        failure = CaptureError(
            str(error), error.module
        )  # without the frames, which hold what the run has made
    forget(made)
    if failure is not None:
        raise failure
    return program


def _record(model: nn.Module, inputs: Inputs, training: bool, made: Made | None = None) -> Program:
    """The graph of one run on the inputs, or on their shapes alone where they and the model are on the meta device."""
    model.train(training)
    device = next((tensor.device for tensor in model.parameters() if not tensor.is_meta), torch.device("cpu"))
    with (
        running_modules(model) as running,
        quiet(),
        without_collections(),
        warnings.catch_warnings(),
        isolated(0, device),
    ):
        warnings.simplefilter("ignore")
        try:
            program = record(
                model, inputs.map(lambda x: x.detach().clone()), running, [] if made is None else made
            )
        except Exception as error:
            where = describe(model, running)
            raise CaptureError(
                f"the model cannot run, in {where}: {first_line(error)}", running[-1] if running else ""
            ) from error
    _drop_unread(program.graph)
    return program


@contextmanager
def without_collections() -> Iterator[None]:
    """While it lasts Python does not look for cycles, which would go through all that torch holds in the middle of a run."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _export(model: nn.Module, inputs: Inputs, training: bool, dynamic_shapes: Any = None) -> ExportedProgram:
    model.train(training)
    with running_modules(model) as running:
        try:
            return capture(model, inputs, dynamic_shapes)
        except Exception as error:
            where = describe(model, running)
            reason = first_line(error)
            if running and isinstance(model.get_submodule(running[-1]), nn.RNNBase):
                reason += (
                    "; if its sequences are packed, which export cannot follow: plan and extract with a forward that "
                    "does not pack them, as behind a flag of the model"
                )
            raise CaptureError(
                f"torch.export cannot capture the model, in {where}: {reason}", running[-1] if running else ""
            ) from error


def capture(model: nn.Module, inputs: Inputs, dynamic_shapes: Any = None) -> ExportedProgram:
    """What ``torch.export`` makes of a model, without what it logs."""
    import torch.export

    with forgetting(model), quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The tensor attribute")  # a recurrent layer's list of its weights
        program = torch.export.export(
            model, inputs.args, dict(inputs.kwargs), dynamic_shapes=dynamic_shapes, strict=False
        )
    _drop_unread(program.graph)
    return program


_STATISTICS = frozenset(
    "aten::" + name
    for name in (
        *(
            "mean",
            "sum",
            "var",
            "std",
            "amax",
            "amin",
            "max",
            "min",
            "any",
            "all",
            "norm",
            "linalg_vector_norm",
        ),
        *(
            "argmax",
            "argmin",
            "median",
            "logsumexp",
            "softmax",
            "log_softmax",
            "detach",
            "clone",
            "to",
            "_to_copy",
        ),
    )
)


def _drop_unread(graph: fx.Graph) -> None:
    """Drop what nobody reads and what runs with any number of channels: statistics, single numbers, a shape's tensor.

    What takes several tensors or sizes stays, since the code of a module runs it all the same. Python's look at a truth
    value, as an assertion has it, is dropped as well.
    """
    for node in reversed(graph.nodes):
        if not node.users and _runs_with_any_size(node):
            graph.erase_node(node)


def _runs_with_any_size(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or schema.is_mutable or len(node.all_input_nodes) != 1:
        return False
    if schema.name == "aten::select":
        return node.args[2] in (0, -1)
    if schema.name in READS:
        return bool(node.all_input_nodes[0].meta["val"].dtype is torch.bool)
    return schema.name in _STATISTICS or torch.Tag.pointwise in node.target.tags  # type: ignore[union-attr]


_LONGEST = 400


def first_line(error: Exception) -> str:
    """The gist of an error, whose message may go on for pages."""
    line = next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
