"""Where modules of earlier versions are now: their old paths answer for one release, with a deprecation warning.

Names that are meant for users are those of the packages (``prunefuse.selection.top_b``); modules with an underscore and
what is in them may change.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

# Package: modules that have got an underscore.
_UNDERSCORED = {
    "prunefuse": "files seeds",
    "prunefuse.scoring": "ensembles files linear scores tokens",
    "prunefuse.selection": "badge batches candidates custom k_center pool strategies streaming top_b",
    "prunefuse.models": "layers perceptron registry resnet vgg wide",
    "prunefuse.data": "batches cifar digits folder labels large registry tensors",
    "prunefuse.training": "adversarial clock distillation feature_file modes predict recipe train",
    "prunefuse.dynamics": "options passes recorder tracks",
    "prunefuse.extrapolation": "agreement approximate baselines clustering extrapolate gnn interface knn neighbors regression",
    "prunefuse.adapters": "probabilities",
    "prunefuse.experiment.extrapolate": "run",
}
MOVED = {
    f"{package}.{name}": f"{package}._{name}"
    for package, names in _UNDERSCORED.items()
    for name in names.split()
} | {
    "prunefuse.fusion.fuse": "prunefuse.fusion",
    "prunefuse.pruning.along": "prunefuse.pruning._rules.axes",
    "prunefuse.pruning.arguments": "prunefuse.pruning.options",
    "prunefuse.pruning.aten": "prunefuse.pruning._rules.layers",
    "prunefuse.pruning.attention": "prunefuse.pruning._rules.attention",
    "prunefuse.pruning.calibration": "prunefuse.pruning.obspa",
    "prunefuse.pruning.capture": "prunefuse.pruning._graph.export",
    "prunefuse.pruning.command": "prunefuse.cli.prune_files",
    "prunefuse.pruning.compensation": "prunefuse.pruning._obspa.refit",
    "prunefuse.pruning.composite": "prunefuse.pruning._walk",
    "prunefuse.pruning.coupling": "prunefuse.pruning._graph.couplings",
    "prunefuse.pruning.criteria": "prunefuse.pruning._choose.scores",
    "prunefuse.pruning.cutting": "prunefuse.pruning._graph.copies",
    "prunefuse.pruning.decode": "prunefuse._files",
    "prunefuse.pruning.evidence": "prunefuse.pruning._choose.gradients",
    "prunefuse.pruning.fitting": "prunefuse.pruning._choose.fit_code",
    "prunefuse.pruning.graph": "prunefuse.pruning._walk",
    "prunefuse.pruning.groups": "prunefuse.pruning._choose.ranking",
    "prunefuse.pruning.identity": "prunefuse.pruning._graph.copies",
    "prunefuse.pruning.layout": "prunefuse.pruning._rules.shapes",
    "prunefuse.pruning.modules": "prunefuse.pruning._graph.attributes",
    "prunefuse.pruning.program": "prunefuse.pruning.extract",
    "prunefuse.pruning.ranking": "prunefuse.pruning._choose.ranking",
    "prunefuse.pruning.readers": "prunefuse.pruning._obspa.readers",
    "prunefuse.pruning.recurrent": "prunefuse.pruning._rules.attention",
    "prunefuse.pruning.rules": "prunefuse.pruning._rules.registry",
    "prunefuse.pruning.surgeon": "prunefuse.pruning._obspa.algebra",
    "prunefuse.pruning.surgery": "prunefuse.pruning.extract",
    "prunefuse.pruning.targets": "prunefuse.pruning._choose.targets",
    "prunefuse.pruning.trace": "prunefuse.pruning._graph.trace",
}


class _Package(ModuleType):
    """A package with a function of the name that one of its modules had: importing that must not hide the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and isinstance(self.__dict__.get(name), FunctionType)):
            super().__setattr__(name, value)


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        message = f"{spec.name} is now {new}; the old path goes with the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        package, _, name = spec.name.rpartition(".")
        if isinstance(vars(sys.modules[package]).get(name), FunctionType):
            sys.modules[package].__class__ = _Package
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """All is there already; the import system has written over what it found first."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.insert(0, _Finder())
