"""What criteria know beside the weights: gradients, products with the Hessian, activations, on a user's data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from prunefuse._inputs import Inputs
from prunefuse.pruning._graph.copies import copied, named_tensors

Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> the loss, one number that depends on the parameters."""


@dataclass(frozen=True)
class Evidence:
    """What was measured on the model's data; everything is the mean over batches.

    Attributes:
        gradient: Parameter name -> gradient of the loss.
        second: Parameter name -> what of the second order was asked for: the Hessian times the gradient, squared
            gradients, or the diagonal of the Hessian.
        activations: Module path -> axis of its input -> the mean magnitude of each index there.
    """

    gradient: Mapping[str, Tensor] = field(default_factory=dict)
    second: Mapping[str, Tensor] = field(default_factory=dict)
    activations: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)


def gather(
    model: nn.Module, kind: str, loss: Loss | None, batches: Iterable[Any] | None, seed: int
) -> Evidence:
    """Run the data through a copy of the model, in the mode that the model is in; its buffers stay as they are.

    Args:
        model: The dense model.
        kind: "gradient", "product" (Hessian times gradient), "squared" (gradients of batches, squared),
            "diagonal" (of the Hessian) or "activation".
        loss: None is the cross entropy of ``model(x)`` and ``y`` for batches (x, y), and what the model itself returns as
            ``loss`` for batches of inputs by name.
        batches: The data, gone through up to twice, so that the loss of all of them is kept in memory if they
            come from a generator.
        seed: For dropout, and for the random signs that estimate the diagonal (one draw for each batch).

    Raises:
        ValueError: there are no batches; or the loss is no single number, or does not depend on the parameters.
    """
    data = list(batches or ())
    if not data:
        raise ValueError("batches must be at least one batch, got none")
    model = copied(model)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        if kind == "activation":
            return Evidence(activations=_activations(model, data))
        parameters = {
            name: tensor.requires_grad_()
            for name, tensor in named_tensors(model).items()
            if isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
        }
        return _derivatives(model, parameters, kind, loss or cross_entropy, data)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """The loss of batches (x, y): y the classes of the rows of ``model(x)``; of batches by name: what the model says."""
    if isinstance(batch, Mapping):
        outputs = _of_names(model, batch)
        own = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if not isinstance(own, Tensor):
            raise ValueError(
                "batches by name must have what the model needs to return a loss, as labels, or loss must take (model, batch), "
                f"got {', '.join(map(str, batch))}"
            )
        return own
    if not isinstance(batch, Sequence) or len(batch) != 2 or not all(isinstance(x, Tensor) for x in batch):
        got = type(batch).__name__
        raise ValueError(
            f"batches must be pairs of tensors (x, y), or loss must take (model, batch), got {got}"
        )
    device = next(model.parameters()).device
    return nn.functional.cross_entropy(model(batch[0].to(device)), batch[1].to(device))


def _of_names(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """What a model returns for inputs by name, which are moved to where it is."""
    device = next(model.parameters()).device
    return Inputs((), batch).map(lambda x: x.to(device)).run(model)


def _derivatives(
    model: nn.Module, parameters: Mapping[str, Tensor], kind: str, loss: Loss, data: Sequence[Any]
) -> Evidence:
    tensors = list(parameters.values())
    mean = [torch.zeros_like(x) for x in tensors]
    second = [torch.zeros_like(x) for x in tensors]

    def gradients(batch: Any, create_graph: bool) -> list[Tensor]:
        value = loss(model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"loss must return a tensor with one number, got {value!r:.80}")
        if not value.requires_grad:
            raise ValueError(
                "loss must depend on the parameters, got one that does not (was it computed without gradients?)"
            )
        results = torch.autograd.grad(value.sum(), tensors, create_graph=create_graph, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(tensors, results, strict=True)]

    def times_hessian(batch: Any, vectors: Sequence[Tensor]) -> list[Tensor]:
        along = sum((g * v).sum() for g, v in zip(gradients(batch, True), vectors, strict=True))
        assert isinstance(along, Tensor)
        if not along.requires_grad:  # a loss that is linear in the parameters
            return [torch.zeros_like(x) for x in tensors]
        results = torch.autograd.grad(along, tensors, allow_unused=True)
        return [torch.zeros_like(x) if h is None else h for x, h in zip(tensors, results, strict=True)]

    def add(to: Sequence[Tensor], amounts: Iterable[Tensor]) -> None:
        for sum_, amount in zip(to, amounts, strict=True):
            sum_ += amount.detach() / len(data)

    with _differentiable_twice():
        for batch in data:
            if kind != "diagonal":
                results = gradients(batch, False)
                add(mean, results)
                if kind == "squared":
                    add(second, (g * g for g in results))
            else:
                signs = [torch.randint_like(x, 2) * 2 - 1 for x in tensors]
                products = times_hessian(batch, signs)
                add(second, (v * h for v, h in zip(signs, products, strict=True)))
        if kind == "product":
            for batch in data:
                add(second, times_hessian(batch, mean))
    return Evidence(dict(zip(parameters, mean, strict=True)), dict(zip(parameters, second, strict=True)))


@contextmanager
def _differentiable_twice() -> Iterator[None]:
    """Attention by its formula: the fused kernels have a first derivative only."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


def _activations(model: nn.Module, data: Sequence[Any]) -> dict[str, dict[int, Tensor]]:
    means: dict[str, dict[int, Tensor]] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = next((x for x in inputs if isinstance(x, Tensor)), None)
            if x is None or not x.is_floating_point():
                return
            mine = means.setdefault(path, {})
            for axis in range(x.ndim):
                others = [other for other in range(x.ndim) if other != axis]
                amount = x.detach().abs().mean(others, dtype=torch.float64) if others else x.detach().abs()
                before = mine.get(axis, torch.zeros_like(amount))
                if before.shape == amount.shape:  # an axis of another length is no channel axis
                    mine[axis] = before + amount / len(data)

        return hook

    handles = [
        module.register_forward_pre_hook(watch(path))
        for path, module in model.named_modules()
        if any(x.ndim > 1 for x in module.parameters(recurse=False))
    ]
    device = next(model.parameters()).device
    with torch.no_grad():
        for batch in data:
            if isinstance(batch, Mapping):
                _of_names(model, batch)
                continue
            x = batch[0] if isinstance(batch, list | tuple) else batch
            model(x.to(device))
    for handle in handles:
        handle.remove()
    return means
