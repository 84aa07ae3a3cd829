"""Attacks within a small distance of every image, and training that withstands them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunefuse._options import at_least, check_fields, checked, not_negative, one_of, require
from prunefuse._seeds import generator
from prunefuse.data._batches import in_order, read
from prunefuse.training._modes import device_of, evaluating
from prunefuse.training._predict import forward
from prunefuse.training._recipe import Recipe

_PLAIN = Recipe()


@dataclass(frozen=True)
class Pgd:
    """An attack by projected gradient descent in L∞: steps of equal size along the sign of the loss's gradient.

    >>> from prunefuse.training import Pgd
    >>> fgsm = Pgd(epsilon=0.1, step_size=0.1, steps=1, random_start=False)

    After every step no pixel is more than ``epsilon`` from where it was, nor outside ``low`` to ``high``. One step of size
    ``epsilon`` without a random start is FGSM. The defaults are Madry et al.'s for training on CIFAR-10.

    Attributes:
        epsilon: Largest change of a pixel.
        step_size: Change of a pixel in one step.
        steps: How many there are. 0 is the random start alone.
        random_start: Start from a uniform draw within ``epsilon``; else from the image itself.
        low, high: Range of pixels.
        mean, std: One for each channel, where the model is given (pixel − mean) / std, as of CIFAR in `prunefuse.data`. All
            the above is in pixels all the same.

    References:
        Madry et al. 2018, *Towards Deep Learning Models Resistant to Adversarial Attacks*. Goodfellow et al. 2015,
        *Explaining and Harnessing Adversarial Examples*.
    """

    epsilon: float = field(default=8 / 255, metadata=checked(not_negative()))
    step_size: float = field(default=2 / 255, metadata=checked(not_negative()))
    steps: int = field(default=7, metadata=checked(at_least(0)))
    random_start: bool = True
    low: float = 0.0
    high: float = 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.low < self.high, "high", f"above low, {self.low}", self.high)
        if self.mean is None or self.std is None:
            require(self.std is self.mean, "std", "given with mean, or neither", self.std)
        else:
            count = len(self.mean)
            valid = len(self.std) == count and min(self.std, default=1) > 0
            require(valid, "std", f"{count} positive numbers, one for each mean", self.std)

    def scaled(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``epsilon``, ``step_size``, ``low`` and ``high`` in the units of ``images`` (N, C, ...), to be broadcast."""
        shape = (-1,) + (1,) * (images.ndim - 2) if self.mean is not None else ()
        mean, std = (
            torch.tensor(value, dtype=torch.float64).reshape(shape)
            for value in (self.mean or 0.0, self.std or 1.0)
        )
        scaled = (
            self.epsilon / std,
            self.step_size / std,
            (self.low - mean) / std,
            (self.high - mean) / std,
        )
        epsilon, step, low, high = (value.to(images.device, images.dtype) for value in scaled)
        return epsilon, step, low, high


