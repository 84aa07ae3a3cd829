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
from prunefuse.pruning._obspa.refit import RANKED_HERE, check_planning, compensate, costs, with_notes
from prunefuse.pruning.options import lists
from prunefuse.pruning.plan import PruningPlan


@lists(planner.OnnxPlanOptions, *RANKED_HERE)
def prune_without_finetuning(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    calibration: Any,
    *,
    damping: float = 0.01,
    memory: int = 2**30,
    **options: Unpack[planner.OnnxPlanOptions],
) -> PruningPlan:
    """Write a narrower network that needs no training afterwards (OBSPA; see :mod:`prunefuse.pruning.obspa`).

    Convolutions and products with constant matrices are refitted, whose values differ from a plain cut therefore; what
    else reads channels keeps them, and the plan's notes name it.

    Args:
        path: The file of the trained network.
        out: The new file; there must be none of this name.
        calibration: Inputs like those that the network will see, or others; about 2000. An array, for a network of one
            input; arrays by input name; or batches that can be read several times (a list, a data loader): arrays,
            arrays by name, or tuples whose first entries are the inputs in order. Arrays are read in batches of the size
            that the file says, or of 64.
        damping: λ of the layers' Hessians, as a multiple of the mean of their diagonals. The default is ours.
        memory: Bytes for Hessians that are gathered in one run over the calibration inputs.
        options: Those of `prunefuse.onnx.planner.OnnxPlanOptions`.

    Returns:
        The plan.

    Raises:
        FileExistsError: ``out`` or its data file is there already.
        OSError: a file cannot be read or written.
        TypeError: an argument has the wrong type.
        ValueError: an argument has a value that is not allowed, no layer reads channels that may be pruned, the inputs
            determine no weights (``damping=0`` and too few of them), or onnxruntime is not there or cannot run the file.
        RuntimeError: the result would not be a valid network, which is a fault of a rule; nothing is written.
    """
    check_planning(options, damping)
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
        scores = costs(dense, readers, batches, damping, memory)
        ignore = options.pop("ignore", ())
        ignore = [*([ignore] if isinstance(ignore, str) else ignore), *map(glob.escape, stuck)]
        planning: planner.OnnxPlanOptions = {**options, "scores": scores, "ignore": ignore}
        plan = with_notes(planner.plan(path, **planning), stuck)
        small = narrowed(path, plan)
        compensate(FileNetwork(small, readers), dense, plan, dense.steps(readers), batches, damping)
    save(small, target, like=path)
    return plan
