"""What a network says in evaluation mode (restored after): outputs, penultimate features, utilities, metrics."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from prunefuse._seeds import derive, isolated
from prunefuse._wrapped import without_wrappers
from prunefuse.data._batches import in_order, read
from prunefuse.data._items import CLASSES, check_map_style, length_of
from prunefuse.ops.integers import row_indices
from prunefuse.scoring import EnsembleScores
from prunefuse.tasks._single_label import SingleLabel
from prunefuse.tasks._task import Metrics, Task, metrics_of, require_measured
from prunefuse.training._feature_file import identity_of, write_features
from prunefuse.training._folding import folded
from prunefuse.training._modes import (
    called,
    device_of,
    evaluating,
    in_bfloat16,
    in_channels_last,
    reading_for,
)
from prunefuse.training._recipe import Recipe

OnProgress = Callable[[int, int], None]
Collate = Callable[[list[Any]], Any]
T = TypeVar("T")
_PLAIN = Recipe()
_SINGLE_LABEL = SingleLabel()
_READ = 512  # samples that are read together
# Of images that go through a network together on a CPU: what layers give then stays in the cache. Measured on ResNet-56 at
# 32x32 pixels, 64 images are 1.7 times as fast as 512 in the dense network, and level with them at p = 0.5.
_PIXELS, _FEWEST = 65_536, 32
_FOLDED = 4  # batches from which on it is looked for batch norms to fold


def forward(model: nn.Module, inputs: Any, recipe: Recipe, task: Task = _SINGLE_LABEL) -> Any:
    """Outputs as the task takes them, logits (N, C) in float32, under the recipe's autocast and memory format."""
    return task.output(_run(model, inputs, recipe))


def _run(model: nn.Module, inputs: Any, recipe: Recipe) -> Any:
    laid_out = isinstance(inputs, Tensor) and inputs.ndim == 4 and in_channels_last(model, recipe)
    if laid_out:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    kind = inputs.device.type if isinstance(inputs, Tensor) else device_of(model).type
    try:
        with torch.autocast(kind, torch.bfloat16, enabled=in_bfloat16(recipe, kind)):
            return called(model, inputs)
    except RuntimeError as error:
        if not laid_out or "view size is not compatible" not in str(error):
            raise
        raise ValueError(
            f"channels_last must be False for {type(model).__name__}, which calls view() where reshape() takes images in any "
            f"format, got {recipe.channels_last}"
        ) from error


def predict(
    model: nn.Module,
    data: Any,
    *,
    indices: Sequence[int] | Tensor | None = None,
    batch_size: int | None = None,
    recipe: Recipe = _PLAIN,
    workers: int = 0,
    on_progress: OnProgress | None = None,
    task: Task = _SINGLE_LABEL,
    collate: Collate | None = None,
) -> Any:
    """Outputs (N, C), float32, of the samples of ``data``, in order.

    >>> from prunefuse.training import predict
    >>> predict(torch.nn.Linear(4, 2), torch.zeros(10, 4), batch_size=5).shape
    torch.Size([10, 2])

    Args:
        model: A network, on the device to compute on.
        data: (N, ...) images as a tensor or NumPy array, or a map-style data set. Labels are not touched.
        indices: Only these samples, in this order; or a mask of the samples.
        batch_size: Samples per forward pass. None: up to 512, and on a CPU images of 65,536 pixels in all, or 32.
        recipe: The recipe whose ``autocast`` and ``channels_last`` apply.
        workers: Processes that read data sets that are not in memory.
        on_progress: Called with (samples done, samples in all) after every batch.
        task: What outputs are; by default logits of one class for each sample.
        collate: From a list of items to a batch, as a ``DataLoader`` takes it.

    Returns:
        A NumPy array for a NumPy array, else a tensor on the model's device.

    Raises:
        TypeError: The model is not one, the data are not map-style, or indices are neither whole numbers nor a mask.
        ValueError: An index is out of range, or a mask is not as long as the data. Or outputs of batches differ in shape.
    """
    batches = _batches(model, data, indices, batch_size, workers, on_progress, collate)
    with _scoring(model, batches, recipe) as given:
        parts = [forward(model, inputs, recipe, task) for inputs in given]
    return _join(parts, data)


