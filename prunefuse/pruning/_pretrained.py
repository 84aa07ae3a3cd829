"""A small model of Hugging Face's transformers as a folder that ``from_pretrained`` reads.

A configuration has sizes for all layers, and the model's class makes shapes of them in its own way. So nothing is known
here of names such as ``intermediate_size``. Each number of the configuration is doubled, and a model without values is built:
the shapes and attributes that change are those that this number decides. What they are in the small model tells what the number
must be.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations, product
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from prunefuse import _files as files
from prunefuse._inputs import Inputs, outputs_in
from prunefuse._seeds import isolated
from prunefuse.pruning._graph.copies import all_names, copied
from prunefuse.pruning._graph.export import first_line, quiet

Leaf: TypeAlias = tuple[str | int, ...]
"""Where a number is in a configuration: attributes, and a position for one of a list."""
Place: TypeAlias = tuple[str, str | int]
"""A tensor and its axis, or a module and its attribute."""
Sizes: TypeAlias = dict[Place, int | float]
State: TypeAlias = dict[Leaf, int]
Attributes: TypeAlias = Mapping[str, Mapping[str, int | tuple[int, ...]]]

PLAN = "plan.json"
_CANDIDATES = 3  # values that are tried for a number
_TOLERANCE = 1e-3  # of outputs: sums are in another order where a library chooses another kernel


def write(folder: Path, small: nn.Module, plan: str, attributes: Attributes, inputs: Inputs | None) -> None:
    """Make the folder, and compare what is read from it with the small model.

    Args:
        folder: Where.
        small: The small model.
        plan: The content of the plan's file.
        attributes: Those that the plan changes.
        inputs: What the model was planned for; None where that cannot be made again.

    Raises:
        TypeError, ValueError, OSError: As of ``PruningPlan.save_pretrained``.
    """
    config = getattr(small, "config", None)
    library: Any = type(small)
    if not all(
        (hasattr(config, "to_dict"), *(hasattr(library, f"{way}_pretrained") for way in ("save", "from")))
    ):
        raise TypeError(
            "small must be a model of Hugging Face's transformers, with a configuration and save_pretrained, got "
            f"{library.__name__}: plan.save_model saves any model"
        )
    fitting = fitted(small, config, attributes)
    shown: Any = copy.copy(small)  # the same tensors, another configuration
    vars(shown)["config"] = fitting
    with files.new_folder(folder) as temporary, quiet(), _without_progress_bars():
        shown.save_pretrained(temporary)
        (temporary / PLAN).write_bytes(files.utf8(plan))
        _check_same(small, library.from_pretrained(temporary), inputs)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """While it lasts, transformers and diffusers show none, those that are imported."""
    modules = [sys.modules.get(f"{library}.utils.logging") for library in ("transformers", "diffusers")]
    active: list[Any] = [x for x in modules if x is not None and x.is_progress_bar_enabled()]
    for module in active:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in active:
            module.enable_progress_bar()


def fitted(small: nn.Module, config: Any, attributes: Attributes) -> Any:
    """A configuration of which the model's class builds the small model.

    Attributes of modules guide the search, but some are read by nothing. Whether those that matter are right, outputs say.

    Args:
        small: The small model.
        config: That of the dense one.
        attributes: Those that the plan changes.

    Raises:
        ValueError: There is none, or none was found; the message names tensors.
    """
    search = _Search(small, config, attributes)
    best = search.best()
    wrong = search.mismatches(best)
    if wrong is None:
        raise ValueError(
            f"small must be of a class that builds itself of its configuration, got {type(small).__name__}: {search.why}"
        )
    if tensors := {place: sizes for place, sizes in wrong.items() if isinstance(place[1], int)}:
        raise ValueError(
            f"small must have sizes that its configuration can say, got {_told(tensors)}. plan_pruning(..., uniform=True) "
            "keeps layers equally wide, ignore= keeps them whole, and plan.save_model saves any widths"
        )
    return _with(config, best)


class _Search:
    """Numbers of a configuration, and how far what is built of them is from a small model."""

    def __init__(self, small: nn.Module, config: Any, attributes: Attributes) -> None:
        self.why = ""
        self._kind, self._config, self._attributes = type(small), config, attributes
        self._tried: dict[tuple[tuple[Leaf, int], ...], Sizes | None] = {}
        self._values = dict(_leaves(config))
        self._target = _sizes(small, attributes)
        self._dense = self._built({}) or {}
        self._implied = self._found_implied()
        self._values |= self._implied

    def best(self) -> State:
        """The numbers that change, and to what."""
        options = {
            leaf: values for leaf, value in self._values.items() if (values := self._candidates(leaf, value))
        }
        state = {leaf: candidates[0] for leaf, candidates in options.items()}
        choices = {leaf: [self._values[leaf], *mine] for leaf, mine in options.items()}
        near = dict(self._implied)
        for start in ({**state, **self._implied}, {**self._implied, **state}, near):
            if self._distance(near)[0]:
                near = min((near, self._descended(start, choices)), key=self._distance)
        # What a configuration leaves open, as the width inside of GPT-2, follows from other numbers until it is said.
        wrong = self.mismatches(near) or {}
        sizes = Counter(int(mine) for mine, _ in wrong.values() if mine is not None and mine == int(mine))
        said = [size for size, _ in sizes.most_common(_CANDIDATES)]
        best = self._descended(near, dict.fromkeys(_open_leaves(self._config), said) if wrong else {})
        for leaf in self._implied:  # what need not be said is not
            rest = {other: value for other, value in best.items() if other != leaf}
            best = min((rest, best), key=self._distance)
        return best

    def _found_implied(self) -> State:
        """What the configuration of the dense model leaves open, and its modules have: mostly how wide a head is.

        It follows from other numbers there, as a quotient, which may be another one in the small model.
        """
        implied: State = {}
        for leaf in _open_leaves(self._config):
            values = {
                size for (_, name), size in self._dense.items() if name == leaf[0] and type(size) is int
            }
            if len(values) == 1:
                value = int(values.pop())
                if self._built({leaf: value}) == self._dense != self._built({leaf: 2 * value}):
                    implied[leaf] = value
        return implied

    def mismatches(self, state: State) -> dict[Place, tuple[float | None, float | None]] | None:
        """Place -> the size in the small model and that of the configuration; None if nothing can be built."""
        built = self._built(state)
        if built is None:
            return None
        return {
            place: (self._target.get(place), built.get(place))
            for place in dict.fromkeys((*self._target, *built))
            if self._target.get(place) != built.get(place)
        }

    def _descended(self, state: State, options: Mapping[Leaf, list[int]]) -> State:
        """The nearest that is found by changing one number at a time, or two where constraints tie them."""
        together = 1
        while together <= 2 and self._distance(state) > (0, 0):
            tries = [
                {**state, **dict(zip(leaves, values, strict=True))}
                for leaves in combinations(options, together)
                for values in product(*(options[leaf] for leaf in leaves))
            ]
            nearest = min(tries, key=self._distance, default=state)
            closer = self._distance(nearest) < self._distance(state)
            state, together = (nearest, 1) if closer else (state, together + 1)
            if together == 2 and self._distance(state)[0] == 0:
                break  # attributes alone, of which some are read by nothing
        return state

    def _distance(self, state: State) -> tuple[float, float]:
        """How many sizes of tensors are wrong, and how many attributes."""
        wrong = self.mismatches(state)
        if wrong is None:
            return float("inf"), 0
        tensors = sum(isinstance(where, int) for _, where in wrong)
        return tensors, len(wrong) - tensors

    def _candidates(self, leaf: Leaf, value: int) -> list[int]:
        """What a number may be, the most likely first, by the places that change when it is doubled."""
        probe = self._built({**self._implied, leaf: 2 * value})
        if probe == self._dense:
            return []
        moved = [place for place in self._dense if probe is None or probe.get(place) != self._dense[place]]
        mine, others = self._votes(value, moved), self._votes(value, list(self._dense))
        return list(dict.fromkeys([*mine, *others]))

    def _votes(self, value: int, places: Sequence[Place]) -> list[int]:
        """What a number would be if it changed as sizes at these places do; the most frequent first."""
        votes: Counter[int] = Counter()
        for place in places:
            before, after = self._dense[place], self._target.get(place)
            scaled = value * after / before if after and before else 0
            if after != before and scaled >= 1 and scaled == int(scaled):
                votes[int(scaled)] += 1
        return [number for number, _ in votes.most_common(_CANDIDATES)]

    def _built(self, state: State) -> Sizes | None:
        """The sizes of the model that a configuration with these numbers gives; None if it gives none."""
        said = dict(_leaves(self._config))
        changes = {leaf: new for leaf, new in state.items() if said.get(leaf) != new}
        key = tuple(sorted(changes.items(), key=repr))
        if key not in self._tried:
            try:
                with quiet(), isolated(0), torch.device("meta"):
                    model = self._kind(_with(self._config, changes))
                self._tried[key] = _sizes(model, self._attributes)
            except Exception as error:  # a class may refuse numbers in any way
                self.why = first_line(error)
                self._tried[key] = None
        return self._tried[key]


def _sizes(model: nn.Module, attributes: Attributes) -> Sizes:
    """Lengths of all axes, and the numbers that modules hold: how many heads there are, and by what scores are scaled."""
    sizes: Sizes = {
        (name, axis): size
        for name, (_, tensor) in all_names(model).items()
        for axis, size in enumerate(tensor.shape)
    }
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if type(value) in (int, float) and not name.startswith("_"):
                sizes[path, name] = value
        for name in attributes.get(path, ()):
            value = module
            for part in name.split("."):
                value = getattr(value, part, None)
            if type(value) in (int, float):
                sizes[path, name] = value
    return sizes


def _leaves(config: Any, above: Leaf = ()) -> Iterator[tuple[Leaf, int]]:
    """The numbers of a configuration, and of those inside of it, that may be sizes."""
    for name, value in vars(config).items():
        if name.startswith("_"):
            continue
        if hasattr(value, "to_dict"):
            yield from _leaves(value, (*above, name))
        elif isinstance(value, list | tuple):
            yield from (((*above, name, i), x) for i, x in enumerate(value) if type(x) is int and x > 1)
        elif type(value) is int and value > 1:
            yield (*above, name), value


def _open_leaves(config: Any) -> list[Leaf]:
    """What a configuration does not say and could; classes ask for ``head_dim`` also where they have no such field."""
    none = [(name,) for name, value in vars(config).items() if value is None and not name.startswith("_")]
    return [*none, *([] if hasattr(config, "head_dim") else [("head_dim",)])]


def _with(config: Any, state: Mapping[Leaf, int]) -> Any:
    """A copy of a configuration with other numbers."""
    result = copy.deepcopy(config)
    for leaf, new in state.items():
        *above, last = leaf
        if isinstance(last, int):
            *above, name = above
            owner = _inside(result, above)
            held = list(getattr(owner, str(name)))
            held[last] = new
            setattr(owner, str(name), type(getattr(owner, str(name)))(held))
        else:
            setattr(_inside(result, above), last, new)
    return result


def _inside(config: Any, path: Sequence[str | int]) -> Any:
    for name in path:
        config = getattr(config, str(name))
    return config


def _check_same(small: nn.Module, again: nn.Module, inputs: Inputs | None) -> None:
    """Raise ``ValueError`` unless what was read has the tensors and, for random inputs, the outputs of the small model."""
    mine, read = small.state_dict(), again.state_dict()
    for name in sorted(mine.keys() | read.keys()):
        one, other = mine.get(name), read.get(name)
        if one is None or other is None or one.shape != other.shape or not torch.equal(one, other.to(one)):
            raise ValueError(f"small must be read by from_pretrained as it is, got another {name}")
    if inputs is None:
        return
    device = next((p.device for p in small.parameters()), torch.device("cpu"))
    outputs = []
    for model in (copied(small), again.to(device)):
        with isolated(0, device), quiet(), torch.no_grad():
            try:
                outputs.append(outputs_in(inputs.map(lambda x: _random(x).to(device)).run(model.eval())))
            except Exception as error:
                if not outputs:  # it takes no random inputs: tensors and attributes must do
                    return
                raise ValueError(f"small must run as it is read, got: {first_line(error)}") from error
    for one, other in zip(*outputs, strict=True):
        far = (one.double() - other.double()).abs().max().item() if one.numel() else 0.0
        if one.shape != other.shape or far > _TOLERANCE * one.double().abs().max().item():
            raise ValueError(
                "small must compute what its configuration says, got outputs that differ once it is read: its code uses a "
                "size as a number, as in a scale of embeddings, which stays in the small model; ignore= keeps that axis whole"
            )


def _random(like: Tensor) -> Tensor:
    """Values that a model may be given: tokens of any vocabulary, or of a normal distribution."""
    if like.is_floating_point():
        return torch.randn(like.shape).to(like.dtype)
    return torch.randint(0, 2, like.shape).to(like.dtype)


def _told(wrong: Mapping[Place, tuple[float | None, float | None]]) -> str:
    """Where sizes differ, in a line."""
    lines = [
        f"{_size(mine)} for axis {where} of {name}, where the nearest configuration says {_size(said)}"
        for (name, where), (mine, said) in list(wrong.items())[:3]
    ]
    more = len(wrong) - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more else "")


def _size(value: float | None) -> str:
    return "nothing" if value is None else f"{value:g}"
