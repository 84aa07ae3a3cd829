"""What a network says in evaluation mode (restored after): logits, penultimate features, accuracy."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from prunefuse._seeds import derive, isolated
from prunefuse.data._batches import in_order, read
from prunefuse.data._items import check_map_style
from prunefuse.ops.integers import row_indices
from prunefuse.scoring import EnsembleScores
from prunefuse.training._feature_file import identity_of, write_features
from prunefuse.training._modes import device_of, evaluating, takes_ids
from prunefuse.training._recipe import Recipe

OnProgress = Callable[[int, int], None]
_PLAIN = Recipe()


def forward(model: nn.Module, images: Tensor, recipe: Recipe) -> Tensor:
    """Logits (N, C) in float32, under the recipe's autocast and memory format."""
    return _logits(_run(model, images, recipe))


def _logits(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(f"model must return a tensor of logits, got {type(output).__name__}")
    return output.float()


def _run(model: nn.Module, images: Tensor, recipe: Recipe) -> Any:
    if recipe.channels_last and images.ndim == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.autocast):
        return model(images)


def predict(
    model: nn.Module,
    data: Any,
    *,
    indices: Sequence[int] | Tensor | None = None,
    batch_size: int = 512,
    recipe: Recipe = _PLAIN,
    workers: int = 0,
    on_progress: OnProgress | None = None,
) -> Any:
    """Logits (N, C), float32, of the samples of ``data``, in order.

    >>> from prunefuse.training import predict
    >>> predict(torch.nn.Linear(4, 2), torch.zeros(10, 4), batch_size=5).shape
    torch.Size([10, 2])

    Args:
        model: A classifier, on the device to compute on.
        data: (N, ...) images as a tensor or NumPy array, or a map-style data set. Labels are not touched.
        indices: Only these samples, in this order; or a mask of the samples.
        batch_size: Samples per forward pass.
        recipe: The recipe whose ``autocast`` and ``channels_last`` apply.
        workers: Processes that read data sets that are not in memory.
        on_progress: Called with (samples done, samples in all) after every batch.

    Returns:
        A NumPy array for a NumPy array, else a tensor on the model's device.

    Raises:
        TypeError: The model is not one, the data are not map-style, or indices are neither whole numbers nor a mask.
        ValueError: An index is out of range, or a mask is not as long as the data.
    """
    batches = _batches(model, data, indices, batch_size, workers, on_progress)
    with evaluating(model), torch.no_grad():
        parts = [forward(model, images, recipe) for images, _ in batches]
    return _join(parts, data)


def features(
    model: nn.Module,
    data: Any,
    *,
    module: str | None = None,
    indices: Sequence[int] | Tensor | None = None,
    batch_size: int = 512,
    recipe: Recipe = _PLAIN,
    workers: int = 0,
    on_progress: OnProgress | None = None,
    out: str | os.PathLike[str] | None = None,
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
        batch_size: Samples per forward pass.
        recipe: The recipe whose ``autocast`` and ``channels_last`` apply.
        workers: Processes that read data sets that are not in memory.
        on_progress: Called with (samples done, samples in all) after every batch.
        out: A .npy file to write, which must not exist.

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
        for _, feature in _with_features(model, data, module, part, batch_size, recipe, workers, tell):
            yield feature

    if out is None:
        return _join(list(batches(0, len(positions))), data)
    if len(positions) == 0:
        raise ValueError("data must have at least one sample, got none")
    identity = {
        **identity_of(model, positions),
        "module": module,
        "batch_size": batch_size,
        "autocast": recipe.autocast,
        "channels_last": recipe.channels_last,
    }
    return write_features(out, len(positions), batch_size, identity, batches)


def predict_with_features(
    model: nn.Module,
    data: Any,
    *,
    module: str | None = None,
    indices: Sequence[int] | Tensor | None = None,
    batch_size: int = 512,
    recipe: Recipe = _PLAIN,
    workers: int = 0,
    on_progress: OnProgress | None = None,
) -> tuple[Any, Any]:
    """Logits (N, C) and features (N, d) from one forward pass; arguments and errors as in `features`.

    >>> from prunefuse.training import predict_with_features
    >>> logits, features = predict_with_features(torch.nn.Linear(4, 2), torch.zeros(10, 4))
    >>> features.shape
    torch.Size([10, 4])
    """
    pairs = list(_with_features(model, data, module, indices, batch_size, recipe, workers, on_progress))
    return _join([_logits(output) for output, _ in pairs], data), _join([f for _, f in pairs], data)


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
    batch_size: int = 512,
    recipe: Recipe = _PLAIN,
    workers: int = 0,
    on_progress: OnProgress | None = None,
) -> EnsembleScores:
    """`EnsembleScores` of ``passes`` forward passes with dropout, everything else being in evaluation mode.

    >>> from prunefuse.training import predict_dropout
    >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    >>> predict_dropout(model, torch.ones(10, 4), passes=5, seed=0).result("bald").shape
    torch.Size([10])

    Arguments are as in `predict`; ``on_progress`` counts the samples of all passes. The masks depend on ``seed`` alone.
    Global random generators are left as found.

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
    scores = EnsembleScores()
    for number in range(passes):

        def tell(done: int, total: int, before: int = number) -> None:
            if on_progress is not None:
                on_progress(before * total + done, passes * total)

        device = device_of(model)
        with evaluating(model), torch.no_grad(), isolated(derive(seed, "pass", number), device):
            for layer in layers:
                layer.train()
            batches = _batches(model, data, indices, batch_size, workers, tell)
            scores.update(_join([forward(model, images, recipe) for images, _ in batches], None))
    return scores


def _with_features(
    model: nn.Module,
    data: Any,
    module: str | None,
    indices: Sequence[int] | Tensor | None,
    batch_size: int,
    recipe: Recipe,
    workers: int,
    on_progress: OnProgress | None,
) -> Iterator[tuple[Any, Tensor]]:
    """For every batch the model's output, and the features, in evaluation mode."""
    model = plain(model)
    with penultimate(model, module, heads=True) as seen, evaluating(model), torch.no_grad():
        for images, _ in _batches(model, data, indices, batch_size, workers, on_progress):
            seen.clear()
            output = _run(model, images, recipe)
            feature = feature_of(seen, module)
            if feature.ndim == 0 or len(feature) != len(images):
                raise ValueError(
                    f"module must be a layer that gives a row for each of the {len(images)} samples of a batch, got shape "
                    f"{tuple(feature.shape)} from {module or 'the last linear layer'!r}"
                )
            yield output, feature.reshape(len(feature), -1).float()


