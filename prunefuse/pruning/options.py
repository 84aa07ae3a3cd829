"""What a user can say about a plan: types, defaults and checks, for models of PyTorch and for ONNX files alike."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from numbers import Real
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from torch import nn
from typing_extensions import TypedDict

from prunefuse._inputs import Inputs, checked_inputs
from prunefuse._options import require, require_type
from prunefuse.pruning._choose.gradients import Loss
from prunefuse.pruning._choose.ranking import NORMALIZATIONS, RANKINGS, ROUNDINGS, Selection
from prunefuse.pruning._choose.scores import AGGREGATIONS, SCOPES, Function, Scores, Scoring
from prunefuse.pruning._choose.targets import Target
from prunefuse.pruning._graph.copies import all_names

PRESETS = {
    "prunefuse": {"scope": "writers", "aggregation": "norm", "normalization": "none", "ranking": "local"},
    "spa": {"scope": "coupled", "aggregation": "sum", "normalization": "mean", "ranking": "global"},
}
HEADS = ("whole", "inside")
_CHOICES = {
    "scope": SCOPES,
    "aggregation": AGGREGATIONS,
    "normalization": NORMALIZATIONS,
    "ranking": RANKINGS,
}


@dataclass(frozen=True)
class Key:
    """What there is to say about a planning option: its default, and its text in docstrings."""

    default: Any
    text: str


class PlanOptions(TypedDict, total=False):
    """What can be said about a plan, of a model of PyTorch and of an ONNX file alike; each key says its default and meaning.

    Functions that plan take these as ``**options: Unpack[PlanOptions]``, so that completion and mypy know them.
    """

    ratio: Annotated[
        float | Fraction | None,
        Key(
            None,
            "The fraction of channels to remove, 0 <= ratio < 1. None means 0.5; beside ``ratios``, 0.",
        ),
    ]
    target: Annotated[
        Target | None,
        Key(
            None,
            "Instead of ``ratio``, what the small model may cost: the smallest ratio is taken that keeps to it. Of an ONNX "
            "file: parameters, FLOPs or memory.",
        ),
    ]
    criterion: Annotated[
        str | Function,
        Key(
            "l2",
            "A name or a function (parameter, gradient or None) -> scores of its elements; see "
            "`prunefuse.pruning.criteria.Scoring`, also for ``scope`` and ``aggregation``.",
        ),
    ]
    ranking: Annotated[
        str | None,
        Key(
            None,
            '``"local"``: within each axis; ``"global"``: the ratio is of all coupled channels, each counts once. None: '
            "the preset's.",
        ),
    ]
    rounding: Annotated[
        str | None,
        Key(
            None,
            '``"floor"``, ``"nearest"`` (halves up) or ``"ceil"``, of the kept count. None: ``"floor"`` for a ratio, and '
            '``"nearest"`` for a target, which leaves more heads to attention that has few.',
        ),
    ]
    ignore: Annotated[
        Iterable[str] | str,
        Key(
            (),
            'Names of modules, or patterns such as ``"stage1.*.conv2"`` (`fnmatch`), whose output channels are kept '
            "whole; a module stands for all those inside it. A parameter or buffer by its name keeps the channels that it "
            "writes, or has. What is tied to those channels stays whole as well.",
        ),
    ]
    seed: Annotated[int, Key(0, 'For ``"random"``, and for what is random in ``loss``.')]
    preset: Annotated[
        str,
        Key(
            "prunefuse",
            '``"prunefuse"`` is the norm of the weights that write a channel, in local ranking. ``"spa"`` is the sum over all '
            "parameters of the coupled channel, divided by the mean in its group, in global ranking. Options given beside a "
            "preset take the place of its own.",
        ),
    ]
    scope: Annotated[str | None, Key(None, '``"writers"`` or ``"coupled"``.')]
    aggregation: Annotated[str | None, Key(None, '``"norm"``, ``"sum"``, ``"mean"``, ``"max"`` or ``"l2"``.')]
    normalization: Annotated[
        str | None,
        Key(
            None,
            '``"none"``, or scores divided by the ``"sum"``, ``"mean"`` or ``"max"`` of magnitudes in their group. '
            "A group is the channels that live on the same axes of the same tensors.",
        ),
    ]
    ratios: Annotated[
        Mapping[str, float] | None,
        Key(
            None,
            "Name or pattern of modules -> the ratio for the channels that they write, whatever the others lose. The last "
            "name that matches holds. Tied channels with several ratios take the smallest.",
        ),
    ]
    round_to: Annotated[
        int,
        Key(1, "Axes keep multiples of so many channels, where couplings allow it, or stay whole."),
    ]
    min_channels: Annotated[int, Key(1, "Axes keep at least so many.")]
    min_fraction: Annotated[
        float | Fraction | None,
        Key(
            None,
            "Axes keep at least this part of their channels, 0 <= min_fraction < 1, rounded up; in several steps, of what the "
            "step before left. None: a tenth in global ranking, where no entry of ``ratios`` says what they lose; nothing in "
            "local ranking.",
        ),
    ]
    uniform: Annotated[
        bool,
        Key(
            False,
            "Axes of the model that are equally long keep equally many channels, by local ranking, where couplings allow. So "
            "layers that repeat stay as wide as each other, and a configuration with one size for all can say it.",
        ),
    ]
    scores: Annotated[
        Scores | None,
        Key(
            None,
            "Instead of a criterion: tensor name -> axis -> a score for each index there, summed (or as ``aggregation`` "
            "says) over what is coupled. Channels that have none are kept.",
        ),
    ]


class ModulePlanOptions(PlanOptions, total=False):
    """What can be said about a plan of a model of PyTorch."""

    heads: Annotated[
        str,
        Key(
            "whole",
            'What attention loses: ``"whole"`` heads, or ``"inside"``: all heads stay, and each loses the same channels of '
            "its queries and keys, and of its values. Their scores keep the scale of the dense heads. Attention that cannot "
            "lose channels inside loses whole heads, with a note.",
        ),
    ]
    loss: Annotated[
        Loss | None,
        Key(
            None,
            "For criteria with gradients: (model, batch) -> the loss. None: cross entropy for batches (x, y), and the loss "
            "that the model itself returns for batches of inputs by name.",
        ),
    ]
    batches: Annotated[
        Iterable[Any] | None,
        Key(
            None,
            "The data of criteria that need some: a list of batches, a data loader. Its length is the user's choice; read "
            "in the mode that the model is in, from a copy. A function as criterion is given gradients if there are "
            "batches; other criteria do not read them.",
        ),
    ]
    expressed_by: Annotated[
        str,
        Key(
            "module",
            'What the small network will be. ``"module"``: a model of the same class, so that channels stay where the '
            'code of a module has sizes written in it. ``"program"``: the exported program, in whose graph every size '
            "follows.",
        ),
    ]


def keys(kind: type) -> dict[str, tuple[Any, Key]]:
    """Name of a planning option -> its type, and what there is to say about it."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: get_args(hint) for name, hint in hints.items()}


