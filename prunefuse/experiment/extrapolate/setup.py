"""What all steps of all seeds of a run share, and the networks that they start from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from prunefuse._seeds import derive, isolated
from prunefuse.data import Data
from prunefuse.experiment.extrapolate.config import ExtrapolateConfig
from prunefuse.experiment.networks import Dense
from prunefuse.pruning import PruningPlan, load_pruned, plan_pruning
from prunefuse.training import flops_per_input


@dataclass(frozen=True)
class Setup:
    """``labels`` (N,) are the classes of all samples, ``subset`` and ``keeps`` are sizes in samples."""

    config: ExtrapolateConfig
    data: Data
    factory: Dense
    device: torch.device
    labels: Tensor
    subset: int
    keeps: tuple[int, ...]

    @cached_property
    def dense_flops(self) -> float:
        """F of the model: FLOPs of one forward pass for one image."""
        return self.flops(self.dense(self.config.seeds[0]))

    @cached_property
    def subset_flops(self) -> float:
        """F of F_s. How many channels are kept does not depend on the seed, only which."""
        if not self.config.prune_ratio:
            return self.dense_flops
        network = self.dense(self.config.seeds[0])
        return self.flops(self.plan(network, self.config.seeds[0]).extract(network))

    def plan(self, network: nn.Module, seed: int) -> PruningPlan:
        """The pruning of F_s."""
        return plan_pruning(
            network,
            self.example,
            ratio=self.config.prune_ratio,
            criterion=self.config.criterion,
            rounding=self.config.rounding,
            seed=seed,
        )

    @property
    def example(self) -> Tensor:
        """A batch of one image, or of one text."""
        if self.data.vocabulary is not None:
            return torch.ones(1, *self.data.input_shape, dtype=torch.int32, device=self.device)
        return torch.zeros(1, *self.data.input_shape, device=self.device)

    def flops(self, network: nn.Module) -> float:
        """F: of one forward pass for one image."""
        return flops_per_input(network, self.example)

    def dense(self, seed: int, purpose: str = "dense") -> nn.Module:
        """The model, with initial weights that depend on the seed alone."""
        with isolated(derive(seed, purpose), self.device):
            return self.factory().to(self.device)

    def subset_network(self, folder: Path) -> nn.Module:
        """F_s, as the step that trained it left it in ``folder``."""
        from safetensors.torch import load_file

        weights = load_file(folder / "network.safetensors")
        with isolated(0):  # the factory draws weights, which are then replaced
            if self.config.prune_ratio:
                network = load_pruned(self.factory, PruningPlan.load(folder / "plan.json"), weights)
            else:
                network = self.factory()
                network.load_state_dict(weights)
        return network.to(self.device)