def plain(model: nn.Module) -> nn.Module:
    """The model whose layers can be watched: that inside a compiled one.

    Raises:
        TypeError: it is not in Python.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model must be a model in Python, to watch its layers, got {type(model).__name__}")
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


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
    model: nn.Module, data: Any, *, batch_size: int = 512, recipe: Recipe = _PLAIN, workers: int = 0
) -> float:
    """The accuracy in [0, 1] on a data set with items ``(image, label)``.

    >>> from prunefuse.training import evaluate
    >>> model, data = torch.nn.Linear(4, 4), prunefuse.data.TensorImages(torch.eye(4), torch.arange(4))
    >>> with torch.no_grad(): _ = model.weight.copy_(torch.eye(4))
    >>> evaluate(model, data)
    1.0

    Raises:
        TypeError: A label is not a whole number; the message names the sample.
        ValueError: Labels are not classes of the model.
    """
    device = device_of(model)
    counts = torch.zeros(2, dtype=torch.int64, device=device)  # right answers, and labels that are no class
    classes = 0
    batches = in_order(torch.arange(len(data)), batch_size)
    with evaluating(model), torch.no_grad():
        for images, labels in read(
            data, batches, labels=True, device=device, workers=workers, ids=takes_ids(model)
        ):
            assert labels is not None
            logits = forward(model, images, recipe)
            classes = logits.shape[1]
            outside = (labels < 0) | (labels >= classes)
            counts += torch.stack((logits.argmax(1).eq(labels).sum(), outside.sum()))
    correct, outside_ones = counts.tolist()
    if outside_ones:
        raise ValueError(
            f"data must have labels in [0, {classes}), as the model has {classes} outputs, got {outside_ones} outside"
        )
    return int(correct) / len(data)


def _batches(
    model: nn.Module,
    data: Any,
    indices: Sequence[int] | Tensor | None,
    batch_size: int,
    workers: int,
    on_progress: OnProgress | None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    positions = _positions(data, indices)
    device = device_of(model)
    done = 0
    for images, labels in read(
        data,
        in_order(positions, batch_size),
        labels=False,
        device=device,
        workers=workers,
        ids=takes_ids(model),
    ):
        yield images, labels
        done += len(images)
        if on_progress is not None:
            on_progress(done, len(positions))


def _positions(data: Any, indices: Sequence[int] | Tensor | None) -> Tensor:
    check_map_style("data", data)
    return torch.arange(len(data)) if indices is None else row_indices("indices", indices, len(data)).cpu()


def _join(parts: list[Tensor], data: Any) -> Any:
    if not parts:
        raise ValueError("data must have at least one sample, got none")
    joined = torch.cat(parts)
    return joined.cpu().numpy() if isinstance(data, np.ndarray) else joined
