"""A pruning plan: pure data, saved as JSON, from which a dense model is cut down without running the pruner."""

from __future__ import annotations

import hashlib
import json
import operator
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunefuse import _files as files
from prunefuse._files import decode
from prunefuse._inputs import Inputs, Structure, TensorSpec
from prunefuse._options import require_type
from prunefuse._table import Table
from prunefuse._wrapped import unwrapped
from prunefuse.pruning import _folder as folders
from prunefuse.pruning import _pretrained
from prunefuse.pruning._explain import Coupled, coupled_in, explain
from prunefuse.pruning._graph.copies import fingerprint, named_tensors
from prunefuse.pruning.extract import extract, extract_program
from prunefuse.pruning.fuse import Rewrite, check_arguments, rewrite, write_back
from prunefuse.pruning.options import HEADS, check_choice, inputs_for

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FORMAT = "prunefuse plan"
VERSION = 4
_READ = (3, VERSION)
_SINCE_4 = ("reads", "copies", "not_preserved")
EXPRESSED_BY = ("module", "program")
_LATER: dict[str, Any] = {"structure": None, "heads": "whole", "scaled": {}, "standardized": {}}
"""Fields that files have only where they say something."""


@dataclass(frozen=True)
class Layer:
    """What happens to one module that has parameters of its own, or multiplies computed tensors, as in attention.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 100), torch.nn.ReLU(), torch.nn.Linear(100, 2))
    >>> layer = prunefuse.plan_pruning(model, torch.zeros(1, 4), ratio=0.8).layers[0]
    >>> layer.name, layer.width_before, layer.width_after
    ('0', 100, 20)

    Attributes:
        name: Its path in the model.
        type: Its class.
        width_before: Output channels of the dense layer; 0 if it has no parameters.
        width_after: Output channels that are kept.
        params_before: Parameters of the dense layer; a shared one counts where it is named first.
        params_after: Parameters of the pruned layer.
        positions: How often its weight is applied to one input: the output pixels of a convolution; 0 for what
            is no convolution or linear map.
        flops_before: 2 per multiply-add, per input.
        flops_after: The same after pruning.
    """

    name: str
    type: str
    width_before: int
    width_after: int
    params_before: int
    params_after: int
    positions: int
    flops_before: int
    flops_after: int


