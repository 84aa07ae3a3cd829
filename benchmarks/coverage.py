"""Which architectures are pruned, cut out, run, trained for a step and fused back, without repair by hand.

``python -m benchmarks.coverage`` runs every case in a process of its own, under a limit of time and memory, and writes
``results/coverage.json`` after each; cases that are in it already are not run again (delete the file to start over).
At the end the table ``docs/coverage.md`` is written from that file.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks import isolated
from benchmarks.zoo import SMALLEST, build, families
from prunefuse import _files as files
from prunefuse.fusion import fuse_
from prunefuse.pruning import plan_pruning

RESULTS = Path(__file__).parent / "results" / "coverage.json"
TABLE = Path(__file__).parents[1] / "docs" / "coverage.md"
SECONDS, GIBIBYTES = 600, 12


@dataclass(frozen=True)
class Case:
    """One architecture at one ratio."""

    family: str
    name: str
    ratio: float

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.name} {self.ratio:g}"


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        error: Where and why it failed; empty if every step worked.
        export_seconds: Processor time of ``torch.export``, of the dense and of the small model.
        plan_seconds: That of planning beyond it.
        memory: MiB that planning added to the peak of the process.
        params: Ratio of parameters, small to dense.
        flops: Ratio of FLOPs, as the plan counts them.
        notes: What was kept whole, and why.
    """

    error: str
    export_seconds: float = 0.0
    plan_seconds: float = 0.0
    memory: float = 0.0
    params: float = 1.0
    flops: float = 1.0
    notes: tuple[str, ...] = ()


def cases() -> list[Case]:
    """All at one half; the smallest of each of torchvision's families, and all of timm and transformers, at 0.3 and 0.7 too."""
    family = families()
    small = [*SMALLEST, *(name for name in family if ":" in name and "layers" not in name)]
    wanted = [(name, 0.5) for name in family] + [(name, ratio) for name in small for ratio in (0.3, 0.7)]
    return sorted(
        (Case(family[name], name, ratio) for name, ratio in wanted), key=lambda c: (c.family, c.key)
    )


def attempt(case: Case) -> Outcome:
    """Plan, cut, run, train a step, fuse back, cut again."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, images = build(case.name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    plan = plan_pruning(model, images[:1], ratio=case.ratio)
    assert plan.seconds is not None
    total, own = plan.seconds
    seconds = (
        time.process_time() - start
    ) / total  # of the processor, per second on a clock: others use the machine
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    small = plan.extract(model)
    train_a_step(small, model, images)
    back = plan.extract(fuse_(copy.deepcopy(model), small, plan)).state_dict()
    if wrong := [name for name, x in small.state_dict().items() if not torch.equal(x, back[name])]:
        raise RuntimeError(f"fusing and cutting again changed {', '.join(wrong[:3])}")
    (params, few), (flops, less) = plan.params, plan.flops
    return Outcome("", seconds * (total - own), seconds * own, memory, few / params, less / flops, plan.notes)


def train_a_step(small: nn.Module, dense: nn.Module, inputs: Tensor) -> None:
    """Run a pruned model and train it for one step.

    Raises:
        RuntimeError: its outputs are not shaped as the dense model's, or no gradient reaches what it reaches there.
    """
    with torch.no_grad():
        shapes, expected = ([x.shape for x in _tensors(m.eval()(inputs))] for m in (small, dense))
    if shapes != expected:
        raise RuntimeError(f"outputs of shape {[*map(list, shapes)]} instead of {[*map(list, expected)]}")
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-3)
    without = _backward(small, inputs)
    optimizer.step()
    if without and (cut_off := without - _backward(copy.deepcopy(dense), inputs)):
        raise RuntimeError(
            f"no gradient reaches {', '.join(sorted(cut_off)[:3])}, as it does in the dense model"
        )


def _backward(model: nn.Module, inputs: Tensor) -> set[str]:
    """Backpropagate some loss in training mode; the parameters that get no gradient."""
    outputs = (x for x in _tensors(model.train()(inputs)) if x.requires_grad)
    torch.stack([x.square().mean() for x in outputs]).sum().backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is None}


def _tensors(outputs: Any) -> list[Tensor]:
    return [x for x in tree_leaves(outputs) if isinstance(x, Tensor)]


def run(case: Case) -> Outcome:
    """One case in a process of its own."""
    outcome = isolated.run(attempt, case, seconds=SECONDS, gibibytes=GIBIBYTES)
    return Outcome(outcome.why) if isinstance(outcome, isolated.Failed) else outcome


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    known = [(case, Outcome(**results[case.key])) for case in cases() if case.key in results]
    worked = sum(not outcome.error for _, outcome in known)
    lines = [
        "# Coverage",
        "",
        "Planned, cut out, run, trained for one step, fused back and cut again, from random weights, without repair by",
        f"hand: **{worked} of {len(known)}**. Written by `make coverage`; one thread, images of 64 pixels or of the size after",
        "the @ (Inception 299, MaxViT 224), 16 tokens. `params` and `FLOPs`: what is left. Seconds of one processor: in",
        "`torch.export` (of the dense model, and of the small one where sizes in the code are to be checked), and beyond it.",
        "MiB: what planning added to the peak of the process, export included.",
        "",
        "| family | model | ratio | result | params | FLOPs | export s | plan s | plan MiB | notes |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    reasons: dict[str, list[str]] = {}
    for case, x in known:
        numbers = ""
        for note in x.notes:
            where = reasons.setdefault(note.rpartition(": ")[0] or note, [])
            label = case.name if ":" in case.name else case.family
            if label not in where:
                where.append(label)
            numbers += f" {list(reasons).index(note.rpartition(': ')[0] or note) + 1}"
        cells = (
            case.family,
            case.name,
            f"{case.ratio:g}",
            x.error.replace("|", "/").replace("\n", " ") or "yes",
        )
        if x.error:
            lines.append(f"| {' | '.join(cells)} | | | | | | |")
        else:
            size = f"{x.params:.2f} | {x.flops:.2f} | {x.export_seconds:.1f} | {x.plan_seconds:.2f} | {x.memory:.0f}"
            lines.append(f"| {' | '.join(cells)} | {size} |{numbers} |")
    lines += ["", "Notes: what stayed whole, and why.", ""]
    lines += [f"{n}. {why} ({', '.join(where)})" for n, (why, where) in enumerate(reasons.items(), 1)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing in the results, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these models, run again")
    names = parser.parse_args(arguments).names
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for case in cases():
        if case.name in names or (not names and case.key not in results):
            outcome = run(case)
            results[case.key] = asdict(outcome)
            files.write_text(RESULTS, json.dumps(results, indent=1) + "\n")
            print(f"{case.key}: {outcome.error or 'yes'}", flush=True)
    files.write_text(TABLE, table(results))


if __name__ == "__main__":
    main()
