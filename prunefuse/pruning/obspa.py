"""Pruning a trained network without training it again: OBSPA (Wang, Rachwan, Günnemann and Charpentier 2024).

The paper has costs of channels by optimal brain surgery on the layers that read them, summed over these layers. The
remaining weights of those layers make up for what is gone. Inputs may be of any kind, without labels, and norm statistics
are estimated again. The steps below say how; docs/paper.md says what of that the paper leaves open.

1. One run of the dense network over the calibration inputs gives ``XXᵀ`` of every layer that reads channels, and the
   statistics in front of its batch norms. Scores follow, and a plan by them.
2. The layers of the small network are then gone through in the order in which they run. A layer that lost inputs gets
   the least-squares weights from the inputs that the *small* network, with all that was changed before, gives it to the
   outputs that the *dense* one has there. So a layer makes up for the errors of those before it, too, and for what
   no matrix can (a layer norm takes its statistics over fewer channels). It costs a run up to each layer, and is what
   ``(WH)[:,K](H[K,K])⁻¹`` is where nothing before has changed. Hessians of the dense network in its place were worse in
   every case tried on the digits, by 0 to 2 points with data and by up to 18 with noise, so there is no option.
3. So do batch norms: mean and variance move as they did from the dense to the small network on the calibration inputs,
   by a difference and a ratio. For data like those that the network was trained on this is what estimating them anew
   gives; for noise, whose own statistics would be wrong (there 40 points worse), it still is right.

Two choices are options. ``combine`` says what becomes of the costs of a channel in several layers. ``fit_to="own"`` goes
through the layers in a copy of the dense network instead, each of which stops reading what leaves, and fits it to what its
own dense weights make of its inputs there: a layer then makes up for its own loss and not for the errors before it. The
tables of docs/accuracy.md compare them.

A bias is the weight of one more input that is always 1. Channels stay that are read by something that cannot make up
for them (recurrent layers, transposed convolutions, weights with a second use); the plan's notes name it. The steps are in
:mod:`prunefuse.pruning._obspa.refit`; here is what PyTorch's models are to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from typing_extensions import Unpack

from prunefuse._attention import unfused_attention
from prunefuse._inputs import Inputs, tensors_in
from prunefuse._wrapped import unwrapped
from prunefuse.pruning._graph.copies import copied, named_tensors
from prunefuse.pruning._graph.export import Exporter
from prunefuse.pruning._obspa.readers import Application, Enough, Reader, Watch, find_readers
from prunefuse.pruning._obspa.refit import (
    COMBINE,
    FIT_TO,
    RANKED_HERE,
    Norm,
    Run,
    check_planning,
    compensate,
    compensate_own,
    costs,
    with_notes,
)
from prunefuse.pruning._walk import trace
from prunefuse.pruning.options import ModulePlanOptions, check_choice, inputs_for, lists
from prunefuse.pruning.plan import PruningPlan
from prunefuse.pruning.planner import plan_pruning

BATCH = 64


class Batches:
    """The inputs of a model, batch by batch, as often as wanted, on one device."""

    def __init__(
        self, calibration: Tensor | Iterable[Any] | None, example: Inputs, device: torch.device
    ) -> None:
        if isinstance(calibration, Tensor):
            calibration = calibration.split(BATCH)
        if isinstance(calibration, Iterator) or not isinstance(calibration, Iterable):
            raise TypeError(
                "calibration must be a tensor or something that gives batches as often as it is read (a list, a "
                f"data loader), got {type(calibration).__name__}"
            )
        self._source = calibration
        self._example = example
        self._device = device

    def __iter__(self) -> Iterator[Inputs]:
        """What every batch has of the model's inputs: labels behind them, or by other names, are dropped."""
        empty = True
        for batch in self._source:
            yield self._inputs(batch).map(lambda x: x.to(self._device))
            empty = False
        if empty:
            raise ValueError("calibration must be at least one batch, got none")

    def _inputs(self, batch: Any) -> Inputs:
        example = self._example
        args: tuple[Any, ...] = ()
        named: Any = batch
        if count := len(example.args):
            alone = isinstance(batch, Tensor) or (count == 1 and isinstance(batch, type(example.args[0])))
            values: tuple[Any, ...] = (batch,) if alone or isinstance(batch, Mapping) else tuple(batch)
            args, named = values[:count], next(iter(values[count:]), None)
            if len(args) != count or any(
                isinstance(wanted, Tensor) and not isinstance(x, Tensor)
                for x, wanted in zip(args, example.args, strict=True)
            ):
                got = ", ".join(type(x).__name__ for x in args)
                raise TypeError(f"calibration must be batches of {count} tensors, got ({got})")
        named = named if isinstance(named, Mapping) else {}
        kwargs = {name: named.get(name, value) for name, value in example.kwargs.items()}
        if missing := [name for name, x in example.kwargs.items() if name not in named and tensors_in(x)]:
            raise TypeError(
                f"calibration must be batches with {', '.join(example.kwargs)} by name, got none of {missing[0]!r}"
            )
        return Inputs(args, kwargs)


