"""Pruning beside torch-pruning: which architectures, how long, how near a target, and how fast the small network is.

Every attempt is a process of its own, of one thread, under the same limit of time. It counts if the small network runs,
its outputs are shaped as the dense one's, it trains for a step, and something was pruned; one counter (torch's) says what
is left. Nobody's classifier is pruned, channels are ranked within their layer by the L2 norm of what leaves together.

torch-pruning is called as its README shows, with what its examples add for any model: the numbers of heads, and widths
divisible by them. Where that fails, the attributes that these set by hand after pruning are set, and where that
fails too the model is built without the auxiliary classifiers that its graph leaves out, as an example of it does. It has
no target: its way to one (reproduce/main.py there) is to prune in small steps until its own count is low enough.

``python -m benchmarks.peer`` tries all of torchvision and timm in benchmarks/zoo.py and the networks below, writes
``results/pruning.json`` after each, and goes on where it was stopped. ``pytest benchmarks/test_pruning.py`` does a part.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import isolated
from benchmarks.coverage import train_a_step
from benchmarks.zoo import SMALLEST, build, families
from prunefuse import _files as files
from prunefuse.bench import record
from prunefuse.pruning import Target, plan_pruning
from prunefuse.training import flops_per_input

RESULTS = Path(__file__).parent / "results" / "pruning.json"
NOT_INSTALLED = "not installed"
SECONDS, TARGET_SECONDS = 60, 180
STEPS = 100
"""Of torch-pruning's way to a target: each takes one of a hundred parts of the channels."""
GOALS = ("ratio", "flops", "parameters")
"""One half of the channels of every layer, or one half of the FLOPs or parameters of the network."""
NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "densenet121", "vit_b_16", "swin_t")
ROUND_TO = 8
"""For the networks that are timed, whose images are of 224 pixels."""
SOME_OF_TIMM = (
    *("resnet18d", "res2net50_14w_8s", "skresnet18", "cspresnet50", "dla34", "hrnet_w18_small", "rexnet_100"),
    *("regnety_002", "densenet121", "ghostnet_100", "repvit_m1", "convnext_atto", "mobilevit_xxs"),
    *("poolformer_s12", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "xcit_nano_12_p16_224"),
    *("swin_tiny_patch4_window7_224@224", "pvt_v2_b0", "mixer_s32_224@224"),
)
SMALL = (*SMALLEST, *(f"timm:{name}" for name in SOME_OF_TIMM))
ALL = tuple(name for name, family in families().items() if family != "transformers")


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt.

    Attributes:
        error: Why it failed; empty if it did not.
        way: Which of the contender's ways worked.
        cpu_seconds: From the dense model to the small one, of the process.
        seconds: The same on the clock.
        params: Ratio of parameters, small to dense.
        flops: Ratio of FLOPs.
    """

    error: str = ""
    way: str = ""
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    params: float = 1.0
    flops: float = 1.0


Prune = Callable[[nn.Module, Tensor, str, int], nn.Module]


def _ours(model: nn.Module, images: Tensor, goal: str, round_to: int) -> nn.Module:
    half: dict[str, Any] = {"ratio": 0.5} if goal == "ratio" else {"target": Target(goal, 0.5)}
    return plan_pruning(model, images[:1], round_to=round_to, **half).extract(model)


def _theirs(model: nn.Module, images: Tensor, goal: str, round_to: int, *, repair: bool = False) -> nn.Module:
    import torch_pruning as tp

    with torch.no_grad():
        classes = model.eval()(images).shape[-1]
    example = images[:1]
    widths = [m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    last = [
        m
        for m in model.modules()
        if classes in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))
    ]
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5 if goal == "ratio" else 1.0,
        iterative_steps=1 if goal == "ratio" else STEPS,
        ignored_layers=last,
        num_heads={qkv: m.num_heads for m, qkv in _attention(model)},
        in_channel_groups={},  # its defaults are one dictionary for all pruners
        out_channel_groups={},
        round_to=math.lcm(round_to, *widths) if round_to > 1 or widths else None,
    )

    def size() -> float:  # by its own count
        return tp.utils.count_ops_and_params(model, example)[("flops", "parameters").index(goal)]

    most = 0 if goal == "ratio" else size() / 2
    while pruner.current_step < pruner.iterative_steps:
        pruner.step()
        if repair:
            _repair(model)
        if most and size() <= most:
            break
    return model


def _repair(model: nn.Module) -> None:
    for module, qkv in _attention(model):
        module.attn_dim = qkv.out_features // 3
        module.head_dim = module.attn_dim // module.num_heads
    for module in model.modules():  # the one of its README: scales that view a parameter in a shape they hold
        if isinstance(getattr(module, "shape", None), tuple) and hasattr(module, "scale"):
            module.shape = tuple(module.scale.numel() if size > 1 else 1 for size in module.shape)
    if hasattr(model, "hidden_dim") and hasattr(model, "conv_proj"):
        model.hidden_dim = model.conv_proj.out_channels


def _attention(model: nn.Module) -> list[tuple[Any, Any]]:
    """Modules that say how many heads they have, with their linear map to queries, keys and values."""
    found = ((m, getattr(m, "qkv", getattr(m, "qkv_proj", None))) for m in model.modules())
    return [(m, qkv) for m, qkv in found if hasattr(m, "num_heads") and isinstance(qkv, nn.Linear)]


CONTENDERS: dict[str, dict[str, Prune]] = {
    "prunefuse": {"": _ours},
    "torch-pruning": {
        "": _theirs,
        "attributes set by hand": functools.partial(_theirs, repair=True),
        "without auxiliary classifiers": functools.partial(_theirs, repair=True),
    },
}
"""Ways to prune, each tried if those before failed. The last builds the model without, as torch-pruning's example."""


