"""Recording in a pass of its own, with the network in evaluation mode."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prunefuse.data._batches import in_order, read
from prunefuse.dynamics._recorder import Recorder
from prunefuse.training._modes import device_of, evaluating, reading_for
from prunefuse.training._predict import OnProgress, feature_of, forward, penultimate
from prunefuse.training._recipe import Recipe

_PLAIN = Recipe()


def record_evaluation(
    recorder: Recorder,
    model: nn.Module,
    data: Any,
    *,
    batch_size: int = 512,
    recipe: Recipe = _PLAIN,
    workers: int = 0,
    on_progress: OnProgress | None = None,
) -> None:
    """Record one epoch from a pass over the data in evaluation mode: without augmentation, gradients or batch statistics.

    Afterwards every module is back in the mode that it was in, also when the pass is interrupted. An interrupted epoch
    stays open, and the next call records what is missing.

    >>> from prunefuse.dynamics import Recorder, record_evaluation
    >>> from prunefuse.models import mlp
    >>> data = prunefuse.data.TensorImages(torch.randn(20, 3, 8, 8), torch.arange(20) % 10)
    >>> recorder = Recorder(20, ("el2n",), forward="evaluation")
    >>> record_evaluation(recorder, mlp(image_size=(8, 8)), data)

    Args:
        recorder: One with ``forward="evaluation"`` and one sample for each of ``data``, on the model's device.
        model: A classifier.
        data: A map-style data set with items ``(image, label)`` and evaluation transforms.
        batch_size: Samples per forward pass.
        recipe: The recipe whose ``autocast`` and ``channels_last`` apply.
        workers: Processes that read data sets that are not in memory.
        on_progress: Called with (samples done, samples in all) after every batch.

    Raises:
        ValueError: The recorder is of another kind or size; or it needs features, and the model ran no ``nn.Linear``.
    """
    if recorder.forward != "evaluation":
        raise ValueError(f"recorder must have forward='evaluation', got {recorder.forward!r}")
    if recorder.samples != len(data):
        raise ValueError(f"recorder must have the {len(data)} samples of data, got {recorder.samples}")
    device = device_of(model)
    batches = in_order(recorder.unseen(), batch_size)
    done, wanted = (
        recorder.samples - sum(len(batch.positions) for batch in batches),
        recorder.needs_features(),
    )
    tap: AbstractContextManager[list[Any]] = penultimate(model) if wanted else nullcontext([])
    with evaluating(model), torch.no_grad(), tap as seen:
        images_and_labels = read(
            data, batches, labels=True, device=device, workers=workers, reading=reading_for(model)
        )
        for batch, (images, labels) in zip(batches, images_and_labels, strict=True):
            seen.clear()
            logits = forward(model, images, recipe)
            features: Tensor | None = feature_of(seen, None).flatten(1).float() if wanted else None
            recorder.update(logits, labels, batch.positions, features)
            done += len(batch.positions)
            if on_progress is not None:
                on_progress(done, recorder.samples)
    recorder.end_epoch()