@dataclass(frozen=True)
class PruningPlan:
    """Which channels of a dense model are kept, and what follows from that; made by `plan_pruning`.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> plan = prunefuse.plan_pruning(model, torch.zeros(1, 4), ratio=0.5)
    >>> small = plan.extract(model)
    >>> plan.params
    (58, 30)
    >>> plan.save("plan.json"); prunefuse.PruningPlan.load("plan.json") == plan
    True

    Attributes:
        fingerprint: Of the dense model: a hash of tensor names and shapes and module types, never of values.
        ratio: The fraction of channels asked to be removed.
        criterion: How channels were scored.
        ranking: Within what they were ranked.
        rounding: How counts were rounded.
        seed: Of the criterion ``random``.
        inputs: The tensors of the example inputs.
        outputs: Shapes of the tensors the model returned for them; pruning does not change them. -1: a size that depends
            on values. None at all if the model does not run on zeros.
        kept: Parameter or buffer name -> axis -> the indices that are kept, increasing. Axes that stay whole
            are left out.
        attributes: Module path -> attribute -> its value in the small model. Of a tensor that an earlier forward has cached:
            () for None, (0,) for no such attribute, (-1,) for an empty container, until the next forward makes it again.
        layers: One record per module with parameters or products of its own.
        notes: What was kept whole although it is no input or output, and why.
        expressed_by: What the small network is: ``"module"``, of the dense model's class, or ``"program"``, the
            exported one.
        structure: How they are given to the model, as lists, numbers, texts and dictionaries; None where each is an input, in
            order.
        heads: What attention was to lose: ``"whole"`` heads, or channels ``"inside"`` of them.
        scaled: Parameter name -> axis -> its indices that make queries of attention whose scale PyTorch takes from the length
            of the heads. `extract` multiplies those that are kept by the root of the part of them that is kept.
        standardized: Weight that is standardized before it is applied, and loses inputs -> the gains of its rows. `extract`
            multiplies these so that rows are applied with the norm that their kept part had.
        reads: Of which axes of a parameter or buffer a call takes sums, as a linear map does of its weight's inputs. Each entry
            is the axes of one such use. Those alone that lose channels are named. None in files of version 3.
        copies: Parameter or buffer name -> axis -> for every index that is not kept, the one whose values it gets so that
            statistics stay as they are. It is itself where it keeps its own.
        not_preserved: Module path -> why ``complement="preserve"`` of `fuse_` does not keep there what the small model
            computes.
        seconds: What planning took: in all, and without ``torch.export``. None where nothing was planned, as for what
            `load` reads. Plans that differ in it are equal, and files do not have it.
        couplings: What `explain` tells of. It stands beside the plan as ``seconds`` does, and is None for what `load` reads.
        example: The example inputs without values, with which `extract` tries the small model. It stands beside the plan as
            well. Where it is None, ``inputs`` and ``structure`` say what they were, but for objects whose content files do
            not tell: with such an input nothing is tried.
    """

    fingerprint: str
    ratio: float
    criterion: str
    ranking: str
    rounding: str
    seed: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[tuple[int, ...], ...]
    kept: dict[str, dict[int, tuple[int, ...]]]
    attributes: dict[str, dict[str, int | tuple[int, ...]]]
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]
    expressed_by: str = "module"
    structure: Structure = None
    heads: str = "whole"
    scaled: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    standardized: dict[str, str] = field(default_factory=dict)
    reads: dict[str, tuple[tuple[int, ...], ...]] | None = None
    copies: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    not_preserved: dict[str, str] = field(default_factory=dict)
    seconds: tuple[float, float] | None = field(default=None, compare=False)
    couplings: Coupled | None = field(default=None, compare=False, repr=False)
    example: Inputs | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the indices, the input types and what expresses the result.

        Raises:
            ValueError: indices that are empty, negative or not increasing; an unknown dtype or form.
        """
        check_choice("expressed_by", self.expressed_by, EXPRESSED_BY)
        check_choice("heads", self.heads, HEADS)
        checked: set[int] = set()  # layers share their kept sets
        for name, axes in self.kept.items():
            for axis, indices in axes.items():
                increasing = id(indices) in checked or all(map(operator.lt, indices, indices[1:]))
                checked.add(id(indices))
                if axis < 0 or not indices or indices[0] < 0 or not increasing:
                    raise ValueError(
                        f"kept[{name!r}][{axis}] must be increasing indices, got {_short(indices)}"
                    )
        for spec in self.inputs:
            if not isinstance(getattr(torch, spec.dtype, None), torch.dtype):
                raise ValueError(f"inputs must have the names of torch dtypes, got {spec.dtype!r}")

    def extract(self, model: nn.Module) -> nn.Module:
        """Return the small model, cut out of a dense one, which is not changed.

        Args:
            model: A model of the architecture that was planned, with any values, on any device.

        Returns:
            A copy of ``model`` with the kept channels only: same class, training mode, ``requires_grad``,
            dtypes, memory formats and devices, no shared memory.

        Raises:
            TypeError: ``model`` is no module, or has parameters that are sharded over processes.
            ValueError: The plan is for another model or for an exported program. Or the small model cannot run because a
                size is written in the code; the message names the module.
        """
        model = unwrapped(model)
        kept = self.kept_indices(model)
        if self.expressed_by != "module":
            raise ValueError(
                'expressed_by must be "module" to extract a model, got a plan with "program": the model\'s own code may not '
                "run with what it keeps; plan.extract_program(model, example_inputs) gives the exported program, or plan "
                'with expressed_by="module"'
            )
        inputs = self._example()
        return extract(model, kept, self.attributes, inputs, self.outputs, self.scaled, self.standardized)

    def _example(self) -> Inputs | None:
        """The inputs that it was planned for, those of a file without values."""
        return self.example or Inputs.like(self.inputs, self.structure)

    def extract_program(
        self,
        model: nn.Module,
        example_inputs: Any = None,
        *,
        example_kwargs: Mapping[str, Any] | None = None,
        dynamic_shapes: Any = None,
        training: bool = False,
    ) -> ExportedProgram:
        """Return the small program, cut out of a dense model that is exported for it, and is not changed.

        It can be saved by ``torch.export.save``, and ``.module()`` runs, trains and is taken by ``fuse_``: its tensors
        have the dense model's names. A program is in one mode for good, whatever ``.train()`` or ``.eval()``: export
        once for each, and move weights by ``state_dict()``.

        Args:
            model: A model of the architecture that was planned, with any values.
            example_inputs: As for :func:`plan_pruning`. The program takes inputs of these shapes, the batch
                included, but for ``dynamic_shapes``.
            example_kwargs: As for :func:`plan_pruning`.
            dynamic_shapes: Of :func:`torch.export.export`, such as ``({0: torch.export.Dim("batch")},)`` for batches of
                any size; the example then needs at least two inputs.
            training: Batch norms with the statistics of the batch, dropout, and what else the model does in training
                mode; else evaluation mode.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The plan is for another model.
            RuntimeError: ``torch.export`` cannot capture the model, or the small program would not fit together,
                because an operator gets sizes that are not known to be such.
        """
        model = unwrapped(model)
        kept = self.kept_indices(model)
        inputs = inputs_for(model, example_inputs, example_kwargs)
        return extract_program(
            model, kept, inputs, dynamic_shapes, training, self.heads, self.scaled, self.standardized
        )

    def fuse_(
        self,
        dense: nn.Module,
        small: nn.Module,
        complement: str | nn.Module = "keep",
        *,
        generator: torch.Generator | None = None,
    ) -> nn.Module:
        """Return ``dense``, after writing the weights of ``small`` to the positions that they were cut from, in place.

        A weight with kept outputs O and inputs I becomes ``dense[o, i] = small[rank(o), rank(i)]`` for o in O and i in I.
        Here rank is the place in the kept set. Norm layers and their statistics are written over O. What was not pruned is
        copied whole. ``plan.extract(dense)`` then has the values of ``small``, bit for bit. Gains of weight norms,
        vectors of spectral norms, and what the plan has as ``scaled`` or ``standardized`` are so up to rounding.

        Args:
            dense: The dense model; written in place. Training mode and ``requires_grad`` stay.
            small: ``plan.extract`` of such a model, trained or not; same dtypes and device. Not changed.
            complement: What the other positions hold afterwards. ``"keep"``: what they held. ``"reinit"``: a new draw by
                each module's own ``reset_parameters``. That is not an initialization of the whole network, nor of parameters
                that only their model fills, as a class token. For both give a freshly built model:
                ``plan.fuse_(dense, small, build())``. ``"zero"``: zeros, and in norm layers weight 1, bias 0, mean 0,
                variance 1. Then ``dense`` computes the function of ``small``. ``"preserve"``: what they held, but for what
                keeps ``dense`` from computing that function, so that it does and all of it has a gradient. See below. A
                module: its values there. It must have the architecture of ``dense``, and is not changed.
            generator: For ``"reinit"``; None draws from torch's default generator.

        With ``"preserve"`` kept outputs do not read other inputs: the columns of a weight for these are zero in the rows that
        are kept. Its other rows keep their values. So the zeros have a gradient at once, and the other rows after one step.
        Where a norm takes statistics over channels, channels that are not kept become copies of kept ones. That keeps the
        statistics where each is there equally often, as at a ratio of one half. ``not_preserved`` names the modules where
        nothing keeps them.

        Returns:
            ``dense``.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The plan is for another model, ``small`` does not fit, or a module with pruned parameters
                has no ``reset_parameters``. Or the plan is from a file of version 3 and ``complement`` is ``"preserve"``.
                Nothing is written then.

        Warns:
            UserWarning: ``complement`` is ``"preserve"``, and there is something in ``not_preserved``.

        References:
            Kousar, Bhatti and Moon 2025, *PruneFuse: Efficient Data Selection via Weight Pruning and Network Fusion*.
        """
        check_arguments(dense, small, complement, generator)
        target = unwrapped(dense, "dense")
        kept = self.kept_indices(target, "dense")
        if isinstance(complement, nn.Module):
            complement = unwrapped(complement, "complement")
            self.check_model(complement, "complement")
        rewrite = self._rewrite(target, kept) if complement == "preserve" else None
        network = unwrapped(small, "small")
        write_back(target, network, kept, complement, generator, self.scaled, self.standardized, rewrite)
        return dense

    def _rewrite(self, dense: nn.Module, kept: Mapping[str, Sequence[Tensor | None]]) -> Rewrite:
        """What ``complement="preserve"`` changes beside what is kept."""
        if self.reads is None:
            raise ValueError(
                'complement must not be "preserve" with this plan, whose file is of version 3 and does not say which axes '
                "are read: plan again with plan_pruning"
            )
        if self.not_preserved:
            first = "; ".join(
                f"{path or 'the model'}: {why}" for path, why in islice(self.not_preserved.items(), 3)
            )
            more = f"; and {len(self.not_preserved) - 3} more" if len(self.not_preserved) > 3 else ""
            warnings.warn(
                f"the fused network does not compute exactly what the small one does (plan.not_preserved): {first}{more}",
                stacklevel=3,
            )
        return rewrite(named_tensors(dense), kept, self.reads, self.copies)

    def explain(
        self,
        name: str,
        *,
        model: nn.Module | None = None,
        example_inputs: Any = None,
        example_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Return text that says what leaves together with the channels of a layer, and why.

        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> print(prunefuse.plan_pruning(model, torch.zeros(1, 4)).explain("0"))
        0 (Linear)
        <BLANKLINE>
        output channels (weight, dim 0): 4 of 8 stay
          leave together:
            0.weight  dim 0, makes them
            0.bias    dim 0
            2.weight  dim 1, reads them
          coupled by:
            linear in 0 (makes them)
            linear in 2 (reads them)
        <BLANKLINE>
        input channels (weight, dim 1): all 4 stay, as inputs of the network, which linear in 0 takes

        There is a block for the output channels and one for the input channels. A block says how many channels stay, and
        which parameters and buffers have them along which dimension. It names the calls that couple these, and what the
        plan's notes say of them. Of channels that cannot leave it says why.

        Args:
            name: A layer, such as ``"layer1.0.conv1"``, or a parameter or buffer. Of an ONNX file: a node, an initializer,
                or the module that an initializer's name begins with.
            model: The dense model. A plan that was loaded needs it, since files have no couplings.
            example_inputs: Its inputs, as for `plan_pruning`; needed with ``model``.
            example_kwargs: Its inputs by name.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: There is no layer or tensor of this name, or the plan is for another model. Or the plan has no
                couplings, and ``model`` is not given.
            RuntimeError: ``torch.export`` cannot capture the model.
        """
        require_type(name, str, "name", "the name of a layer or tensor")
        coupled = self.couplings
        if model is not None:
            model = unwrapped(model)
            self.check_model(model)
            inputs = inputs_for(model, example_inputs, example_kwargs)
            coupled = coupled_in(model, inputs, self.expressed_by == "program", self.heads)
        if coupled is None:
            raise ValueError(
                "model must be given to explain a plan that was loaded, which has no couplings: "
                f"plan.explain({name!r}, model=..., example_inputs=...); of an ONNX file "
                f"prunefuse.onnx.explain(path, plan, {name!r})"
            )
        kinds = {layer.name: layer.type for layer in self.layers}
        return explain(coupled, name, self.kept, kinds, self.notes)

    def check_model(self, model: nn.Module, argument: str = "model") -> None:
        """Raise ``ValueError`` unless ``model`` has the fingerprint of the planned model.

        Raises:
            TypeError: ``model`` is no module.
            ValueError: the tensor names or shapes or the module types differ.
        """
        model = unwrapped(model, argument)
        if fingerprint(model) != self.fingerprint:
            raise ValueError(
                f"{argument} must be like the model that was planned, got another {type(model).__name__}: tensor names, "
                "shapes or module types differ (another architecture, width or number of classes, or already pruned?)"
            )

    def kept_indices(self, model: nn.Module, argument: str = "model") -> dict[str, list[Tensor | None]]:
        """For every tensor of the dense model, the kept indices of each axis (int64, CPU; None = all).

        Raises:
            TypeError: ``model`` is no module.
            ValueError: the plan is for another model, or names what the model does not have.
        """
        model = unwrapped(model, argument)
        self.check_model(model, argument)
        tensors = named_tensors(model)
        cached: dict[tuple[int, ...], Tensor] = {}  # layers share their kept sets, and so one tensor
        result: dict[str, list[Tensor | None]] = {name: [None] * t.ndim for name, t in tensors.items()}
        for name, axes in self.kept.items():
            for axis, indices in axes.items():
                shape = tuple(tensors[name].shape) if name in tensors else ()
                if axis >= len(shape) or indices[-1] >= shape[axis]:
                    raise ValueError(
                        f"kept must be of the model's axes, got {_short(indices)} for axis {axis} of {name!r}, which has "
                        f"shape {shape}: the plan is damaged"
                    )
                if indices not in cached:
                    cached[indices] = torch.tensor(indices)
                result[name][axis] = cached[indices]
        return result

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON with a checksum of its content; the file appears whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        files.write_text(path, self.to_text())

    def save_model(
        self, small: nn.Module, folder: str | os.PathLike[str], factory: str | None = None
    ) -> Path:
        """Return the folder, new and complete, from which `load_pruned` makes the small model again.

        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = prunefuse.plan_pruning(model, torch.zeros(1, 4), ratio=0.5)
        >>> folder = plan.save_model(plan.extract(model), "small")
        >>> prunefuse.load_pruned("small", factory=lambda: model)[0].out_features
        4

        The folder holds ``weights.safetensors``, ``plan.json`` and ``model.json``, which has the name of the factory. It
        appears whole or not at all.

        Args:
            small: ``plan.extract`` of a model, trained or not.
            folder: It must not exist yet, or be empty.
            factory: ``"package.module:function"``, which builds the dense model without arguments. None: `load_pruned` is
                given one.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: ``small`` is not of this plan, or no module of this name can be found.
            FileExistsError: ``folder`` has something in it, or is a file.
            OSError: It cannot be written.
        """
        small = self.check_small(small)
        if self.expressed_by != "module":
            raise ValueError(
                'expressed_by must be "module" to save a model, got a plan with "program": torch.export.save saves programs'
            )
        return folders.write(folder, small, self.to_text(), factory)

    def save_pretrained(self, small: nn.Module, folder: str | os.PathLike[str]) -> Path:
        """Return a new folder that ``from_pretrained`` of Hugging Face's transformers reads, without this package.

        It holds ``config.json`` with the sizes of the small model, its weights, and ``plan.json``. A configuration says one
        size for all layers, or a list of sizes where a class has such. Plans with ``uniform=True`` keep layers equally
        wide. The folder is read once before it gets its name, and the outputs are compared.

        >>> import transformers
        >>> config = transformers.BertConfig(60, 32, 2, 4, 64, max_position_embeddings=16)
        >>> model = transformers.BertModel(config)
        >>> plan = prunefuse.plan_pruning(model, torch.ones(1, 8, dtype=torch.long), ratio=0.5, uniform=True)
        >>> folder = plan.save_pretrained(plan.extract(model), "bert")
        >>> transformers.AutoModel.from_pretrained("bert").config.intermediate_size
        32

        Args:
            small: ``plan.extract`` of a model of transformers, trained or not.
            folder: It must not exist yet, or be empty.

        Raises:
            TypeError: ``small`` is no model of transformers, or has parameters that are sharded over processes.
            ValueError: ``small`` is not of this plan, or the configuration cannot say its sizes; the message names tensors.
            FileExistsError: ``folder`` has something in it, or is a file.
            OSError: It cannot be written.
        """
        small = self.check_small(small)
        require_type(folder, (str, os.PathLike), "folder", "a path")
        _pretrained.write(Path(folder), small, self.to_text(), self.attributes, self._example())
        return Path(folder)

    def check_small(self, small: nn.Module) -> nn.Module:
        """Return the small model without wrappers, or raise unless its tensors have the sizes that the plan gives them.

        Raises:
            TypeError: ``small`` is no module, or has parameters that are sharded over processes.
            ValueError: A tensor is missing, or has another size.
        """
        small = unwrapped(small, "small")
        tensors = named_tensors(small)
        for name, axes in self.kept.items():
            shape = tuple(tensors[name].shape) if name in tensors else None
            wanted = {axis: len(indices) for axis, indices in axes.items()}
            if shape is None or any(
                axis >= len(shape) or shape[axis] != size for axis, size in wanted.items()
            ):
                sizes = " and ".join(f"{size} at axis {axis}" for axis, size in wanted.items())
                got = "a model without it" if shape is None else f"shape {shape}"
                raise ValueError(f"small must be cut by this plan, where {name} has {sizes}, got {got}")
        return small

    def to_text(self) -> str:
        """The content of the file that `save` writes."""
        content = {"format": FORMAT, "version": VERSION, **self._content(), "checksum": self.checksum()}
        # One line per field: readable, and not a line for every index.
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
        return "{\n" + lines + "\n}\n"

    def checksum(self) -> str:
        """SHA-256 of the content, by which :meth:`load` sees that a file was changed."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        """The fields by which plans are compared."""
        content = asdict(replace(self, couplings=None, example=None))
        for name, absent in _LATER.items():  # as files were before there was such a field
            if content[name] == absent:
                del content[name]
        if self.reads is None:  # as files were up to version 3
            for name in _SINCE_4:
                del content[name]
        return {x.name: content[x.name] for x in fields(self) if x.compare and x.name in content}

    @staticmethod
    def load(path: str | os.PathLike[str]) -> PruningPlan:
        """Read a plan that ``save`` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no plan, of another format version, or damaged or changed since it was saved; the
                message says where, if it can.
        """
        return plan_of(Path(path).read_bytes(), path)

    @property
    def params(self) -> tuple[int, int]:
        """Parameters before and after."""
        return sum(x.params_before for x in self.layers), sum(x.params_after for x in self.layers)

    @property
    def flops(self) -> tuple[int, int]:
        """FLOPs per input, before and after: 2 per multiply-add of convolutions, linear maps and attention's products."""
        return sum(x.flops_before for x in self.layers), sum(x.flops_after for x in self.layers)

    def summary(self) -> str:
        """A table of layers, widths, parameters and FLOPs per input before and after, the notes, and the time it took."""
        title = f"ratio {self.ratio:g}, {self.criterion}, {self.ranking} ranking, rounded by {self.rounding}"
        if self.expressed_by != "module":
            title += f", expressed by the exported {self.expressed_by}"
        rows = []
        for x in self.layers:
            width = _change(x.width_before, x.width_after) if x.width_before else ""
            params = _change(x.params_before, x.params_after) if x.width_before else ""
            flops = _change(x.flops_before, x.flops_after) if x.flops_before else ""
            rows.append((x.name or "(model)", x.type, width, params, flops))
        rows.append(("total", "", "", _change(*self.params), _change(*self.flops)))
        head = ("layer", "type", "width", "parameters", "FLOPs")
        lines = [title, Table(head, rows, left=len(head), sums=1).text(ruled=True)]
        lines += [f"note: {note}" for note in self.notes]
        if self.seconds is not None:
            lines.append("planned in {:.2f} s, {:.2f} s of them beyond torch.export".format(*self.seconds))
        return "\n".join(lines)