@dataclass(frozen=True)
class Adversarial:
    """Training on attacked images, an option of `train`.

    >>> from prunefuse.training import Adversarial, Pgd
    >>> trades = Adversarial(Pgd(steps=3), beta=6.0)

    Without ``beta`` the loss is the cross-entropy of attacked images (Madry et al.). With ``beta`` the loss is
    `trades_loss`, and the attack raises the divergence from what the network says of the clean image. Attacks see the
    network in evaluation mode, the loss in training mode. Clean and attacked images are batches of their own. TRADES starts
    its attack from Gaussian noise; here it starts from ``attack``'s uniform draw (see docs/paper.md).

    A step on images of F FLOPs each costs (2 steps + 3) F an image, with ``beta`` (2 steps + 7) F.

    Attributes:
        attack: Which images to train on.
        beta: Weight of TRADES' second term. Published: 6 (and 1).
        logits: ``adversarial`` or ``clean``: the images that training accuracy, ``on_batch`` of `train` and so scores from
            training dynamics are of. The logits are those of the step. Only clean logits without ``beta`` take a forward
            pass more. It comes before the step and in evaluation mode, so that the statistics of batch norms stay those of
            attacked images.

    References:
        Madry et al. 2018, *Towards Deep Learning Models Resistant to Adversarial Attacks*. Zhang et al. 2019,
        *Theoretically Principled Trade-off between Robustness and Accuracy* (TRADES).
    """

    attack: Pgd = field(default=Pgd(), metadata=checked())
    beta: float | None = field(default=None, metadata=checked(not_negative()))
    logits: Literal["adversarial", "clean"] = field(
        default="adversarial", metadata=checked(one_of("adversarial", "clean"))
    )

    def __post_init__(self) -> None:
        check_fields(self)
        # At the clean image the divergence that TRADES' attack raises has no slope.
        starts = self.beta is None or self.attack.random_start
        require(starts, "attack", "one with a random start where beta is given", self.attack)

    def loss(
        self, model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch, and the logits (B, C) that ``logits`` asks for."""
        clean = None
        if self.beta is not None or self.logits == "clean":
            with evaluating(model), torch.no_grad():
                clean = forward(model, images, recipe)
        if self.beta is None:
            attacked = perturb(model, images, labels, self.attack, recipe=recipe, rng=rng)
            said = forward(model, attacked, recipe)
            return functional.cross_entropy(said, labels), said if clean is None else clean
        assert clean is not None
        attacked = perturb(model, images, clean.softmax(1), self.attack, recipe=recipe, rng=rng)
        clean, said = forward(model, images, recipe), forward(model, attacked, recipe)
        return trades_loss(clean, said, labels, self.beta), clean if self.logits == "clean" else said


def trades_loss(clean: Tensor, attacked: Tensor, labels: Tensor, beta: float) -> Tensor:
    """``CE(clean, labels) + beta * KL(softmax(clean) || softmax(attacked))`` of logits (B, C), means over the batch.

    >>> from prunefuse.training import trades_loss
    >>> round(trades_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), beta=6.0).item(), 4)
    0.6931

    References:
        Zhang et al. 2019, *Theoretically Principled Trade-off between Robustness and Accuracy* (TRADES).
    """
    divergence = functional.kl_div(
        functional.log_softmax(attacked, dim=1),
        functional.log_softmax(clean, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return functional.cross_entropy(clean, labels) + beta * divergence


def perturb(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    attack: Pgd,
    *,
    recipe: Recipe = _PLAIN,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Attacked images: like ``images``, but the model says something else of them. These and the model stay as they are.

    >>> from prunefuse.training import Pgd, perturb
    >>> model, images = prunefuse.models.mlp(in_channels=1, image_size=(4, 4)), torch.rand(8, 1, 4, 4)
    >>> round((perturb(model, images, torch.arange(8), Pgd(epsilon=0.1)) - images).abs().max().item(), 4)
    0.1

    The model is in evaluation mode meanwhile: batch norm by its running statistics, which do not move, and no dropout.
    Parameters get no gradients. The work is that of 2 · steps forward passes.

    Args:
        model: A classifier.
        images: (B, C, ...) floating, on the model's device, with pixels in the attack's range.
        target: (B,) class indices, whose cross-entropy is raised; or (B, C) probabilities, from which the Kullback-Leibler
            divergence is raised. That of the probabilities has the same gradient.
        attack: How far and how.
        recipe: The recipe whose ``autocast`` and ``channels_last`` apply.
        rng: A CPU generator for random starts. None is a fresh one, the same at every call. Global ones are not used.

    Returns:
        (B, C, ...) in the dtype of ``images``, detached.

    Raises:
        TypeError: ``images`` are not floating.
        ValueError: On the CPU, where looking does not wait: a pixel is out of the attack's range.
    """
    if not images.is_floating_point():
        raise TypeError(f"images must be floating, got {images.dtype}")
    epsilon, step, low, high = attack.scaled(images)
    slack = 1e-4 * (high - low)  # of images that were normalized in other steps than the range here
    if images.device.type == "cpu" and bool(((images < low - slack) | (images > high + slack)).any()):
        raise ValueError(
            f"images must lie in the attack's range, {attack.low} to {attack.high} (before mean and std, if given)"
        )
    images = images.detach()
    lower, upper = torch.maximum(images - epsilon, low), torch.minimum(images + epsilon, high)
    attacked = images.clone()
    if attack.random_start:
        rng = generator(0, "attack") if rng is None else rng
        draw = torch.rand(images.shape, generator=rng).to(images.device, images.dtype, non_blocking=True)
        attacked = torch.clamp(images + (2 * draw - 1) * epsilon, lower, upper)
    with evaluating(model), torch.enable_grad():
        for _ in range(attack.steps):
            attacked.requires_grad_()
            # The sum: a mean over a large batch would bring small slopes nearer to 0.
            loss = functional.cross_entropy(forward(model, attacked, recipe), target, reduction="sum")
            (slope,) = torch.autograd.grad(loss, attacked)
            attacked = torch.clamp(attacked.detach() + step * slope.sign(), lower, upper)
    return attacked


def evaluate_attacked(
    model: nn.Module,
    data: Any,
    attack: Pgd,
    *,
    seed: int = 0,
    batch_size: int = 512,
    recipe: Recipe = _PLAIN,
    workers: int = 0,
) -> float:
    """The accuracy in [0, 1] on attacked images of a data set with items ``(image, label)``; `perturb` says the rest.

    >>> from prunefuse.training import Pgd, evaluate_attacked
    >>> data = prunefuse.data.TensorImages(torch.rand(8, 1, 4, 4), torch.arange(8) % 10)
    >>> model = prunefuse.models.mlp(in_channels=1, image_size=(4, 4))
    >>> 0 <= evaluate_attacked(model, data, Pgd(steps=2)) <= 1
    True

    ``seed`` fixes random starts. An accuracy under one attack is an upper bound on that under the worst.
    """
    device = device_of(model)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    batches, rng = in_order(torch.arange(len(data)), batch_size), generator(seed, "attack")
    for images, labels in read(data, batches, labels=True, device=device, workers=workers):
        assert labels is not None
        attacked = perturb(model, images, labels, attack, recipe=recipe, rng=rng)
        with evaluating(model), torch.no_grad():
            correct += forward(model, attacked, recipe).argmax(1).eq(labels).sum()
    return int(correct) / len(data)
