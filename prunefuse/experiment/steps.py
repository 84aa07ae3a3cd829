"""Steps: what a run consists of. A step is timed, written to the ledger and kept by one function, `carry_out`.

A run is a list of steps. Each says which earlier ones it needs, the ledger lines with FLOPs that it will write, and what it
does. From the same list come the forecast (the sum of the lines), the ledger (the lines, with seconds), and what there is to
do when a run goes on: the steps that are not kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from prunefuse import _files as files
from prunefuse._commit import digest_of
from prunefuse.errors import DamagedFileError
from prunefuse.experiment.records import Event, Listener, Network, Phase, Progress

if TYPE_CHECKING:
    from prunefuse.dynamics import Recorder
    from prunefuse.training import Checkpoint

DONE, WEIGHTS, CHECKPOINT = "done.json", "weights.safetensors", "checkpoint.safetensors"


class Line(Protocol):
    """A line of a ledger: the FLOPs and seconds of one phase."""

    @property
    def phase(self) -> Any:
        """Which phase."""

    @property
    def network(self) -> Network:
        """Which network it is of."""

    @property
    def round(self) -> int:
        """Round of the loop, 0 outside one."""

    @property
    def labels(self) -> int:
        """Samples that it works with."""

    @property
    def flops(self) -> float:
        """FLOPs."""

    @property
    def seconds(self) -> float:
        """Seconds; 0 in what is planned."""


L = TypeVar("L", bound=Line)


@dataclass(frozen=True)
class Result(Generic[L]):
    """What a step found: ``values`` for JSON, ``tensors`` on any device, and the ledger lines it took."""

    values: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    lines: tuple[L, ...] = ()


@dataclass(frozen=True)
class Step(Generic[L]):
    """A part of a run that is done as a whole.

    Attributes:
        name: Unique in the run; also the folder of what it finds.
        what: What it does; a `Worker` knows how.
        inputs: Names of the steps whose results it works with.
        work: The ledger lines that it will write, with FLOPs and without seconds.
    """

    name: str
    what: str
    inputs: tuple[str, ...] = ()
    work: tuple[L, ...] = ()

    def line(self, phase: str) -> L:
        """The line that is planned for this phase."""
        return next(line for line in self.work if line.phase == phase)


class Worker(Protocol[L]):
    """Who knows how steps are done: from nothing but the configuration and the results of their inputs."""

    def do(self, step: Step[L], bench: Bench[L]) -> Result[L]:
        """Do a step."""

    def take(self, step: Step[L], result: Result[L]) -> None:
        """Take the result of a step, of now or of an earlier process."""


class Bench(Generic[L]):
    """What a step works with: its folder, a clock that writes the ledger, and someone to tell how far it is.

    Attributes:
        folder: Of its files; None where nothing is kept.
        shared: Where other loops that have this step, too, find what it found; None where there are none.
        lines: The ledger so far.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        shared: Path | None = None,
        listener: Listener | None = None,
        device: torch.device | None = None,
        checkpoint_seconds: float = 30.0,
    ) -> None:
        self.folder = folder
        self.shared = None if folder is None else shared
        self.lines: list[L] = []
        self._listener, self._device = listener, device
        self._checkpoint_seconds = checkpoint_seconds

    def tell(self, event: Event) -> None:
        """Hand an event to the listener, if there is one."""
        if self._listener is not None:
            self._listener(event)

    def progress(self, description: str) -> Callable[[int, int], None]:
        """A function to be called with the samples done and the samples there are."""
        return lambda done, total: self.tell(Progress(done, total, description))

    def begin(self, line: L, epochs: int = 0, more: float = 0.0) -> None:
        """Announce a phase; ``more`` are FLOPs done in it that have a line of their own."""
        self.tell(Phase(line.round, line.phase, line.network, line.labels, epochs, line.flops + more))

    def charge(self, line: L, seconds: float, **changes: Any) -> None:
        """Write a line of the ledger."""
        self.lines.append(replace(line, seconds=seconds, **changes))  # type: ignore[type-var]  # a dataclass

    @contextmanager
    def timed(self, line: L) -> Iterator[dict[str, Any]]:
        """Announce a phase, time the block, and write its line, with what the block finds out of it, by field."""
        self.begin(line)
        self.wait()
        found: dict[str, Any] = {}
        start = time.perf_counter()
        yield found
        self.wait()
        self.charge(line, time.perf_counter() - start, **found)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def checkpoint(self, recorder: Recorder | None = None) -> Checkpoint | None:
        """Where a training of this step keeps what it needs to go on."""
        from prunefuse.training import Checkpoint

        if self.folder is None:
            return None
        return Checkpoint(self.folder / CHECKPOINT, self._checkpoint_seconds, recorder)


