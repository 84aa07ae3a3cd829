"""Which architectures are pruned, cut out, run, trained for a step, fused back and reloaded, without repair by hand.

``python -m benchmarks.coverage`` runs every case in a process of its own, under a limit of time and memory, and writes
``results/coverage.json`` after each; cases that are in it already are not run again (delete the file to start over).
At the end the table ``docs/coverage.md`` is written from that file.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks import isolated
from benchmarks.zoo import BROUGHT, SMALLEST, build, families
from prunefuse import _files as files
from prunefuse.fusion import fuse_
from prunefuse.pruning import PruningPlan, load_pruned, plan_pruning

RESULTS = Path(__file__).parent / "results" / "coverage.json"
TABLE = Path(__file__).parents[1] / "docs" / "coverage.md"
SECONDS, GIBIBYTES = 600, 12
IMPORTS = (
    *("torchvision", "timm", "transformers.models.auto.modeling_auto", "diffusers", "peft", "ultralytics"),
    *("segmentation_models_pytorch", "monai.networks.nets", "torch_geometric.nn"),
)
_NORM = re.compile(r"(?i)(?<!batch)(?<!instance)norm|GRN")


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
        export_seconds: Processor time that it took to get the graphs of the dense and of the small model.
        plan_seconds: That of planning beyond it.
        memory: MiB that planning added to the peak of the process.
        params: Ratio of parameters, small to dense.
        flops: Ratio of FLOPs, as the plan counts them.
        notes: What was kept whole, and why.
        equal: What the small model was compared with, beside itself in a new process: "masked" if it is equal to the dense
            one that is zero where channels left, "norms" if norms take statistics over such channels, "" if it was not.
    """

    error: str
    export_seconds: float = 0.0
    plan_seconds: float = 0.0
    memory: float = 0.0
    params: float = 1.0
    flops: float = 1.0
    notes: tuple[str, ...] = ()
    equal: str = ""


def cases() -> list[Case]:
    """All at one half; the smallest of each of torchvision's families, and all of timm and transformers, at 0.3 and 0.7 too."""
    family = families()
    own = [name for name in family if family[name] in ("timm", "transformers") and "layers" not in name]
    small = [*SMALLEST, *own]
    wanted = [(name, 0.5) for name in family] + [(name, ratio) for name in small for ratio in (0.3, 0.7)]
    return sorted(
        (Case(family[name], name, ratio) for name, ratio in wanted), key=lambda c: (c.family, c.key)
    )


def attempt(case: Case, folder: Path) -> Outcome:
    """Plan, cut, run, compare with masking, train a step, fuse back, cut again, save to a folder."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, inputs = build(case.name)
    stir_(model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    plan = plan_pruning(model, inputs, ratio=case.ratio)
    assert plan.seconds is not None
    total, own = plan.seconds
    seconds = (
        time.process_time() - start
    ) / total  # of the processor, per second on a clock: others use the machine
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    tensors = dict(model.named_parameters())
    experts = [axes for name, axes in plan.kept.items() if "experts" in name and tensors[name].ndim == 3]
    if case.family == "experts" and not any(0 in axes for axes in experts):
        raise RuntimeError("no whole expert leaves")
    small = plan.extract(model)
    equal = compare_with_masking(small, model, plan, inputs)
    train_a_step(small, model, inputs)
    back = plan.extract(fuse_(copy.deepcopy(model), small, plan)).state_dict()
    # The gains of weights that are divided by a norm of their own are multiplied and divided: they are rounded.
    if wrong := [
        name for name, x in small.state_dict().items() if not torch.allclose(x, back[name], 1e-6, 0.0)
    ]:
        raise RuntimeError(f"fusing and cutting again changed {', '.join(wrong[:3])}")
    plan.save(folder / "plan.json")
    save_model(small, str(folder / "weights.safetensors"))
    tensors = {**_numbered("in", inputs), **_numbered("out", _outputs(small, inputs))}
    save_file(tensors, folder / "run.safetensors")
    (params, few), (flops, less) = plan.params, plan.flops
    rest = (few / params, less / flops, plan.notes, equal)
    return Outcome("", seconds * (total - own), seconds * own, memory, *rest)


def reload(case: Case, folder: Path) -> None:
    """Load what `attempt` saved, and run it.

    Raises:
        RuntimeError: the outputs are not what they were there.
    """
    torch.set_num_threads(1)
    plan = PruningPlan.load(folder / "plan.json")
    small = load_pruned(lambda: build(case.name)[0], plan, folder / "weights.safetensors")
    run = load_file(folder / "run.safetensors")
    inputs = tuple(run[f"in{i}"] for i in range(len(plan.inputs)))
    for place, made in _numbered("out", _outputs(small, inputs)).items():
        if made.shape != run[place].shape or not torch.allclose(made, run[place], 1e-5, 1e-6, equal_nan=True):
            raise RuntimeError(f"{place} is not what it was before saving")


def _numbered(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name}{i}": x.detach().clone().contiguous() for i, x in enumerate(tensors)}


def _outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What a model returns in evaluation mode; where it draws numbers, the same each time."""
    torch.manual_seed(1)
    with torch.no_grad():
        return _tensors(model.eval()(*inputs))


