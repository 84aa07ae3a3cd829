"""Scores of sequences from a language model's hidden states and head, without ever holding the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunefuse.ops.arrays import as_tensor, like
from prunefuse.scoring._linear import checked_head
from prunefuse.scoring._scores import LOGIT_STRATEGIES, checked_logits, checked_names
from prunefuse.scoring._tokens import Reduction, checked_mask, reduce_tokens, require_reduction

# Beside those that need no target.
_LOSS = "loss"


def score_sequences(
    hidden: Any,
    weight: Any,
    bias: Any = None,
    strategy: str | tuple[str, ...] = "entropy",
    *,
    targets: Any = None,
    mask: Any = None,
    reduction: Reduction = "mean",
    temperature: float = 1.0,
) -> Any:
    """Utilities of sequences from what a language model gives its head, as `score_tokens` has them from the logits.

    >>> hidden, head = torch.zeros(2, 5, 16), torch.nn.Linear(16, 1000, bias=False)
    >>> prunefuse.score_sequences(hidden, head.weight, strategy="margin").tolist()
    [1.0, 1.0]

    The logits (N, T, V) are never held. They are made a tile at a time, as in `score_linear`, and only for tokens that
    count. So padding costs nothing.

    The strategies are those of `score`, and ``"loss"``: −ln p of the token's target, in nats. The exponential of its mean
    is the perplexity. With hidden states and tokens of whole sequences, the targets are the next tokens::

        score_sequences(hidden[:, :-1], head.weight, None, "loss", targets=tokens[:, 1:], mask=mask[:, 1:])

    Args:
        hidden: (N, T, D) floating, with any strides: what enters the head. Dtypes and arrays are those of `score`.
        weight: (V, D) of the same dtype and device: the head's weight, as `torch.nn.Linear` keeps it. With tied embeddings
            that is the embeddings' weight.
        bias: (V,) or None.
        strategy: A name, or a tuple of names for several scores from one product.
        targets: (N, T) integers: the class that each hidden state should predict. Only ``"loss"`` needs them. What they
            hold where no token counts is not looked at.
        mask: (N, T), bool or integer, on any device: which tokens count. By default all do. How many count decides what is
            computed, so a mask on a GPU is waited for.
        reduction: ``"mean"``, ``"max"`` or ``"sum"`` over the tokens that count.
        temperature: Divides the logits; positive.

    Returns:
        Utilities (N,), or a dict of them, as `score` returns them. NaN for a sequence in which no token counts, or one that
        counts is NaN. The logits are rounded to the inputs' dtype, as torch's product is. On a GPU, a target that is no
        class makes its sequence NaN.

    Raises:
        TypeError: As `score`; a mask that is neither bool nor integer; targets that are not integers.
        ValueError: As `score_linear` and `score_tokens`; ``"loss"`` without targets, or targets without ``"loss"``; on the
            CPU, a target that counts and is no class.
    """
    names = checked_names("strategy", strategy, (*LOGIT_STRATEGIES, _LOSS))
    x = checked_logits(hidden, temperature, argument="hidden")
    if x.dim() != 3:
        raise ValueError(f"hidden must have shape (N, T, D), got {tuple(x.shape)}")
    require_reduction(reduction)
    head = checked_head(x, weight, bias)
    shape, length = x.shape[:2], x.shape[1]
    if mask is None:
        counts = torch.ones(shape, dtype=torch.bool, device=x.device)
        tokens = torch.arange(shape.numel(), device=x.device)
    else:
        given = checked_mask(mask, shape)
        counts, tokens = given.to(x.device), given.flatten().nonzero()[:, 0].to(x.device)
    y = _checked_targets(targets, names, counts, len(head.weight))
    utilities = torch.zeros((len(names), *shape), dtype=head.dtype, device=x.device)
    with torch.no_grad():
        for part in tokens.split(head.rows):
            # A copy of some rows costs nothing beside their product, and takes any mask and strides.
            block = x[part // length, part % length]
            wanted = None if y is None else y[part]
            utilities.flatten(1)[:, part] = head.utilities(block, names, float(temperature), wanted)
    reduced = {
        name: like(hidden, reduce_tokens(values, counts, reduction))
        for name, values in zip(names, utilities, strict=True)
    }
    return reduced[strategy] if isinstance(strategy, str) else reduced


def _checked_targets(targets: Any, names: tuple[str, ...], counts: Tensor, classes: int) -> Tensor | None:
    """Targets (N·T,) int64 on the device of ``counts`` (N, T); None where no strategy needs them."""
    if (targets is None) == (_LOSS in names):
        wanted = "given for the strategy loss" if targets is None else "left out where no strategy is loss"
        raise ValueError(f"targets must be {wanted}")
    if targets is None:
        return None
    given = as_tensor("targets", targets)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"targets must be integers, got {given.dtype}")
    if given.shape != counts.shape:
        raise ValueError(f"targets must have shape {tuple(counts.shape)}, got {tuple(given.shape)}")
    y = given.to(counts.device, torch.int64)
    if not y.is_cuda:
        wrong = (counts & ((y < 0) | (y >= classes))).nonzero()
        if len(wrong):
            n, t = wrong[0].tolist()
            raise ValueError(
                f"targets must be classes, 0 to {classes - 1}, where a token counts, "
                f"got {int(y[n, t])} for token {t} of sequence {n}"
            )
    return y.flatten()