def carry_out(step: Step[L], worker: Worker[L], bench: Bench[L], kind: type[L]) -> Result[L]:
    """The result of a step: kept by an earlier process or by another loop, or found now and kept.

    Args:
        step: The step.
        worker: Who does it.
        bench: New, for this step.
        kind: Of its ledger lines.

    Raises:
        DamagedFileError: what was kept is not what was written.
    """
    found = None if bench.folder is None else kept(bench.folder, kind)
    if found is None and bench.folder is not None and bench.shared is not None:
        bench.folder.mkdir(parents=True, exist_ok=True)
        _copy(bench.shared, bench.folder)
        found = kept(bench.folder, kind)
    if found is None:
        if bench.folder is not None:
            bench.folder.mkdir(parents=True, exist_ok=True)
        done = worker.do(step, bench)
        found = Result(done.values, done.tensors, tuple(bench.lines))
        if bench.folder is not None:
            _keep(bench.folder, found)
        if bench.folder is not None and bench.shared is not None:
            _share(bench.folder, bench.shared)
    worker.take(step, found)
    return found


def _keep(folder: Path, result: Result[Any]) -> None:
    """Write what a step found; ``done.json``, with the SHA-256 of every file, is last."""
    if result.tensors:
        files.save_tensors(folder / WEIGHTS, result.tensors)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    own = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    hashes = {path.name: digest(path) for path in own if path.name != DONE}
    told = {**result.values, "spent": [asdict(line) for line in result.lines], "files": hashes}
    # A metric may be NaN, such as one of a class without samples.
    files.write_json(folder / DONE, {**told, "sha256": digest_of(told)}, allow_nan=True)


def _share(folder: Path, shared: Path) -> None:
    """Copy what a step found to where other loops find it, unless another process just did."""
    with suppress(FileExistsError), files.new_folder(shared) as place:
        _copy(folder, place)


def _copy(source: Path, target: Path) -> None:
    """Copy what a step found, if it is done; ``done.json`` is last."""
    told = read_done(source)
    if told is not None:
        check_files(source, told["files"])
    for name in () if told is None else (*told["files"], DONE):
        with files.replacing(target / name, durable=False) as temporary:
            shutil.copyfile(source / name, temporary)


def kept(folder: Path, kind: type[L]) -> Result[L] | None:
    """What a step found before, its files checked; None if it is not done.

    Raises:
        DamagedFileError: something is not what was written.
    """
    told = read_done(folder)
    if told is None:
        return None
    check_files(folder, told["files"])
    tensors: dict[str, Tensor] = {}
    if WEIGHTS in told["files"]:
        from safetensors.torch import load_file

        tensors = load_file(folder / WEIGHTS)
    values = {name: value for name, value in told.items() if name not in ("spent", "files")}
    return Result(values, tensors, tuple(kind(**line) for line in told["spent"]))


def read_done(folder: Path, *, hashed: bool = True) -> dict[str, Any] | None:
    """``done.json`` of a step, without looking at its files; None if it is not done.

    Args:
        folder: Of the step.
        hashed: Whether it has a SHA-256, as all have but those of format 1.

    Raises:
        DamagedFileError: it is not what was written.
    """
    path = folder / DONE
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if hashed and told.pop("sha256") != digest_of(told):
            raise ValueError("it is not what was written, by its SHA-256")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, AttributeError) as error:
        raise DamagedFileError(f"{path} was changed or is damaged: {error}") from error
    return told


def check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Raise ``DamagedFileError`` for the first file that is not what was written."""
    for name, wanted in hashes.items():
        path = folder / name
        if not path.is_file():
            raise DamagedFileError(f"{path} is missing: {DONE} beside it says that it was written")
        if digest(path) != wanted:
            raise DamagedFileError(
                f"{path} was changed or is damaged: it is not what was written, by its SHA-256"
            )


def clear(folder: Path) -> None:
    """Remove what steps have kept, where it is not needed any more."""
    if folder.is_dir():
        shutil.rmtree(folder)


def digest(path: Path) -> str:
    """SHA-256 of a file, read in parts."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()
