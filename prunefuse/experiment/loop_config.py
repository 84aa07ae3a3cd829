"""What an active-learning run is, apart from data and model; and which network it trains when."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from numbers import Integral
from typing import Literal, cast

from prunefuse.experiment.budgets import parse_size, to_samples
from prunefuse.pruning._choose.ranking import ROUNDINGS
from prunefuse.pruning._choose.scores import CRITERIA
from prunefuse.selection._batches import Stochastic
from prunefuse.selection._strategies import Strategy, UtilityFunction, strategy
from prunefuse.training._fields import check_types
from prunefuse.training._recipe import RECIPES, Recipe


@dataclass(frozen=True)
class LoopConfig:
    """Configuration of `ActiveLearning`.

    Attributes:
        schedule: Labeled-set sizes, increasing; the first is the random initial pool, the last is the budget b.
            A size is a number of samples, or per cent of the pool as a string (``"10%"``), which `ActiveLearning`
            resolves exactly, rounding down.
        strategy: The acquisition strategy, as `prunefuse.selection.strategies.strategy` takes it: a token, a utility
            function, or where one stands.
        passes: Forward passes with dropout, for ``bald``.
        stochastic: Random batches by utility: ``none``, ``power``, ``softmax`` or ``softrank``.
        beta: How near those stay to the best batch.
        class_balanced: As many of every predicted class as there are, the best of each.
        selector: ``prunefuse``: the dense network pruned at initialization. ``dense``: the dense network itself
            (classic active learning; it is the final network too). ``model``: another network (selection via
            proxy); the final network is then trained on its own, without fusion or distillation.
        prune_ratio: Fraction of the channels removed, in [0, 1).
        criterion: Channel score of `plan_pruning`: ``l2``, ``l1`` or ``random``.
        rounding: Of the kept widths, as in `plan_pruning`: ``floor``, ``nearest`` or ``ceil``.
        t_sync: After every ``t_sync`` rounds the next selector is pruned from the trained fused network; 0 =
            never. The idea is the paper's, details are ours: see `ActiveLearning`.
        fuse: Fuse the selector into the dense network; without, the final network starts from its own weights.
        distill: Train the final network with the selector as teacher.
        kd_lambda: Weight of the cross-entropy in the distillation loss (ours).
        kd_temperature: Temperature of the distillation loss (ours).
        complement: What the positions outside the selector become: ``keep`` the dense network's weights, or
            ``reinit``, those of another fresh network of the factory, or ``zero``.
        finals: Train the final network at ``all`` sizes of the schedule, for the curve, or at the ``last``.
        recipe: Training of the final network.
        selector_recipe: Training of the selector; None = ``recipe``.
        test_every_epoch: Evaluate on the test set after every epoch, not only after the last.
        workers: Processes that read data sets that are not in memory.
        seed: Fixes initialization, order, augmentation and selection.

    Raises:
        TypeError: a value of another type than its field; names the field.
        ValueError: a value outside its range; names the field.
    """

    schedule: tuple[int | str, ...]
    strategy: str | UtilityFunction = "entropy"
    passes: int = 10
    stochastic: Stochastic = "none"
    beta: float = 1.0
    class_balanced: bool = False
    selector: Literal["prunefuse", "dense", "model"] = "prunefuse"
    prune_ratio: float = 0.5
    criterion: str = "l2"
    rounding: str = "floor"
    t_sync: int = 0
    fuse: bool = True
    distill: bool = True
    kd_lambda: float = 0.5
    kd_temperature: float = 4.0
    complement: Literal["keep", "reinit", "zero"] = "keep"
    finals: Literal["all", "last"] = "all"
    recipe: Recipe = RECIPES["cifar"]
    selector_recipe: Recipe | None = None
    test_every_epoch: bool = False
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        self._check_schedule()
        for name in ("recipe", "selector_recipe"):
            value = getattr(self, name)
            if not isinstance(value, Recipe) and (name == "recipe" or value is not None):
                raise TypeError(f"{name}: expected a Recipe, got {value!r} ({type(value).__name__})")
        _ = self.chooser  # checks what it is made of
        checks = (
            ("selector", self.selector in ("prunefuse", "dense", "model"), '"prunefuse", "dense" or "model"'),
            ("prune_ratio", 0 <= self.prune_ratio < 1, "a number in [0, 1)"),
            ("criterion", self.criterion in CRITERIA, f"one of {', '.join(CRITERIA)}"),
            ("rounding", self.rounding in ROUNDINGS, f"one of {', '.join(ROUNDINGS)}"),
            ("t_sync", self.t_sync >= 0, "at least 0"),
            ("t_sync", not self.t_sync or (self.selector == "prunefuse" and self.fuse), "0 without fusion"),
            ("kd_lambda", 0 <= self.kd_lambda <= 1, "a number in [0, 1]"),
            ("kd_temperature", self.kd_temperature > 0, "a positive number"),
            ("complement", self.complement in ("keep", "reinit", "zero"), '"keep", "reinit" or "zero"'),
            ("finals", self.finals in ("all", "last"), '"all" or "last"'),
            ("workers", self.workers >= 0, "at least 0"),
            ("seed", self.seed >= 0, "at least 0"),
        )
        for name, valid, expected in checks:
            if not valid:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    @cached_property
    def chooser(self) -> Strategy:
        """The strategy with its options."""
        return strategy(
            self.strategy,
            passes=self.passes,
            stochastic=self.stochastic,
            beta=self.beta,
            class_balanced=self.class_balanced,
        )

    def _check_schedule(self) -> None:
        sizes: object = self.schedule
        if not isinstance(sizes, tuple):
            kind = type(sizes).__name__
            raise TypeError(f"schedule: expected a tuple of sizes such as (100, 200), got {sizes!r} ({kind})")
        for size in sizes:
            if isinstance(size, bool) or not isinstance(size, Integral | str):
                kind = type(size).__name__
                raise TypeError(f'schedule: expected sizes such as 100 or "10%", got {size!r} ({kind})')
            if isinstance(size, str):
                parse_size(size, "schedule")
        samples = [size for size in sizes if not isinstance(size, str)]
        increasing = all(a < b for a, b in pairwise(samples))
        if not sizes or not increasing or min(samples, default=1) < 1:
            raise ValueError(f"schedule: expected increasing sizes > 0, got {sizes!r}")

    def for_pool(self, pool: int) -> LoopConfig:
        """The same with a schedule in samples of a pool of ``pool``.

        Raises:
            ValueError: a size that the pool does not have, or sizes that do not increase; names ``schedule``.
        """
        sizes = tuple(
            to_samples(size, pool, "schedule") if isinstance(size, str) else int(size)
            for size in self.schedule
        )
        if sizes and sizes[-1] > pool:
            raise ValueError(
                f"schedule: expected at most {pool} labels, the size of the pool, got {sizes[-1]}"
            )
        return replace(self, schedule=sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The schedule in samples.

        Raises:
            ValueError: it has per cents; see `for_pool`.
        """
        if any(isinstance(size, str) for size in self.schedule):
            raise ValueError(f"schedule: expected sizes in samples, got {self.schedule!r}")
        return cast("tuple[int, ...]", self.schedule)

    @property
    def budget(self) -> int:
        """b, the last size of the schedule."""
        return self.sizes[-1]

    @property
    def training_of_selector(self) -> Recipe:
        """The recipe of the selector."""
        return self.selector_recipe or self.recipe

    def is_last(self, index: int) -> bool:
        """Whether round ``index`` is the one with b labels."""
        return index == len(self.schedule) - 1

    def scores_after(self, index: int) -> bool:
        """Whether the selector of round ``index`` scores the pool for the next."""
        return not self.is_last(index) and bool(self.chooser.needs)

    def keeps_selector(self, index: int) -> bool:
        """Whether the selector of round ``index`` is kept to score the pool next, should there be a next round."""
        return self.trains_selector(index) and bool(self.chooser.needs)

    def syncs(self, index: int) -> bool:
        """Whether the next selector is cut from the fused network trained in round ``index``."""
        return self.t_sync > 0 and not self.is_last(index) and (index + 1) % self.t_sync == 0

    def reports_final(self, index: int) -> bool:
        """Whether round ``index`` reports a final network."""
        return self.finals == "all" or self.is_last(index)

    def trains_selector(self, index: int) -> bool:
        """Whether round ``index`` trains a selector: to score the pool, to be fused, or to teach."""
        used = self.selector == "prunefuse" and (self.fuse or self.distill) and self.trains_final(index)
        return self.scores_after(index) or used

    def trains_final(self, index: int) -> bool:
        """Whether round ``index`` trains the final network, as a result or for T_sync, apart from the selector."""
        if self.selector == "dense" and self.scores_after(index):
            return False  # the selector is the final network
        return self.reports_final(index) or self.syncs(index)

    def distills(self) -> bool:
        """Whether final networks are trained with a teacher."""
        return self.selector == "prunefuse" and self.distill