def utilities(
    model: nn.Module,
    data: Any,
    of_outputs: Callable[[Any, Any], Tensor],
    *,
    task: Task = _SINGLE_LABEL,
    features: bool = False,
    module: str | None = None,
    indices: Sequence[int] | Tensor | None = None,
    batch_size: int | None = None,
    recipe: Recipe = _PLAIN,
    workers: int = 0,
    on_progress: OnProgress | None = None,
    collate: Collate | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Utilities (N,) of the samples, batch by batch, and with ``features`` their features (N, d) of the same passes.

    Args:
        model: As in `predict`, and so are the rest.
        data: Likewise.
        of_outputs: From the outputs of a batch, and what the model was given, to utilities.
        task: Likewise.
        features: Whether features are wanted.
        module: Whose output they are; None is what enters the last linear layer.
        indices: Likewise.
        batch_size: Likewise.
        recipe: Likewise.
        workers: Likewise.
        on_progress: Likewise.
        collate: Likewise.
    """
    found, seen = [], []
    if features:
        options = (module, indices, batch_size, recipe, workers, on_progress, task, collate)
        for output, feature, inputs in _with_features(model, data, *options):
            found.append(of_outputs(task.output(output), inputs))
            seen.append(feature)
    else:
        batches = _batches(model, data, indices, batch_size, workers, on_progress, collate)
        with _scoring(model, batches, recipe) as given:
            for inputs in given:
                found.append(of_outputs(forward(model, inputs, recipe, task), inputs))
    joined: Tensor = _join(found, None)
    return joined, _join(seen, None) if features else None


def features(
    model: nn.Module,
    data: Any,
    *,
    module: str | None = None,
    indices: Sequence[int] | Tensor | None = None,
    batch_size: int | None = None,
    recipe: Recipe = _PLAIN,
    workers: int = 0,
    on_progress: OnProgress | None = None,
    out: str | os.PathLike[str] | None = None,
    task: Task = _SINGLE_LABEL,
    collate: Collate | None = None,
) -> Any:
    """Penultimate features (N, d), float32: what enters the last linear layer that the model runs.

    In a model without linear layers that is the last convolution, and features are means over positions.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> prunefuse.features(model, torch.zeros(10, 4)).shape
    torch.Size([10, 3])

    With ``out`` they go to that file batch by batch, for data sets larger than memory. If that is stopped, the same call
    goes on where it was. The part that is done stands in ``<out>.partial``. It is checked against the model's weights, the
    samples and their order, the arguments, and what the first batch gives. A file ``out`` is complete, has the numbers that
    would be returned without it, and is never overwritten.

    Args:
        model: A network, on the device to compute on.
        data: (N, ...) images as a tensor or NumPy array, or a map-style data set. Labels are not touched.
        module: Name of a submodule whose **output**, flattened to (N, d), is taken instead.
        indices: Only these samples, in this order; or a mask of the samples.
        batch_size: Samples per forward pass. None: up to 512, and on a CPU images of 65,536 pixels in all, or 32.
        recipe: The recipe whose ``autocast`` and ``channels_last`` apply.
        workers: Processes that read data sets that are not in memory.
        on_progress: Called with (samples done, samples in all) after every batch.
        out: A .npy file to write, which must not exist.
        task: What makes a row of what a layer is given where that has more axes; by default it is flattened.
        collate: As in `predict`.

    Returns:
        A NumPy array for a NumPy array, else a tensor on the model's device; with ``out`` a memory map, not writable.

    Raises:
        ValueError: There is no submodule ``module``, the model did not run it, or it ran no ``nn.Linear``; or
            ``<out>.partial`` is of another call. Or ``module`` does not give a row for each sample.
        TypeError: The output of ``module`` is not a tensor.
        FileExistsError: ``out`` exists.
        BlockingIOError: Another process is writing it.
        OSError: It cannot be written.
    """
    positions = _positions(data, indices)

    def batches(start: int, stop: int) -> Generator[Tensor, None, None]:
        def tell(done: int, _: int) -> None:
            if on_progress is not None and stop == len(positions):
                on_progress(start + done, stop)

        part = positions[start:stop]
        options = (module, part, batch_size, recipe, workers, tell, task, collate)
        for _, feature, _ in _with_features(model, data, *options):
            yield feature

    if out is None:
        return _join(list(batches(0, len(positions))), data)
    if len(positions) == 0:
        raise ValueError("data must have at least one sample, got none")
    identity = {
        **identity_of(model, positions),
        "module": module,
        "batch_size": batch_size or _READ,
        "autocast": in_bfloat16(recipe, device_of(model).type),
        "channels_last": in_channels_last(model, recipe),
    }
    return write_features(out, len(positions), batch_size or _READ, identity, batches)


def predict_with_features(
    model: nn.Module,
    data: Any,
    *,
    module: str | None = None,
    indices: Sequence[int] | Tensor | None = None,
    batch_size: int | None = None,
    recipe: Recipe = _PLAIN,
    workers: int = 0,
    on_progress: OnProgress | None = None,
    task: Task = _SINGLE_LABEL,
    collate: Collate | None = None,
) -> tuple[Any, Any]:
    """Outputs (N, C) and features (N, d) from one forward pass; arguments and errors as in `features`.

    >>> from prunefuse.training import predict_with_features
    >>> logits, features = predict_with_features(torch.nn.Linear(4, 2), torch.zeros(10, 4))
    >>> features.shape
    torch.Size([10, 4])
    """
    options = (module, indices, batch_size, recipe, workers, on_progress, task, collate)
    found = [(task.output(output), feature) for output, feature, _ in _with_features(model, data, *options)]
    return _join([output for output, _ in found], data), _join([feature for _, feature in found], data)


def dropout_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that make a forward pass in training mode random: dropout of any kind, with a rate above 0.

    >>> from prunefuse.training import dropout_layers
    >>> len(dropout_layers(torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Dropout(0.0))))
    1
    """
    return [m for m in model.modules() if isinstance(m, _DropoutNd) and m.p > 0]


def predict_dropout(
    model: nn.Module,
    data: Any,
    *,
    passes: int,
    seed: int,
    indices: Sequence[int] | Tensor | None = None,
    batch_size: int | None = None,
    recipe: Recipe = _PLAIN,
    workers: int = 0,
    on_progress: OnProgress | None = None,
    task: Task = _SINGLE_LABEL,
    collate: Collate | None = None,
    scores: Any = None,
) -> Any:
    """`EnsembleScores` of ``passes`` forward passes with dropout, everything else being in evaluation mode.

    >>> from prunefuse.training import predict_dropout
    >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    >>> predict_dropout(model, torch.ones(10, 4), passes=5, seed=0).result("bald").shape
    torch.Size([10])

    Arguments are as in `predict`; ``on_progress`` counts the samples of all passes. The masks depend on ``seed`` alone.
    Global random generators are left as found. ``scores`` is what is told of each pass by its ``update`` instead, and returned.

    Raises:
        ValueError: The model has no dropout layers, so that all passes would be the same.

    References:
        Gal and Ghahramani 2016, *Dropout as a Bayesian Approximation*.
    """
    layers = dropout_layers(model)
    if not layers:
        raise ValueError(
            f"model must have dropout layers for passes that differ, got {type(model).__name__} without"
        )
    scores = EnsembleScores() if scores is None else scores
    for number in range(passes):

        def tell(done: int, total: int, before: int = number) -> None:
            if on_progress is not None:
                on_progress(before * total + done, passes * total)

        device = device_of(model)
        with evaluating(model), torch.no_grad(), isolated(derive(seed, "pass", number), device):
            for layer in layers:
                layer.train()
            batches = _batches(model, data, indices, batch_size, workers, tell, collate)
            scores.update(_join([forward(model, inputs, recipe, task) for inputs in batches], None))
    return scores


def _with_features(
    model: nn.Module,
    data: Any,
    module: str | None,
    indices: Sequence[int] | Tensor | None,
    batch_size: int | None,
    recipe: Recipe,
    workers: int,
    on_progress: OnProgress | None,
    task: Task,
    collate: Collate | None,
) -> Iterator[tuple[Any, Tensor, Any]]:
    """For every batch what the model returned, the features, and what it was given, in evaluation mode."""
    model = plain(model)
    with penultimate(model, module, heads=True) as seen, evaluating(model), torch.no_grad():
        for inputs in _batches(model, data, indices, batch_size, workers, on_progress, collate):
            seen.clear()
            output = _run(model, inputs, recipe)
            feature, samples = feature_of(seen, module), length_of(inputs)
            if feature.ndim == 0 or len(feature) != samples:
                raise ValueError(
                    f"module must be a layer that gives a row for each of the {samples} samples of a batch, got shape "
                    f"{tuple(feature.shape)} from {module or 'the last linear layer'!r}"
                )
            yield output, task.features(feature, inputs).float(), inputs


def outputs_of(model: nn.Module, inputs: Any, task: Task = _SINGLE_LABEL) -> Any:
    """Outputs of one batch in evaluation mode."""
    with evaluating(model), torch.no_grad():
        return forward(model, inputs, _PLAIN, task)


def features_of(model: nn.Module, inputs: Any, module: str | None, task: Task = _SINGLE_LABEL) -> Tensor:
    """Features (N, d) of one batch, as `features` gives them of many."""
    model = plain(model)
    with penultimate(model, module, heads=True) as seen, evaluating(model), torch.no_grad():
        _run(model, inputs, _PLAIN)
        return task.features(feature_of(seen, module), inputs).float()


def plain(model: nn.Module) -> nn.Module:
    """The model whose layers can be watched: that inside a compiled one, and of other wrappers.

    Raises:
        TypeError: it is not in Python.
    """
    model = without_wrappers(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model must be a model in Python, to watch its layers, got {type(model).__name__}")
    return model


@contextmanager
def penultimate(model: nn.Module, module: str | None = None, *, heads: bool = False) -> Iterator[list[Any]]:
    """A list that gets what every linear layer is given when the model runs, or what submodule ``module`` returns.

    With ``heads`` a model without linear layers gives what its convolutions are given, as means over positions.
    """
    seen: list[Any] = []
    if module is None:
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        # A head that is a convolution and then a mean over positions: a linear layer of the mean.
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
        hooks = [m.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for m in linear]
        if heads and not linear:
            hooks = [
                m.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(2).mean(2)))
                for m in convolutions
            ]
    else:
        named = dict(model.named_modules())
        if module not in named:
            raise ValueError(
                f"module must be a submodule of the model, {', '.join(filter(None, named))}, got {module!r}"
            )
        hooks = [named[module].register_forward_hook(lambda *args: seen.append(args[2]))]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def feature_of(seen: list[Any], module: str | None) -> Tensor:
    """The features of the latest run, of what `penultimate` has seen."""
    if not seen:
        if module is None:
            raise ValueError(
                "module must name the layer whose output to take where the model ran no nn.Linear, got None"
            )
        raise ValueError(f"module must be one that the model runs, got {module!r}")
    if not isinstance(seen[-1], Tensor):
        raise TypeError(f"module must give a tensor, got {type(seen[-1]).__name__} from {module!r}")
    return seen[-1]


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    batch_size: int | None = None,
    recipe: Recipe = _PLAIN,
    workers: int = 0,
    task: Task = _SINGLE_LABEL,
    collate: Collate | None = None,
) -> float:
    """The accuracy in [0, 1] on a data set with items ``(image, label)``; of another task its first metric.

    >>> from prunefuse.training import evaluate
    >>> model, data = torch.nn.Linear(4, 4), prunefuse.data.TensorImages(torch.eye(4), torch.arange(4))
    >>> with torch.no_grad(): _ = model.weight.copy_(torch.eye(4))
    >>> evaluate(model, data)
    1.0

    Raises:
        TypeError: A label is not a whole number; the message names the sample.
        ValueError: Labels are not classes of the model.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "recipe": recipe, "workers": workers}
    return first_of(measure(model, data, task=task, collate=collate, **options))


def first_of(metrics: Metrics) -> float:
    """The metric that is told where one number is told."""
    value = next(iter(metrics.values()))
    return value if isinstance(value, float) else float(value[0])


def measure(
    model: nn.Module,
    data: Any,
    *,
    batch_size: int | None = None,
    recipe: Recipe = _PLAIN,
    workers: int = 0,
    task: Task = _SINGLE_LABEL,
    collate: Collate | None = None,
    indices: Sequence[int] | Tensor | None = None,
) -> Metrics:
    """All metrics of the task on a data set with items ``(image, label)``, by name; those of each class are tuples.

    >>> from prunefuse.training import measure
    >>> data = prunefuse.data.TensorImages(torch.rand(8, 4), torch.arange(8) % 2)
    >>> list(measure(torch.nn.Linear(4, 2), data))
    ['accuracy', 'balanced_accuracy', 'f1', 'ece', 'recall']

    Raises:
        TypeError: A label is not such as the task has; the message names the sample.
        ValueError: Labels are not classes of the model, or there is no sample.
    """
    if len(data) == 0:
        raise ValueError("data must have at least one sample, got none")
    device, total = device_of(model), None
    batches = in_order(_positions(data, indices), batch_size or _READ)
    reading = reading_for(model, task_targets(task), collate)

    def pairs() -> Iterator[tuple[Any, Any]]:
        for inputs, labels in read(
            data, batches, labels=True, device=device, workers=workers, reading=reading
        ):
            passes = (inputs,) if batch_size or not isinstance(labels, Tensor) else _passes(inputs)
            each = labels.split([len(one) for one in passes]) if len(passes) > 1 else (labels,)
            yield from zip(passes, each, strict=True)

    with _scoring(model, pairs(), recipe, itemgetter(0)) as given:
        for inputs, labels in given:
            part = require_measured(task, task.measure(forward(model, inputs, recipe, task), labels))
            total = part if total is None else total + part
    assert total is not None
    return metrics_of(task, total)


def task_targets(task: Task) -> Any:
    """What a task's labels are: for classification what data sets have by default, else the task itself."""
    return CLASSES if type(task) is SingleLabel else task


