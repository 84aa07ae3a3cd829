"""What all steps of all seeds of a run share, and the networks that they start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from prunefuse._seeds import derive, isolated
from prunefuse.data import Data
from prunefuse.experiment.extrapolate.config import ExtrapolateConfig
from prunefuse.pruning import PruningPlan, load_pruned
from prunefuse.training import flops_per_input


@dataclass(frozen=True)
class Setup:
    """``labels`` (N,) are the classes of all samples, ``subset`` and ``keeps`` are sizes in samples."""

    config: ExtrapolateConfig
    data: Data
    factory: Callable[[], nn.Module]
    device: torch.device
    labels: Tensor
    subset: int
    keeps: tuple[int, ...]

    @property
    def example(self) -> Tensor:
        """A batch of one image."""
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
