"""The recorder: batches of an epoch in, scores of all samples out."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from prunefuse import _files as files
from prunefuse import ops
from prunefuse.dynamics._options import PRESETS, DynamicUncertainty, El2n, Forward, Grand, Score
from prunefuse.dynamics._tracks import Batch, Track, track_of
from prunefuse.ops.arrays import as_tensor, require_count, require_floating

_FORMAT = "prunefuse.dynamics.Recorder/1"


class Recorder:
    """Scores of all samples from what a network says of them epoch by epoch, without a dump of every epoch.

    >>> from prunefuse.dynamics import Recorder
    >>> recorder = Recorder(samples=4, scores=("el2n", "aum"))
    >>> recorder.update(torch.eye(4), labels=torch.tensor([0, 1, 2, 0]), indices=torch.arange(4))
    >>> recorder.end_epoch().tolist(), recorder.scores()["el2n"].argmax().item()
    ([], 3)

    With `prunefuse.training.train`, give it ``on_batch=recorder.update`` and ``on_epoch=lambda _: recorder.end_epoch()``.

    Sums are kept in float64, and windows are reduced in two passes. So scores are those of the full dump, up to the
    rounding of the logits' own dtype. For N samples, windows of the probability take N · (window + omitted) numbers. TDDS
    takes N · (classes + window), and each of the others a few for each sample.

    On a GPU only `end_epoch`, `unseen`, and what reads the state wait for the device. Rows that are an error on the CPU are
    left out there, and `end_epoch` says how many there were. Such rows have an index out of range or twice, or a label that
    is no class.

    A sample may miss epochs. Its windows are then over those in which it was seen.

    Args:
        samples: N. Indices are 0 to N − 1.
        scores: Names of `PRESETS`, or options by any name, such as ``{"du5": DynamicUncertainty(window=5)}``.
        classes: How many there are. TDDS needs to be told.
        device: Where the state is, and where the logits must be.
        forward: The kind of forward pass that the logits come from. It is checked against what a score asks for.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: An argument has a value that it cannot have.
    """

    def __init__(
        self,
        samples: int,
        scores: Sequence[str] | Mapping[str, Score] = ("du",),
        *,
        classes: int | None = None,
        device: torch.device | str = "cpu",
        forward: Forward = "training",
    ) -> None:
        self._samples = require_count("samples", samples, 1)
        self._classes = None if classes is None else require_count("classes", classes, 1)
        self._options = _options_of(scores)
        if forward not in ("training", "evaluation"):
            raise ValueError(f"forward must be 'training' or 'evaluation', got {forward!r}")
        for name, option in self._options.items():
            if isinstance(option, DynamicUncertainty) and option.forward not in (None, forward):
                raise ValueError(
                    f"forward must be {option.forward!r}, as the score {name!r} asks for, got {forward!r}"
                )
        self._forward: Forward = forward
        # With its index, as tensors on it say it.
        self._device = torch.zeros(0, device=device).device
        self._epoch = 0  # complete ones
        self._begun = False
        self._seen = torch.zeros(self._samples, dtype=torch.int32, device=self._device)
        self._rejected = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._tracks: dict[str, Track] = {
            name: track_of(option, self._samples, self._classes, self._device)
            for name, option in self._options.items()
        }

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self._samples

    @property
    def epoch(self) -> int:
        """How many epochs are complete."""
        return self._epoch

    @property
    def forward(self) -> Forward:
        """What kind of forward pass is recorded."""
        return self._forward

    @property
    def options(self) -> dict[str, Score]:
        """The scores by name."""
        return dict(self._options)

    @property
    def least(self) -> int:
        """How many epochs must be recorded before every score can be there."""
        return max(track.least for track in self._tracks.values())

    def needs_features(self) -> bool:
        """Whether `update` needs features in this epoch."""
        return any(track.needs == "features" for track in self._wanting().values())

    def update(self, logits: Any, labels: Any, indices: Any, features: Any = None) -> None:
        """Add a batch of the current epoch.

        Args:
            logits: (B, C), any floating dtype, on the recorder's device. They are read once and never written.
            labels: (B,), integers: the classes.
            indices: (B,), integers: the samples, each once in an epoch.
            features: (B, d), floating: what the last layer was given. Only GraNd needs them.

        Raises:
            TypeError: An argument is not an array of its kind.
            ValueError: It is not of its shape, or on another device; or features are needed and missing.
            RuntimeError: On the CPU: a label or an index is out of range, or an index came before. Nothing is written then.
        """
        x = as_tensor("logits", logits)
        require_floating("logits", x)
        if x.dim() != 2 or x.shape[1] == 0:
            raise ValueError(f"logits must have shape (rows, classes), got {tuple(x.shape)}")
        if self._classes not in (None, x.shape[1]):
            raise ValueError(f"logits must have {self._classes} classes, got {x.shape[1]}")
        self._require_device("logits", x)
        y, rows = self._integers("labels", labels, len(x)), self._integers("indices", indices, len(x))
        h = None
        if self.needs_features():
            if features is None:
                raise ValueError("features must be given: grand needs what the last layer was given")
            h = as_tensor("features", features)
            require_floating("features", h)
            if h.dim() != 2 or len(h) != len(x):
                raise ValueError(f"features must have shape ({len(x)}, d), got {tuple(h.shape)}")
            self._require_device("features", h)
        table = dict(zip(ops.DYNAMICS, ops.dynamics(x, y), strict=True))
        # In float64 from the end that it is nearer to.
        error = table["error"].double()
        probability = torch.where(error < 0.5, 1 - error, table["probability"].double())
        samples = ops.claim_(self._seen, self._rejected, rows, y, x.shape[1])
        self._add(samples, probability, table, x, h)

    def update_probability(self, probability: Any, indices: Any) -> None:
        """Add a batch of which only the true class's probability is known: for dynamic uncertainty and DUAL.

        Args:
            probability: (B,), any floating dtype, in [0, 1] (checked on the CPU).
            indices: As in `update`.

        Raises:
            TypeError: As `update`.
            ValueError: As `update`; or another score needs logits.
            RuntimeError: As `update`.
        """
        p = self._instead_of_logits("probability is", probability, ("",))
        if p.device.type == "cpu" and ((p < 0) | (p > 1)).any():
            raise ValueError("probability must lie in [0, 1]")
        rows = self._integers("indices", indices, len(p))
        samples = ops.claim_(self._seen, self._rejected, rows, None, 0)
        self._add(samples, p, {}, None, None)

    def update_losses(self, losses: Any, indices: Any) -> None:
        """Add a batch of which only the losses are known: for the loss, dynamic uncertainty and DUAL.

        >>> from prunefuse.dynamics import Recorder
        >>> recorder = Recorder(samples=2, scores=("loss",))
        >>> recorder.update_losses(torch.tensor([0.5, 2.0]), indices=torch.tensor([1, 0]))
        >>> recorder.scores()["loss"].tolist()
        [2.0, 0.5]

        It is for samples that are sequences. Their loss is the mean of their tokens' losses, as
        ``score_sequences(..., strategy="loss")`` gives it. Then exp(−loss), which is the geometric mean of the tokens'
        probabilities, stands for the probability of the true class.

        Args:
            losses: (B,), any floating dtype: means of −ln p, in nats. Windows of the probability need them to be 0 or more
                (checked on the CPU).
            indices: As in `update`.

        Raises:
            TypeError: As `update`.
            ValueError: As `update`; or another score needs logits.
            RuntimeError: As `update`.
        """
        loss = self._instead_of_logits("losses are", losses, ("", "loss"))
        windows = any(track.needs == "" for track in self._wanting().values())
        if windows and loss.device.type == "cpu" and (loss < 0).any():
            raise ValueError(f"losses must be 0 or more, got {float(loss[loss < 0][0])}")
        rows = self._integers("indices", indices, len(loss))
        samples = ops.claim_(self._seen, self._rejected, rows, None, 0)
        self._add(samples, (-loss).exp(), {"loss": loss}, None, None)

    def end_epoch(self) -> Tensor:
        """The samples that were not seen in this epoch, which is closed now; waits for the device.

        Returns:
            Indices (k,) int64, ascending, on the CPU. There are none if every sample was seen once.

        Raises:
            ValueError: No batch came; or, on a GPU, rows had to be left out (the epoch is closed then).
        """
        if not self._begun:
            raise ValueError("an epoch must have at least one batch, got none")
        missing, rejected = self.unseen(), int(self._rejected)
        self._seen.zero_()
        self._rejected.zero_()
        self._epoch += 1
        self._begun = False
        if rejected:
            raise ValueError(
                f"epoch {self._epoch}: {rejected} rows were left out, their index out of range or given twice, or their "
                f"label no class; {len(missing)} samples were not seen"
            )
        return missing

    def unseen(self) -> Tensor:
        """The samples without a batch in this epoch so far, ascending, int64, on the CPU."""
        return (self._seen == 0).nonzero()[:, 0].cpu()

    def scores(self, *names: str) -> dict[str, Tensor]:
        """The scores (N,) by name, float64, on the recorder's device: all of them, or those named.

        Higher is more useful to keep; each score's class says what it is. A score is NaN where a sample was not seen often
        enough, or where its logits were NaN or all −inf once.

        Raises:
            ValueError: A name is unknown, or there are too few epochs for any sample to have a score.
        """
        unknown = [name for name in names if name not in self._tracks]
        if unknown:
            raise ValueError(f"names must be of {', '.join(self._tracks)}, got {unknown[0]!r}")
        recorded = self._epoch + self._begun
        for name in names or self._tracks:
            track = self._tracks[name]
            if recorded < track.least:
                raise ValueError(
                    f"{name} needs {track.least} epochs ({track.why}), but {recorded} were recorded"
                )
        return {name: self._tracks[name].score() for name in names or self._tracks}

    def state_dict(self) -> dict[str, Any]:
        """The state itself, not a copy: ``config``, plain data, and ``tensors`` by name. It may be taken in mid-epoch."""
        tensors = {"seen": self._seen, "rejected": self._rejected}
        for number, track in enumerate(self._tracks.values()):
            tensors |= {f"{number}.{part}": tensor for part, tensor in track.tensors.items()}
        config = {
            "format": _FORMAT,
            "samples": self._samples,
            "classes": self._classes,
            "forward": self._forward,
            "epoch": self._epoch,
            "begun": self._begun,
            "scores": {
                name: {"score": type(option).__name__, **dataclasses.asdict(option)}
                for name, option in self._options.items()
            },
        }
        return {"config": config, "tensors": tensors}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device | str = "cpu") -> Recorder:
        """A recorder that goes on from a `state_dict` bit for bit; the tensors are copied.

        Raises:
            ValueError: It is not the state of a recorder.
        """
        config = state["config"]
        if config.get("format") != _FORMAT:
            raise ValueError(f"state must be of format {_FORMAT}, got {config.get('format')!r}")
        scores = {name: _option_from(fields) for name, fields in config["scores"].items()}
        recorder = cls(
            config["samples"], scores, classes=config["classes"], device=device, forward=config["forward"]
        )
        recorder.load_state_dict(state)
        return recorder

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict` bit for bit; the tensors are copied.

        Raises:
            ValueError: It is not the state of a recorder of these scores and samples.
        """
        config, tensors = state["config"], state["tensors"]
        own = self.state_dict()
        counted = ("epoch", "begun")
        # Through JSON, as a state that comes from a file did: tuples are lists there.
        plain = [json.loads(json.dumps(one)) for one in (own["config"], config)]
        mine, theirs = ({k: v for k, v in one.items() if k not in counted} for one in plain)
        shapes = [{k: (t.shape, t.dtype) for k, t in one.items()} for one in (own["tensors"], tensors)]
        if mine != theirs or shapes[0] != shapes[1]:
            raise ValueError("state must be that of a recorder of these scores and samples, got another")
        self._epoch, self._begun = config["epoch"], config["begun"]
        for name, tensor in own["tensors"].items():
            tensor.copy_(tensors[name])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file, whole or not at all.

        Raises:
            OSError: The file cannot be written.
        """
        state = self.state_dict()
        metadata = {"format": _FORMAT, "config": json.dumps(state["config"])}
        files.save_tensors(path, state["tensors"], metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Recorder:
        """The recorder that `save` wrote, on a device of your choice.

        Raises:
            OSError: The file cannot be read.
            ValueError: It was not written by `save`.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(f"{path} is not a saved Recorder of format {_FORMAT}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
        return cls.from_state({"config": json.loads(metadata["config"]), "tensors": tensors}, device)

    def _wanting(self) -> dict[str, Track]:
        """What the current epoch counts for."""
        return {name: track for name, track in self._tracks.items() if track.wants(self._epoch + 1)}

    def _instead_of_logits(self, what: str, given: Any, enough: tuple[str, ...]) -> Tensor:
        """(B,) float64 numbers, where they are enough for every score of this epoch."""
        argument = what.split()[0]
        others = [name for name, track in self._wanting().items() if track.needs not in enough]
        if others:
            raise ValueError(f"{what} not enough for {', '.join(others)}: give logits to update")
        values = as_tensor(argument, given)
        require_floating(argument, values)
        if values.dim() != 1:
            raise ValueError(f"{argument} must have shape (rows,), got {tuple(values.shape)}")
        self._require_device(argument, values)
        return values.double().contiguous()

    def _add(
        self,
        samples: Tensor,
        probability: Tensor,
        table: dict[str, Tensor],
        logits: Tensor | None,
        features: Tensor | None,
    ) -> None:
        self._begun = True
        places = torch.where(samples < 0, self._samples, samples)
        batch = Batch(samples, places, probability, table, logits, features)
        for track in self._wanting().values():
            track.add(batch)

    def _integers(self, argument: str, array: Any, rows: int) -> Tensor:
        tensor = as_tensor(argument, array)
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
            raise TypeError(f"{argument} must be integers, got {tensor.dtype}")
        if tensor.shape != (rows,):
            raise ValueError(
                f"{argument} must have shape ({rows},), one for each row, got {tuple(tensor.shape)}"
            )
        return tensor.to(self._device, torch.int64, non_blocking=True).contiguous()

    def _require_device(self, argument: str, tensor: Tensor) -> None:
        if tensor.device != self._device:
            raise ValueError(
                f"{argument} must be on the recorder's device, {self._device}, got {tensor.device}"
            )


def _options_of(scores: Sequence[str] | Mapping[str, Score]) -> dict[str, Score]:
    if isinstance(scores, str):
        scores = (scores,)
    if not scores:
        raise ValueError("scores must name at least one score")
    if not isinstance(scores, Mapping):
        unknown = [name for name in scores if name not in PRESETS]
        if unknown:
            raise ValueError(
                f"scores must be of {', '.join(PRESETS)}, or options by name; got {unknown[0]!r}"
            )
        return {name: PRESETS[name] for name in scores}
    for name, option in scores.items():
        if not isinstance(name, str) or not isinstance(option, Score):
            raise TypeError(f"scores must be options by name, got {name!r}: {option!r}")
    return dict(scores)


def _option_from(fields: Mapping[str, Any]) -> Score:
    fields = dict(fields)
    kind = {kind.__name__: kind for kind in get_args(Score)}[fields.pop("score")]
    if kind in (El2n, Grand) and fields["epochs"] is not None:
        fields["epochs"] = tuple(fields["epochs"])  # JSON has lists
    option: Score = kind(**fields)
    return option