def stir_(model: nn.Module) -> None:
    """In place: move vectors, and statistics of norms, away from the zeros and ones that hide faults."""
    generator = torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        return torch.rand(x.shape, generator=generator).to(x) - 0.5

    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if x.is_floating_point() and name.endswith("running_var"):
                x.mul_(1 + noise(x))
            elif x.is_floating_point() and (name.endswith("running_mean") or isinstance(x, nn.Parameter)):
                x.add_(noise(x) * (0.2 if x.ndim < 2 else 0.02))


def compare_with_masking(
    small: nn.Module, dense: nn.Module, plan: PruningPlan, inputs: Sequence[Tensor]
) -> str:
    """Compare the small model with the dense one that is zero where channels left; what came of it, as in `Outcome`.

    Raises:
        RuntimeError: the outputs differ, and no norm takes statistics over what left.
    """
    masked = copy.deepcopy(dense)
    tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    with torch.no_grad():
        for name, axes in plan.kept.items():
            for axis, kept in axes.items():
                gone = set(range(tensors[name].shape[axis])).difference(kept)
                tensors[name].index_fill_(axis, torch.tensor(sorted(gone)), 0)
    if _normalized(masked, inputs) != _normalized(small, inputs):
        return "norms"
    exact = [copy.deepcopy(model).double() for model in (small, masked)]
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    try:
        pairs, tolerance = [_outputs(model, wide) for model in exact], 1e-6
    except RuntimeError:  # its code has a type of its own
        pairs, tolerance = [_outputs(model, inputs) for model in (small, masked)], 1e-3
    if pairs[0] and pairs[0][0].dtype in (torch.bfloat16, torch.float16):
        tolerance = 0.1
    for place, (mine, other) in enumerate(zip(*pairs, strict=True)):
        if mine.shape != other.shape:
            raise RuntimeError(f"output {place} is {[*mine.shape]}, of the masked model {[*other.shape]}")
        scale = float(other.abs().max()) if other.numel() else 0.0
        error = float((mine - other).abs().max()) if other.numel() else 0.0
        if not error <= tolerance * scale:
            raise RuntimeError(
                f"output {place} differs from the masked model's by {error:.2g} of {scale:.2g}"
            )
    return "masked"


def _normalized(model: nn.Module, inputs: Sequence[Tensor]) -> list[tuple[str, tuple[int, ...]]]:
    """Every call of a norm that takes statistics over channels, with the shape of its input."""
    calls: list[tuple[str, tuple[int, ...]]] = []

    def note(path: str) -> Any:
        return lambda module, given: calls.append((path, tuple(given[0].shape)))

    handles = [
        module.register_forward_pre_hook(note(path))
        for path, module in model.named_modules()
        if not list(module.children()) and _NORM.search(type(module).__name__)
    ]
    _outputs(model, inputs)
    for handle in handles:
        handle.remove()
    return calls


