"""Pruning a trained network in an ONNX file without training it again: :mod:`prunefuse.pruning.obspa`, by onnxruntime."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from prunefuse.onnx import planner
from prunefuse.onnx.reader import example_shapes, read, trace
from prunefuse.onnx.runtime import Feeds, FileNetwork
from prunefuse.onnx.writer import check_free, narrowed, save
from prunefuse.pruning._obspa.readers import find_readers
from prunefuse.pruning._obspa.refit import (
    COMBINE,
    FIT_TO,
    RANKED_HERE,
    check_planning,
    compensate,
    compensate_own,
    costs,
    with_notes,
)
from prunefuse.pruning.options import check_choice, lists
from prunefuse.pruning.plan import PruningPlan


@lists(planner.OnnxPlanOptions, *RANKED_HERE)
def prune_without_finetuning(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    calibration: Any,
    *,
    damping: float = 0.01,
    memory: int = 2**30,
    combine: str = "sum",
    fit_to: str = "dense",
    **options: Unpack[planner.OnnxPlanOptions],
) -> PruningPlan:
    """Write a narrower network that needs no training afterwards (OBSPA), and return its plan.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> torch.onnx.export(net, (torch.zeros(1, 4),), "net.onnx", dynamo=False)
    >>> plan = prunefuse.onnx.prune_without_finetuning("net.onnx", "small.onnx", torch.randn(200, 4).numpy(), ratio=0.5)
    >>> plan.params
    (58, 30)

    Convolutions and products with constant matrices are refitted, so their values differ from a plain cut. What else reads
    channels keeps them, and the plan's notes name it. See `prunefuse.pruning.obspa`.

    Args:
        path: The file of the trained network.
        out: The new file; there must be none of this name.
        calibration: About 2000 inputs: like those that the network will see, or others. They are an array, for a network of
            one input, or arrays by input name. Or they are batches that can be read several times, as a list or a data
            loader has them. A batch is an array, arrays by name, or a tuple whose first entries are the inputs in order.
            Arrays are read in batches of the size that the file says, or of 64.
        damping: λ of the layers' Hessians, as a multiple of the mean of their diagonals.
        memory: Bytes for Hessians that are gathered in one run over the calibration inputs.
        combine: ``"sum"``, ``"mean"`` or ``"median"``: what becomes of the costs that a channel has in several layers.
        fit_to: ``"dense"``: a layer is fitted to the outputs that the dense network has there. ``"own"``: to those of its
            own dense weights, on inputs that passed the layers changed before.
        options: Those of `prunefuse.onnx.planner.OnnxPlanOptions`.

    Returns:
        The plan.

    Raises:
        FileExistsError: ``out`` or its data file is there already.
        OSError: A file cannot be read or written.
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value that is not allowed, or no layer reads channels that may be pruned. Or the inputs
            determine no weights: there are too few of them, and ``damping=0``. Or onnxruntime is not there, or cannot run
            the file.
        RuntimeError: The result would not be a valid network, which is a fault of a rule; nothing is written.

    References:
        Wang, Rachwan, Günnemann and Charpentier 2024, *Structurally Prune Anything: Any Architecture, Any Framework, Any
        Time*.
    """
    check_planning(options, damping)
    check_choice("combine", combine, tuple(COMBINE))
    check_choice("fit_to", fit_to, FIT_TO)
    target = Path(out)
    check_free(target)
    model = read(path)
    traced = trace(model, example_shapes(model, options.get("shapes")))
    readers, stuck = find_readers(traced)
    if not readers:
        raise ValueError(
            "path must have a convolution or matrix product that reads channels that may be pruned, got none"
        )
    batches, dense = Feeds(calibration, model), FileNetwork(model, readers)
    with torch.no_grad():
        scores = costs(dense, readers, batches, damping, memory, combine)
        ignore = options.pop("ignore", ())
        ignore = [*([ignore] if isinstance(ignore, str) else ignore), *map(glob.escape, stuck)]
        planning: planner.OnnxPlanOptions = {**options, "scores": scores, "ignore": ignore}
        plan = with_notes(planner.plan(path, **planning), stuck)
        steps = dense.steps(readers)
        if fit_to == "own":
            passed = FileNetwork(read(path), readers)
            compensate_own(passed, dense, plan, steps, batches, damping)
            small = narrowed(path, plan, passed.tensors)
        else:
            small = narrowed(path, plan)
            compensate(FileNetwork(small, readers), dense, plan, steps, batches, damping)
    save(small, target, like=path)
    return plan