def attempt(
    name: str, contender: str, goal: str = "ratio", round_to: int = 1, save: Path | None = None
) -> Outcome:
    """Prune a model in one of the contender's ways; the small one is written to ``save``.

    Raises:
        Exception: whatever the first way raised, if all failed.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if contender == "torch-pruning":
        os.environ["TIMM_FUSED_ATTN"] = "0"  # as its example for timm
    errors = []
    for way, prune in CONTENDERS[contender].items():
        torch.manual_seed(0)
        dense, (images,) = build(name)
        if way == "without auxiliary classifiers":
            for attribute in ("aux1", "aux2", "AuxLogits"):
                setattr(dense, attribute, None)
            dense.aux_logits = False
        model = copy.deepcopy(dense)
        cpu, clock = time.process_time(), time.perf_counter()
        try:
            small = prune(model, images, goal, round_to)
            cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
            sizes = zip(_size(dense, images), _size(small, images), strict=True)
            params, flops = (after / before for before, after in sizes)
            if params == 1:
                raise RuntimeError("nothing was pruned")
            train_a_step(small, dense, (images,))
        except Exception as error:
            errors.append(error.with_traceback(None))  # it would hold the models
            continue
        if save:
            small.zero_grad()
            torch.save(small, save)
        return Outcome("", way, cpu, clock, params, flops)
    raise errors[0]


def _size(model: nn.Module, images: Tensor) -> tuple[int, float]:
    """Parameters, and FLOPs of a forward."""
    return sum(x.numel() for x in model.parameters()), flops_per_input(model.eval(), images[:1])


def latencies(name: str, saved: dict[str, Path]) -> dict[str, tuple[float, float, float]]:
    """Seconds of a forward of one image by the dense model and by small ones, in turns: the quartiles of each."""
    torch.set_num_threads(1)
    dense, (images,) = build(name)
    models = {"dense": dense.eval()}
    models |= {which: torch.load(path, weights_only=False).eval() for which, path in saved.items()}
    seconds: dict[str, list[float]] = {which: [] for which in models}
    start = time.perf_counter()
    with torch.no_grad():
        while len(seconds["dense"]) < 15 or time.perf_counter() - start < 20:
            for which, model in models.items():
                began = time.perf_counter()
                model(images[:1])
                seconds[which].append(time.perf_counter() - began)
    return {which: tuple(statistics.quantiles(times[3:])) for which, times in seconds.items()}


def compare(name: str) -> dict[str, Any]:
    """Every contender's attempt at half the channels."""
    return {contender: asdict(_run(name, contender)) for contender in CONTENDERS}


def compare_network(name: str) -> dict[str, Any]:
    """Every contender's attempts at every goal, and how fast the results are."""
    name = f"{name}@224"
    found: dict[str, Any] = {contender: {} for contender in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        saved = {}
        for contender, outcomes in found.items():
            for goal in GOALS:
                path = Path(folder) / f"{contender} {goal}"
                if "ratio" in outcomes and outcomes["ratio"]["error"]:
                    outcome = Outcome("not tried: it failed at a ratio")
                else:
                    outcome = _run(name, contender, goal, ROUND_TO, path)
                outcomes[goal] = asdict(outcome)
                if not outcome.error:
                    saved[f"{contender} {goal}"] = path
        times = isolated.run(latencies, name, saved, seconds=TARGET_SECONDS)
    return {**found, "latency": {"error": times.why} if isinstance(times, isolated.Failed) else times}


def _run(name: str, contender: str, goal: str = "ratio", *more: Any) -> Outcome:
    if contender != "prunefuse" and importlib.util.find_spec(contender.replace("-", "_")) is None:
        return Outcome(NOT_INSTALLED)
    seconds = SECONDS if goal == "ratio" else TARGET_SECONDS
    outcome = isolated.run(attempt, name, contender, goal, *more, seconds=seconds)
    return Outcome(outcome.why) if isinstance(outcome, isolated.Failed) else outcome


def main() -> None:
    """Measure what the file lacks."""
    now = {**record.header("python -m benchmarks.peer", torch.device("cpu")), "coverage": {}, "networks": {}}
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else now
    if content["versions"] != now["versions"]:
        raise SystemExit(f"{RESULTS} is of other versions: rename it to begin anew")
    for which, names, measure in (("coverage", ALL, compare), ("networks", NETWORKS, compare_network)):
        for name in names:
            if name not in content[which]:
                content[which][name] = measure(name)
                files.write_json(RESULTS, content)
                print(name, {k: x.get("error") for k, x in content[which][name].items()}, flush=True)
    from benchmarks.peer_tables import failures, tables

    print(f"{tables(content)}\n\n{failures(content)}")


if __name__ == "__main__":
    main()