def _batches(
    model: nn.Module,
    data: Any,
    indices: Sequence[int] | Tensor | None,
    batch_size: int | None,
    workers: int,
    on_progress: OnProgress | None,
    collate: Collate | None = None,
) -> Iterator[Any]:
    positions = _positions(data, indices)
    device, done = device_of(model), 0
    batches = in_order(positions, batch_size or _READ)
    inputs_of_batches = read(
        data,
        batches,
        labels=False,
        device=device,
        workers=workers,
        reading=reading_for(model, collate=collate),
    )
    for batch, (inputs, _) in zip(batches, inputs_of_batches, strict=True):
        yield from [inputs] if batch_size else _passes(inputs)
        done += len(batch.positions)
        if on_progress is not None:
            on_progress(done, len(positions))


@contextmanager
def _scoring(
    model: nn.Module,
    batches: Iterator[T],
    recipe: Recipe,
    inputs_of: Callable[[T], Any] = lambda batch: batch,
) -> Iterator[Iterable[T]]:
    """Evaluation mode without gradients, with batch norms folded where that gains: in bfloat16 on a CPU, for many samples."""
    with evaluating(model), torch.no_grad(), ExitStack() as stack:
        given: Iterable[T] = batches
        if device_of(model).type == "cpu" and in_bfloat16(recipe, "cpu") and without_wrappers(model) is model:
            few = list(islice(batches, _FOLDED))
            given = chain(few, batches)
            first = inputs_of(few[0]) if len(few) == _FOLDED else None
            if (
                isinstance(first, Tensor)
                and first.ndim == 4
                and not isinstance(model, torch.jit.ScriptModule)
            ):
                stack.enter_context(folded(model, lambda: _run(model, first[:1], recipe)))
        yield given


def _passes(inputs: Any) -> Sequence[Any]:
    """Parts of what was read that go through a network one after the other."""
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.device.type != "cpu":
        return (inputs,)
    pixels = max(1, inputs.shape[2] * inputs.shape[3])
    parts: Sequence[Tensor] = inputs.split(max(_FEWEST, _PIXELS // pixels))
    return parts


def _positions(data: Any, indices: Sequence[int] | Tensor | None) -> Tensor:
    check_map_style("data", data)
    return torch.arange(len(data)) if indices is None else row_indices("indices", indices, len(data)).cpu()


def _join(parts: list[Any], data: Any) -> Any:
    if not parts:
        raise ValueError("data must have at least one sample, got none")
    if not isinstance(parts[0], Tensor):
        return [one for part in parts for one in part]
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        one, other, *_ = sorted(shapes)
        raise ValueError(
            f"data must have batches with outputs of one shape, to have them in one tensor, got {one} and {other}"
        )
    joined = torch.cat(parts)
    return joined.cpu().numpy() if isinstance(data, np.ndarray) else joined
