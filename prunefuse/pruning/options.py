"""What a user can say about scores and counts, checked; the same for models of PyTorch and for ONNX files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from prunefuse.pruning._choose.ranking import NORMALIZATIONS, RANKINGS, ROUNDINGS, Selection
from prunefuse.pruning._choose.scores import AGGREGATIONS, SCOPES, Function, Scores, Scoring
from prunefuse.pruning._choose.targets import Target
from prunefuse.pruning._graph.trace import Trace
from prunefuse.pruning.arguments import check_choice, check_count, checked_ratio

PRESETS = {
    "prunefuse": {"scope": "writers", "aggregation": "norm", "normalization": "none", "ranking": "local"},
    "spa": {"scope": "coupled", "aggregation": "sum", "normalization": "sum", "ranking": "global"},
}


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
    """

    ratio: Fraction
    target: Target | None
    scoring: Scoring
    normalization: str
    selection: Selection
    own_ratios: Mapping[str, Fraction]

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

    def check_pruned(self, kept: object, ratio: Fraction, found: Trace) -> None:
        """Raise ``ValueError`` with the reasons if nothing was pruned although something was to be."""
        if kept or not (ratio or any(self.own_ratios.values())):
            return
        why = found.note_lines() or (
            "every channel is an input, an output, ignored, the only one of its axis, or too few are left to round",
        )
        raise ValueError(f"nothing was pruned at ratio {float(ratio):g}: {'; '.join(why)}")


def checked_options(
    *,
    ratio: float | Fraction | None,
    target: Target | None,
    criterion: str | Function,
    criteria: tuple[str, ...],
    ranking: str | None,
    rounding: str,
    seed: int,
    preset: str,
    scope: str | None,
    aggregation: str | None,
    normalization: str | None,
    ratios: Mapping[str, float] | None,
    matching: Callable[[str], Iterable[str]],
    round_to: int,
    min_channels: int,
    scores: Scores | None,
) -> Options:
    """The options of :func:`plan_pruning`, under the same names.

    Args:
        criteria: The names that ``criterion`` may have.
        matching: A pattern in ``ratios`` -> the modules or tensors that it means.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a value that is not allowed.
    """
    if target is not None and not isinstance(target, Target):
        raise TypeError(f"target: expected a Target, got {type(target).__name__}")
    if ratio is not None and target is not None:
        raise ValueError("target: expected a ratio or a target, not both")
    fraction = checked_ratio("ratio", (0 if ratios else 0.5) if ratio is None else ratio)
    if not callable(criterion):
        check_choice("criterion", criterion, criteria)
    check_choice("preset", preset, tuple(PRESETS))
    given = {"scope": scope, "aggregation": aggregation, "normalization": normalization, "ranking": ranking}
    settings = {**PRESETS[preset], **{name: value for name, value in given.items() if value is not None}}
    choices = {
        "scope": SCOPES,
        "aggregation": AGGREGATIONS,
        "normalization": NORMALIZATIONS,
        "ranking": RANKINGS,
    }
    for name, allowed in choices.items():
        check_choice(name, settings[name], allowed)
    check_choice("rounding", rounding, tuple(ROUNDINGS))
    check_count("round_to", round_to)
    check_count("min_channels", min_channels)
    own: dict[str, Fraction] = {}
    for pattern, value in (ratios or {}).items():
        own.update(dict.fromkeys(matching(pattern), checked_ratio(f"ratios[{pattern!r}]", value)))
    return Options(
        fraction,
        target,
        Scoring(criterion, settings["scope"], settings["aggregation"], seed, scores),
        settings["normalization"],
        Selection(settings["ranking"], rounding, round_to, min_channels),
        own,
    )