def train_a_step(small: nn.Module, dense: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Run a pruned model and train it for one step.

    Raises:
        RuntimeError: its outputs are not shaped as the dense model's, or no gradient reaches what it reaches there.
    """
    shapes, expected = ([x.shape for x in _outputs(model, inputs)] for model in (small, dense))
    # How many boxes a detector finds depends on its weights.
    same = len(shapes) == len(expected) and all(a[1:] == b[1:] for a, b in zip(shapes, expected, strict=True))
    if not same:
        raise RuntimeError(f"outputs of shape {[*map(list, shapes)]} instead of {[*map(list, expected)]}")
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-3)
    without = _backward(small, inputs)
    optimizer.step()
    if without and (cut_off := without - _backward(copy.deepcopy(dense), inputs)):
        raise RuntimeError(
            f"no gradient reaches {', '.join(sorted(cut_off)[:3])}, as it does in the dense model"
        )


def _backward(model: nn.Module, inputs: Sequence[Tensor]) -> set[str]:
    """Backpropagate some loss in training mode; the parameters that get no gradient."""
    outputs = (x for x in _tensors(model.train()(*inputs)) if x.requires_grad)
    torch.stack([x.float().square().mean() for x in outputs]).sum().backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is None}


def _tensors(outputs: Any) -> list[Tensor]:
    return [x for x in tree_leaves(outputs) if isinstance(x, Tensor)]


def run(case: Case, seconds: float = SECONDS) -> Outcome:
    """One case in a process of its own, and what it saves in another."""
    with TemporaryDirectory() as folder:
        limits: dict[str, Any] = {"seconds": seconds, "gibibytes": GIBIBYTES, "imports": IMPORTS}
        outcome = isolated.run(attempt, case, Path(folder), **limits)
        if isinstance(outcome, isolated.Failed):
            return Outcome(outcome.why)
        again = isolated.run(reload, case, Path(folder), **limits)
        return replace(outcome, error=f"reloaded: {again.why}") if again is not None else outcome


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    known = [(case, Outcome(**results[case.key])) for case in cases() if case.key in results]
    worked = sum(not outcome.error for _, outcome in known)
    brought = [(case, outcome) for case, outcome in known if case.family in BROUGHT]
    failed = [f"`{case.name}` ({outcome.error})" for case, outcome in brought if outcome.error]
    total, named = sum(map(len, BROUGHT.values())), f"; not {', '.join(failed)}" if failed else ""
    lines = [
        "# Coverage",
        "",
        "Planned, cut out, run, trained for one step, fused back, cut again, saved, and loaded in a new process, from random",
        f"weights, without repair by hand: **{worked} of {len(known)}**. Written by `make coverage`; one thread, images of",
        "64 pixels or of the size after the @ (Inception 299, MaxViT 224), 16 tokens. `equal`: the small model gives what the",
        "dense one gives that is zero where channels left (masked), or norms take statistics over such channels (norms), so",
        "that the two differ; rows without a word were tried before this, and reloading, were part of the check. `params` and",
        "`FLOPs`: what is left. Seconds of one processor: to get the graphs (of the dense model, and of the small one where",
        "sizes in the code are to be checked), and beyond it. MiB: what planning added to the peak of the process.",
        "",
        f"Of {total} that people bring beside classifiers (detectors, segmentation, video, optical flow, graphs, diffusion,",
        f"language, mixtures, adapters; tied, frozen and in bfloat16): **{len(brought) - len(failed)}**{named}.",
        "",
        "| family | model | ratio | result | equal | params | FLOPs | graph s | plan s | plan MiB | notes |",
        "|---|---|--:|---|---|--:|--:|--:|--:|--:|--:|",
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
            lines.append(f"| {' | '.join(cells)} | | | | | | | |")
        else:
            seconds = f"{x.export_seconds:.1f} | {x.plan_seconds:.2f}"
            size = f"{x.equal} | {x.params:.2f} | {x.flops:.2f} | {seconds} | {x.memory:.0f}"
            lines.append(f"| {' | '.join(cells)} | {size} |{numbers} |")
    lines += ["", "Notes: what stayed whole, and why.", ""]
    lines += [f"{n}. {why} ({', '.join(where)})" for n, (why, where) in enumerate(reasons.items(), 1)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing in the results, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these models or kinds, run again")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit for each model")
    chosen = parser.parse_args(arguments)
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for case in cases():
        again = case.name in chosen.names or case.family in chosen.names
        if again or (not chosen.names and case.key not in results):
            outcome = run(case, chosen.seconds)
            results[case.key] = asdict(outcome)
            files.write_text(RESULTS, json.dumps(results, indent=1) + "\n")
            print(f"{case.key}: {outcome.error or 'yes'}", flush=True)
    files.write_text(TABLE, table(results))


if __name__ == "__main__":
    main()