def plan_of(text: str | bytes, place: Any) -> PruningPlan:
    """The plan whose `PruningPlan.to_text` this is; ``place`` is what messages call it.

    Raises:
        ValueError: as `PruningPlan.load`.
    """
    try:
        content = json.loads(text)
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{place}: not a pruning plan: {error}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f"{place}: not a pruning plan")
    if (version := content.pop("version", None)) not in _READ:
        raise ValueError(f"{place}: version of a plan must be {_READ[0]} to {VERSION}, got {version!r}")
    checksum = content.pop("checksum", None)
    for name, absent in _LATER.items():
        content.setdefault(name, absent)
    if "reads" not in content:
        content |= {"reads": None, "copies": {}, "not_preserved": {}}
    try:
        plan: PruningPlan = decode(PruningPlan, content, "plan")
    except ValueError as error:
        raise ValueError(f"{place}: damaged pruning plan: {error}") from None
    if checksum != plan.checksum():
        raise ValueError(
            f"{place}: damaged pruning plan: its content was changed after it was saved: checksum must be "
            f"{plan.checksum()}, got {checksum}"
        )
    return plan


def fuse_(
    dense: nn.Module,
    small: nn.Module,
    plan: PruningPlan,
    complement: str | nn.Module = "keep",
    *,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Return ``dense``, after `PruningPlan.fuse_` of ``plan``: the weights of ``small`` are where they were cut from.

    >>> dense = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> plan = prunefuse.plan_pruning(dense, torch.zeros(1, 4), ratio=0.5)
    >>> small = plan.extract(dense)
    >>> prunefuse.fuse_(dense, small, plan) is dense
    True

    Raises:
        TypeError, ValueError: As there, or ``plan`` is not a plan.
    """
    check_arguments(dense, small, complement, generator)
    check_plan(plan)
    return plan.fuse_(dense, small, complement, generator=generator)


def check_plan(plan: object) -> None:
    """Raise ``TypeError`` unless the argument ``plan`` is one."""
    require_type(plan, PruningPlan, "plan", "a PruningPlan")


def _change(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def _short(indices: Any) -> str:
    text = str(list(indices))
    return text if len(text) < 60 else text[:56] + " ...]"
