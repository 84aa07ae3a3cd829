"""Learning rates of single elements of parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunefuse.ops.arrays import as_tensor


class LearningRates:
    """A factor of the learning rate for each element, as a group of the optimizer has one for whole parameters.

    What an optimizer adds to an element is multiplied by its factor, after the step. So momentum, the moments of AdamW and
    weight decay are what they would be in a group with that learning rate. Elements with factor 1 are changed as without.

    Args:
        model: Whose parameters are meant.
        factors: By name of the parameter, (...) that broadcasts to its shape: finite, 0 or more. Others have 1.

    Raises:
        TypeError, ValueError: ``factors`` are none of ``model``; names them ``lr_factors``.
    """

    def __init__(self, model: nn.Module, factors: Mapping[str, Any]) -> None:
        if not isinstance(factors, Mapping):
            raise TypeError(
                f"lr_factors must be factors by name of a parameter, got {type(factors).__name__}"
            )
        known = dict(model.named_parameters())
        self._parameters: list[Tensor] = []
        self._back: list[Tensor] = []  # the part of an update that is taken back
        for name, given in factors.items():
            if name not in known:
                raise ValueError(f"lr_factors must be of parameters of the model, got {name!r}")
            parameter, factor = known[name].detach(), as_tensor("lr_factors", given)
            if factor.is_complex() or not bool(((factor >= 0) & (factor < float("inf"))).all()):
                raise ValueError(f"lr_factors must be finite numbers, 0 or more, got others for {name!r}")
            try:
                factor = factor.expand(parameter.shape)
            except RuntimeError:
                raise ValueError(
                    f"lr_factors must broadcast to shape {tuple(parameter.shape)} for {name!r}, got {tuple(factor.shape)}"
                ) from None
            self._parameters.append(parameter)
            self._back.append(torch.empty_like(parameter).copy_(1 - factor.double()))
        self._before = [torch.empty_like(parameter) for parameter in self._parameters]

    def note(self) -> None:
        """Remember the parameters as they are, before a step."""
        torch._foreach_copy_(self._before, self._parameters)

    def apply_(self) -> None:
        """Scale what the step has added since then."""
        torch._foreach_lerp_(self._parameters, self._before, self._back)

    def digest(self) -> str:
        """A hash of the factors, to compare with when a training goes on."""
        digest = hashlib.sha256()
        for one in self._back:
            digest.update(f"{tuple(one.shape)}".encode())
            digest.update(one.detach().double().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
