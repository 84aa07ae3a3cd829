"""How the selector is cut from the dense network: what it keeps of it, and the weights that it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunefuse._seeds import generator
from prunefuse._wrapped import unwrapped
from prunefuse.data._batches import in_order, read
from prunefuse.experiment.loop_config import REFITTED, LoopConfig
from prunefuse.fusion import fuse_
from prunefuse.pruning import PruningPlan, plan_pruning
from prunefuse.pruning._graph.copies import named_tensors
from prunefuse.pruning.obspa import BATCH, Work, prune_counting
from prunefuse.pruning.plan import plan_of
from prunefuse.selection._part import random_part
from prunefuse.training._modes import reading_for
from prunefuse.training._predict import Collate


@dataclass(frozen=True)
class Cut:
    """A plan, and the weights of the small network by name where these are not the kept slices of the dense one's.

    ``flops`` are those of the passes over calibration samples.
    """

    plan: PruningPlan
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    flops: float = 0.0

    def selector(self, dense: nn.Module) -> nn.Module:
        """The selector before it is trained, cut from the network that was planned."""
        small = self.plan.extract(dense)
        if self.weights:
            small.load_state_dict(self.weights)
        return small

    def fuse_(self, dense: nn.Module, selector: nn.Module, complement: str | nn.Module) -> None:
        """Write the trained selector into the dense network, as `prunefuse.fuse_`.

        A refitted weight that makes up for channels would count them twice beside the dense network's own. So with
        ``complement="keep"`` what training has changed is added to these. Without a refit that is the same as writing.
        """
        if self.weights and complement == "keep":
            selector = self._changed(dense, selector)
        fuse_(dense, selector, self.plan, complement)

    def lr_factors(self, dense: nn.Module, factor: float) -> dict[str, Tensor]:
        """Factors of the learning rate, by name of the parameter: ``factor`` where a weight is fused, 1 elsewhere."""
        kept = self.plan.kept_indices(dense)
        names = {id(tensor): name for name, tensor in named_tensors(unwrapped(dense, "dense")).items()}
        found: dict[str, Tensor] = {}
        for name, parameter in dense.named_parameters():
            fused = torch.ones((), dtype=torch.bool)
            for axis, indices in enumerate(kept[names[id(parameter)]]):
                there = torch.full((parameter.shape[axis],), indices is None)
                if indices is not None:
                    there[indices] = True
                fused = fused[..., None] & there
            found[name] = torch.where(fused, factor, 1.0)
        return found

    def _changed(self, dense: nn.Module, selector: nn.Module) -> nn.Module:
        """The kept slices of the dense network, changed as training has changed the selector."""
        changed = self.plan.extract(dense)
        trained = selector.state_dict()
        for name, value in changed.state_dict().items():
            start = self.weights[name].to(value.device)
            if not value.is_floating_point():
                value.copy_(trained[name])
            elif name.endswith("running_var"):  # a ratio, so that it stays positive
                value.mul_(torch.where(start > 0, trained[name] / start, 1))
            else:
                value.add_(trained[name] - start)
        return changed

    def kept(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What `restored` needs to have it again without calibrating: plain data, and tensors on the CPU."""
        weights = {name: value.to("cpu", copy=True).contiguous() for name, value in self.weights.items()}
        return {"plan": self.plan.to_text(), "flops": self.flops}, weights


def cut(
    dense: nn.Module,
    example: Any,
    config: LoopConfig,
    pool: Any,
    *,
    exclude: Tensor | None = None,
    collate: Collate | None = None,
) -> Cut:
    """Cut a selector as a configuration says.

    Args:
        dense: The network, which is not changed.
        example: What it is given for one sample.
        config: With ``prune_ratio``, ``criterion``, ``rounding`` and ``calibration``.
        pool: Whose inputs are calibrated on, where the criterion does so. Labels are not touched.
        exclude: Samples that are not looked at.
        collate: Makes batches of items.

    Raises:
        ValueError: the criterion cannot be had of this network; names it.
    """
    if config.criterion not in REFITTED:
        wanted: dict[str, Any] = {"criterion": config.criterion, "rounding": config.rounding}
        return Cut(plan_pruning(dense, example, ratio=config.prune_ratio, seed=config.seed, **wanted))
    source = generator(config.seed, "calibration")
    part = random_part(len(pool), config.calibration, exclude=exclude, generator=source)
    options: dict[str, Any] = {"workers": config.workers, "reading": reading_for(dense, collate=collate)}
    batches = read(pool, in_order(part, BATCH), labels=False, device=torch.device("cpu"), **options)
    rounded: Any = {"rounding": config.rounding}  # the field is any text, and checked
    shown = [inputs for inputs, _ in batches]  # in memory, as it is gone through once for each layer
    work = Work()
    try:
        plan, small = prune_counting(dense, example, shown, work, ratio=config.prune_ratio, **rounded)
    except ValueError as error:
        raise ValueError(f"criterion must not be {config.criterion} here: {error}") from error
    return Cut(plan, {name: value.detach() for name, value in small.state_dict().items()}, float(work.flops))


def restored(told: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Cut:
    """The inverse of `Cut.kept`.

    Raises:
        ValueError: what was kept is no plan.
    """
    return Cut(plan_of(told["plan"], "cut"), dict(weights), told.get("flops", 0.0))
