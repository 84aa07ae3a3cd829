"""What a round of the loop consists of. The loop does these steps; the forecast and the ledger are sums over the same."""

from __future__ import annotations

from collections.abc import Iterator

from prunefuse.experiment import cost
from prunefuse.experiment.cost import Sizes
from prunefuse.experiment.loop_config import LoopConfig
from prunefuse.experiment.records import Cost, Network, PhaseName
from prunefuse.experiment.steps import Step

SYNC = "T_sync: the fused network that the next selector is cut from, with its teacher"


def steps_of_round(config: LoopConfig, index: int, sizes: Sizes) -> tuple[Step[Cost], ...]:
    """The steps of round ``index``, in order; ``sizes`` are those of its networks.

    ``label`` chooses samples and asks for their labels. ``plan`` prunes the dense network anew, after T_sync.
    ``train_selector`` and ``train_final`` train and test a network; the latter fuses first.
    """
    labels = config.sizes[index]
    steps = [Step(f"{index}/label", "label", _selector(config, index - 1), _picking(config, index, sizes))]
    if index and syncs(config, index - 1):
        steps.append(plan_step(config, index, sizes))
    if trains_selector(config, index):
        work = training_lines(config, index, labels, sizes, "selector")
        steps.append(Step(f"{index}/train_selector", "train_selector", (f"{index}/label",), work))
    if trains_final(config, index):
        work = training_lines(config, index, labels, sizes, "final")
        inputs = (f"{index}/label", *_selector(config, index))
        steps.append(Step(f"{index}/train_final", "train_final", inputs, work))
    return tuple(steps)


def plan_step(config: LoopConfig, index: int, sizes: Sizes) -> Step[Cost]:
    """Pruning the dense network, after round 0 as the fused network of the round before. It has FLOPs where it calibrates."""
    work = (planning_line(config, index, sizes.planning),) if sizes.planning else ()
    return Step(f"{index}/plan", "plan", (f"{index - 1}/train_final",) if index else (), work)


def planning_line(config: LoopConfig, index: int, flops: float) -> Cost:
    """The line of planning in a round."""
    return Cost("plan", "selector", index, config.sizes[index], flops, 0.0)


def planned_costs(config: LoopConfig, sizes: Sizes) -> Iterator[Cost]:
    """The ledger lines with FLOPs that the whole run will write (seconds 0), in order.

    With T_sync the widths of later selectors may differ, by a little, from the first one's.
    """
    yield from plan_step(config, 0, sizes).work
    for index in range(len(config.schedule)):
        for step in steps_of_round(config, index, sizes):
            yield from step.work


def training_lines(
    config: LoopConfig, index: int, labels: int, sizes: Sizes, network: Network
) -> tuple[Cost, ...]:
    """The lines of training a network on so many labels, and of testing it."""
    recipe = config.training_of_selector if network == "selector" else config.recipe
    per_input = sizes.selector if network == "selector" else sizes.final
    flops = cost.training_flops(recipe, labels, per_input)
    tested = cost.test_flops(config, recipe, labels, per_input, sizes)
    taught = 0.0
    if network == "final" and config.distills():
        taught = cost.teacher_flops(recipe, labels, sizes.selector, once=labels <= sizes.taught_once)
    if not sizes.counted:
        flops = taught = 0.0
    lines: list[tuple[PhaseName, Network, float]]
    if network == "selector":
        lines = [("train_selector", network, flops)]
    elif syncs(config, index):
        lines = [("train_selector", network, flops + taught)]
    else:
        lines = [("train_final", network, flops)]
        if config.distills() and sizes.counted:
            lines.append(("teacher", "selector", taught))
    if sizes.test:
        lines.append(("evaluate", network, tested))
    return tuple(Cost(phase, of, index, labels, amount, 0.0) for phase, of, amount in lines)


def _picking(config: LoopConfig, index: int, sizes: Sizes) -> tuple[Cost, ...]:
    """The lines of scoring the pool and choosing from it; none where picks are random."""
    chooser = config.chooser_of(index)
    if not chooser.needs:
        return ()
    known = config.sizes[index - 1] if index else 0
    scoring = cost.scoring_flops(chooser, config.asks(index), sizes, known)
    choosing = cost.choosing_flops(chooser, sizes, known, config.sizes[index] - known)
    return (
        Cost("score_pool", "selector", index, known, scoring, 0.0),
        Cost("select", "selector", index, known, choosing, 0.0),
    )


def _selector(config: LoopConfig, index: int) -> tuple[str, ...]:
    """The step that trains the selector of a round, where there is one."""
    return (f"{index}/train_selector",) if index >= 0 and trains_selector(config, index) else ()


def is_last(config: LoopConfig, index: int) -> bool:
    """Whether round ``index`` is the one with b labels."""
    return index == len(config.schedule) - 1


def scores_after(config: LoopConfig, index: int) -> bool:
    """Whether the selector of round ``index`` scores the pool for the next."""
    return not is_last(config, index) and bool(config.asks(index + 1))


def keeps_selector(config: LoopConfig, index: int) -> bool:
    """Whether the selector of round ``index`` is kept, to score the pool next or to start the next one from."""
    return trains_selector(config, index) and (bool(config.asks(index + 1)) or config.start != "fresh")


def goes_on_from_final(config: LoopConfig, index: int) -> bool:
    """Whether the final network of round ``index``, trained apart from a selector, is what the next round starts from.

    So it is where there is one network for both, and the next starts from the last.
    """
    one = config.selector == "dense" and config.training_of_selector == config.recipe
    return one and config.start != "fresh" and trains_final(config, index)


def syncs(config: LoopConfig, index: int) -> bool:
    """Whether the next selector is cut from the fused network trained in round ``index``."""
    return config.t_sync > 0 and not is_last(config, index) and (index + 1) % config.t_sync == 0


def trains_selector(config: LoopConfig, index: int) -> bool:
    """Whether round ``index`` trains a selector: to score the pool, to be fused, or to teach."""
    used = config.selector == "prunefuse" and (config.fuse or config.distill) and trains_final(config, index)
    return scores_after(config, index) or used


def trains_final(config: LoopConfig, index: int) -> bool:
    """Whether round ``index`` trains the final network, as a result or for T_sync, apart from the selector."""
    if config.selector == "dense" and scores_after(config, index):
        return False  # the selector is the final network
    return config.finals == "all" or is_last(config, index) or syncs(config, index)