F = TypeVar("F", bound=Callable[..., Any])


def lists(kind: type, *without: str) -> Callable[[F], F]:
    """Put the planning options of ``kind`` into a function's signature, and into its docstring for ``options:``."""

    def wrap(function: F) -> F:
        shown = {name: value for name, value in keys(kind).items() if name not in without}
        signature = inspect.signature(function)
        first = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=key.default, annotation=hint)
            for name, (hint, key) in shown.items()
        ]
        function.__signature__ = signature.replace(parameters=[*first, *more])  # type: ignore[attr-defined]
        lines = (function.__doc__ or "").splitlines(keepends=True)
        at = next(i for i, line in enumerate(lines) if line.lstrip().startswith("options:"))
        indent = lines[at][: -len(lines[at].lstrip())]
        lines[at : at + 1] = [f"{indent}{name}: {key.text}\n" for name, (_, key) in shown.items()]
        function.__doc__ = "".join(lines)
        return function

    return wrap


def completed(caller: str, kind: type, options: Mapping[str, Any]) -> Any:
    """Planning options with the defaults of those left out.

    Raises:
        TypeError: an option that there is not.
    """
    allowed = keys(kind)
    if strangers := [name for name in options if name not in allowed]:
        raise TypeError(f"options of {caller} must be of {', '.join(allowed)}, got {strangers[0]!r}")
    return {name: options.get(name, key.default) for name, (_, key) in allowed.items()}


@dataclass(frozen=True)
class Options:
    """How channels are scored, and how many of them leave.

    Attributes:
        ratio: The fraction to remove; without meaning beside a target.
        target: Instead of it, what the small model may cost.
        scoring: How channels are scored.
        normalization: By what of their group scores are divided.
        selection: How many are kept.
        own_ratios: Name of a module or tensor -> the ratio of the channels that it writes.
        uniform: Whether axes that are equally long keep equally many channels.
        heads: What attention loses, of :data:`HEADS`.
    """

    ratio: Fraction
    target: Target | None
    scoring: Scoring
    normalization: str
    selection: Selection
    own_ratios: Mapping[str, Fraction]
    uniform: bool = False
    heads: str = "whole"

    @property
    def notes(self) -> tuple[str, ...]:
        """How scores were made, where it is not PruneFuse's way."""
        own = {
            "scope": self.scoring.scope,
            "aggregation": self.scoring.aggregation,
            "normalization": self.normalization,
        }
        if own.items() <= PRESETS["prunefuse"].items():
            return ()
        by = "" if self.normalization == "none" else f", over the {self.normalization} of their group"
        return (f"scores of {self.scoring.scope} parameters, aggregation {self.scoring.aggregation}{by}",)

    def check_pruned(
        self, kept: object, ratio: Fraction, notes: tuple[str, ...], reasons: Callable[[], tuple[str, ...]]
    ) -> None:
        """Raise ``ValueError`` with the reasons if nothing was pruned although something was to be."""
        if kept or not (ratio or any(self.own_ratios.values())):
            return
        raise ValueError(f"nothing was pruned at ratio {float(ratio):g}: {'; '.join((*notes, *reasons()))}")