def noise_like(
    example_inputs: Tensor | Sequence[Tensor], samples: int = 2048, *, seed: int = 0
) -> list[tuple[Tensor, ...]]:
    """Return standard normal inputs in batches, for calibration without data.

    >>> [batch[0].shape[0] for batch in prunefuse.pruning.noise_like(torch.zeros(1, 3, 8, 8), 100)]
    [64, 36]

    Args:
        example_inputs: The inputs of the model's forward, with the batch on axis 0. Only shapes and dtypes matter.
        samples: How many samples there are in all.
        seed: The seed of a generator of its own.

    Returns:
        Batches of up to 64: a tuple of tensors each.

    Raises:
        ValueError: An input is not of a floating-point dtype, so that noise would not be like it.
    """
    examples = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    for x in examples:
        if not x.is_floating_point():
            raise ValueError(
                f"example_inputs must be floating-point tensors, got {x.dtype}; calibrate with data"
            )
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(BATCH, samples - start) for start in range(0, samples, BATCH)]
    return [
        tuple(torch.randn((size, *x.shape[1:]), generator=generator).to(x.dtype) for x in examples)
        for size in sizes
    ]


@lists(ModulePlanOptions, *RANKED_HERE)
def prune_without_finetuning(
    model: nn.Module,
    example_inputs: Any = None,
    calibration: Tensor | Iterable[Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    damping: float = 0.01,
    memory: int = 2**30,
    combine: str = "sum",
    fit_to: str = "dense",
    **options: Unpack[ModulePlanOptions],
) -> tuple[PruningPlan, nn.Module]:
    """Return a plan for a trained network, and the small network, which needs no training afterwards (OBSPA).

    Layers that read removed channels are refitted to the outputs of the dense network; see `prunefuse.pruning.obspa`.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 100), torch.nn.ReLU(), torch.nn.Linear(100, 2))
    >>> plan, small = prunefuse.prune_without_finetuning(model, torch.zeros(1, 4), torch.randn(200, 4), ratio=0.5)
    >>> small[0].out_features
    50

    Args:
        model: The trained model. It is not changed.
        example_inputs: As for `plan_pruning`.
        calibration: About 2000 inputs, and no default: like those that the network will see, or others, or of `noise_like`.
            They are a tensor, or batches that can be read several times, as a list or a data loader has them. A batch is a
            tensor, or a tuple whose first entries are the model's inputs. Inputs by name are in a dictionary, which is the
            batch or comes behind the others. Labels are not used.
        example_kwargs: As for `plan_pruning`.
        damping: λ of the layers' Hessians, as a multiple of the mean of their diagonals.
        memory: Bytes for Hessians that are gathered in one run over the calibration inputs. A larger one is gathered in a
            run of its own.
        combine: ``"sum"``, ``"mean"`` or ``"median"``: what becomes of the costs that a channel has in several layers.
        fit_to: ``"dense"``: a layer is fitted to the outputs that the dense network has there. ``"own"``: to those of its
            own dense weights, on inputs that passed the layers changed before.
        options: Those of `ModulePlanOptions`.

    Returns:
        The plan, and the small model, in the mode of ``model``.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value that is not allowed, or no layer reads channels that may be pruned. Or the inputs
            determine no weights: there are too few of them, and ``damping=0``.
        RuntimeError: ``torch.export`` cannot capture the model.

    References:
        Wang, Rachwan, Günnemann and Charpentier 2024, *Structurally Prune Anything: Any Architecture, Any Framework, Any
        Time*. Hassibi and Stork 1992, *Second Order Derivatives for Network Pruning: Optimal Brain Surgeon*.
    """
    chosen: dict[str, Any] = {"damping": damping, "memory": memory, "combine": combine, "fit_to": fit_to}
    return prune_counting(
        model, example_inputs, calibration, None, example_kwargs=example_kwargs, **chosen, **options
    )


class Work(TorchDispatchMode):
    """While it lasts, counts the FLOPs of convolutions and matrix products.

    Attributes:
        flops: The sum so far, two for each multiply-add.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator, and count it where it has a formula, else what it is made of."""
        formula, named = flop_registry.get(func.overloadpacket), kwargs or {}
        if formula is None:
            with self:  # in a mode of its own, products have not been taken apart yet
                parts = func.decompose(*args, **named)
            return func(*args, **named) if parts is NotImplemented else parts
        output = func(*args, **named)
        self.flops += formula(*args, **named, out_val=output)
        return output


def prune_counting(
    model: nn.Module,
    example_inputs: Any,
    calibration: Tensor | Iterable[Any] | None,
    work: Work | None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    damping: float = 0.01,
    memory: int = 2**30,
    combine: str = "sum",
    fit_to: str = "dense",
    **options: Unpack[ModulePlanOptions],
) -> tuple[PruningPlan, nn.Module]:
    """`prune_without_finetuning`, with what runs over the calibration inputs counted by ``work``.

    Counted are the runs, each as far as it goes, and the products of what goes into layers. Solving for weights is not.
    """
    check_planning(options, damping)
    check_choice("combine", combine, tuple(COMBINE))
    check_choice("fit_to", fit_to, FIT_TO)
    model = unwrapped(model)
    inputs = inputs_for(model, example_inputs, example_kwargs)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batches = Batches(calibration, inputs, device)
    dense = ModuleNetwork(copied(model).eval(), work)

    traced = trace(model, Exporter(model, inputs).dense(), heads=options.get("heads", "whole"))
    readers, unrepaired = find_readers(traced)
    stuck = {name.rpartition(".")[0] or name: where for name, where in unrepaired.items()}
    if not readers:
        raise ValueError(
            "model must have a convolution or linear layer that reads channels that may be pruned, got none"
        )
    with unfused_attention(), torch.no_grad():
        steps = dense.steps(readers, next(iter(batches)))
        scores = costs(dense, readers, batches, damping, memory, combine)
        ignore = options.pop("ignore", ())
        ignore = [*([ignore] if isinstance(ignore, str) else ignore), *stuck]
        planning: ModulePlanOptions = {**options, "scores": scores, "ignore": ignore}
        plan = with_notes(plan_pruning(model, inputs.args, example_kwargs=inputs.kwargs, **planning), stuck)
        if fit_to == "own":
            passed = copied(model)
            modes = _modes(passed)
            compensate_own(ModuleNetwork(passed.eval(), work), dense, plan, steps, batches, damping)
            small = plan.extract(passed)
        else:
            small = plan.extract(model)
            modes = _modes(small)
            compensate(ModuleNetwork(small.eval(), work), dense, plan, steps, batches, damping)
    for module, mode in zip(small.modules(), modes, strict=True):
        module.training = mode
    return plan, small


def _modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


class ModuleNetwork:
    """A module in evaluation mode, as :mod:`prunefuse.pruning._obspa.refit` sees it; ``work`` counts its runs."""

    def __init__(self, model: nn.Module, work: Work | None = None) -> None:
        self._model = model
        self._counting: AbstractContextManager[Any] = nullcontext() if work is None else work
        self.tensors = named_tensors(model)
        self._norms = {
            Norm(f"{path}.running_mean", f"{path}.running_var"): module
            for path, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        }

    def steps(self, readers: Sequence[Reader], batch: Inputs) -> dict[Reader | Norm, int]:
        """Readers and batch norms, in the order in which they run on a batch, and how often they do."""
        steps: Counter[Reader | Norm] = Counter()
        handles = [
            module.register_forward_pre_hook(lambda *_, norm=norm: steps.update([norm]))
            for norm, module in self._norms.items()
        ]
        self.watch_readers(readers, lambda application: steps.update([application.reader]))(batch)
        for handle in handles:
            handle.remove()
        for reader in readers:
            if reader not in steps:
                raise RuntimeError(
                    f"{reader.weight} was in the exported graph, but not used by a run of the model"
                )
        return dict(steps)

    def watch_readers(self, readers: Sequence[Reader], tell: Callable[[Application], None]) -> Run:
        """See :class:`Network`."""

        def run(batch: Inputs) -> None:
            with suppress(Enough), self._counting, Watch(readers, self.tensors, tell):
                batch.run(self._model)

        return run

    def watch_norm(self, norm: Norm, tell: Callable[[Tensor], None]) -> Run:
        """See :class:`Network`."""

        def run(batch: Inputs) -> None:
            handle = self._norms[norm].register_forward_pre_hook(lambda _, arguments: tell(arguments[0]))
            with suppress(Enough), self._counting:
                batch.run(self._model)
            handle.remove()

        return run