def checked_options(
    wanted: PlanOptions, criteria: tuple[str, ...], matching: Callable[[str], Iterable[str]]
) -> Options:
    """What planning options mean.

    Args:
        wanted: All of them; see `completed`.
        criteria: The names that ``criterion`` may have.
        matching: A pattern in ``ratios`` -> the modules or tensors that it means.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option has a value that is not allowed.
    """
    ratio, target, ratios, criterion = (
        wanted["ratio"],
        wanted["target"],
        wanted["ratios"],
        wanted["criterion"],
    )
    if target is not None and not isinstance(target, Target):
        raise TypeError(f"target must be a Target, got {type(target).__name__}")
    if ratio is not None and target is not None:
        raise ValueError("target must be left out beside a ratio, got both")
    fraction = checked_ratio("ratio", (0 if ratios else 0.5) if ratio is None else ratio)
    if not callable(criterion):
        check_choice("criterion", criterion, criteria)
    check_choice("preset", wanted["preset"], tuple(PRESETS))
    instead = {name: wanted[name] for name in _CHOICES}  # type: ignore[literal-required]
    settings = {
        **PRESETS[wanted["preset"]],
        **{name: value for name, value in instead.items() if value is not None},
    }
    for name, allowed in _CHOICES.items():
        check_choice(name, settings[name], allowed)
    require_type(wanted["uniform"], bool, "uniform", "True or False")
    if wanted["uniform"]:
        require(wanted["ranking"] != "global", "ranking", "local with uniform=True", wanted["ranking"])
        settings["ranking"] = "local"
    heads = str(wanted.get("heads", "whole"))  # ONNX files have no such option
    check_choice("heads", heads, HEADS)
    rounding = wanted["rounding"]
    if rounding is None:
        rounding = "floor" if target is None else "nearest"
    check_choice("rounding", rounding, tuple(ROUNDINGS))
    check_count("round_to", wanted["round_to"])
    check_count("min_channels", wanted["min_channels"])
    fraction_left = wanted["min_fraction"]
    if fraction_left is not None:
        fraction_left = checked_ratio("min_fraction", fraction_left)
    own: dict[str, Fraction] = {}
    for pattern, value in (ratios or {}).items():
        own.update(dict.fromkeys(matching(pattern), checked_ratio(f"ratios[{pattern!r}]", value)))
    return Options(
        fraction,
        target,
        Scoring(criterion, settings["scope"], settings["aggregation"], wanted["seed"], wanted["scores"]),
        settings["normalization"],
        Selection(
            settings["ranking"],
            rounding,
            wanted["round_to"],
            wanted["min_channels"],
            fraction_left,
        ),
        own,
        wanted["uniform"],
        heads,
    )


def inputs_for(
    model: nn.Module, example_inputs: Any = None, example_kwargs: Mapping[str, Any] | None = None
) -> Inputs:
    """The inputs, on the device of the model."""
    inputs = checked_inputs(model, example_inputs, example_kwargs)
    devices = {tensor.device for _, tensor in all_names(model).values()}
    if len(devices) != 1 or all(x.device in devices for x in inputs.tensors):
        return inputs
    return inputs.map(lambda x: x.to(next(iter(devices))))


def checked_ratio(argument: str, ratio: float | Fraction) -> Fraction:
    """A ratio in [0, 1), exactly."""
    if isinstance(ratio, bool) or not isinstance(ratio, float | int | Real):
        raise TypeError(f"{argument} must be a number, got {type(ratio).__name__}")
    require(0 <= ratio < 1, argument, "in [0, 1)", ratio)
    return Fraction(str(ratio))  # the decimal that was written: 10 * (1 - 0.9) is 1


def check_choice(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless the value is one of those allowed."""
    require(value in allowed, argument, f"one of {', '.join(allowed)}", value)


def check_count(argument: str, value: int) -> None:
    """Raise unless the value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument} must be a whole number, got {type(value).__name__}")
    require(value >= 1, argument, "at least 1", value)


def matching_modules(
    model: nn.Module, argument: str, patterns: Iterable[str] | str, tensors: bool = False
) -> set[str]:
    """Paths of the modules with these names or patterns, and of all inside them; also names of tensors, if wanted."""
    paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    names = [*all_names(model)] if tensors else []
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} must be names of modules, got {type(pattern).__name__}")
        matches = [path for path in paths if fnmatchcase(path, pattern)]
        if not matches:
            matches = [name for name in names if fnmatchcase(name, pattern)]
            chosen.update(matches)
        if not matches:
            kinds = "modules, parameters or buffers" if tensors else "modules"
            raise ValueError(f"{argument} must match {kinds} of the model, got {pattern!r}")
        chosen |= {
            path for path in paths for match in matches if path == match or path.startswith(match + ".")
        }
    return chosen
