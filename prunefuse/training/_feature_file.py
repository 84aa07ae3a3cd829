"""Features of data sets larger than memory: a .npy file, written batch by batch, that goes on where it was stopped."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunefuse._files import publish, write_json
from prunefuse.errors import DamagedFileError

# What was done since the last record is done again after a kill or a power failure.
RECORD_SECONDS = 1.0

Batches = Callable[[int, int], Generator[Tensor, None, None]]


def write_features(
    out: str | os.PathLike[str], samples: int, batch_size: int, identity: Mapping[str, Any], batches: Batches
) -> np.ndarray[Any, Any]:
    """Write features (samples, d) to ``out``, and return them as a read-only memory map.

    Until they are complete they are in ``<out>.partial``, and ``<out>.partial.json`` says how many rows are certain to be
    on disk, and of what: ``identity``. If both are there, the rest is computed.

    Args:
        out: the file; missing parent folders are created.
        samples: rows, at least one.
        batch_size: rows of a batch. Going on starts at a whole batch, so that every batch is what it always is.
        identity: of model and data, as JSON.
        batches: features (n, d), float32, of the samples of a range (start, stop), batch by batch.

    Raises:
        FileExistsError: out exists.
        BlockingIOError: another process is writing it.
        ValueError: what is there was begun with another model, or with other data or settings; or features differ in length.
    """
    target = Path(out)
    partial, record = (target.with_name(f"{target.name}.partial{ending}") for ending in ("", ".json"))
    if target.exists():
        raise FileExistsError(f"{out} exists and is not overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "another process is writing it", str(partial)) from error
        done, width, digest = _begun(file, partial, record, samples, batch_size, identity)
        if done:
            _check_start(file, samples, width, partial, batches, min(batch_size, samples))
        told = time.monotonic()
        written = (done, digest)

        def note() -> None:
            file.flush()
            os.fsync(file.fileno())
            rows, hashed = written
            facts = {"identity": dict(identity), "features": width, "rows": rows}
            write_json(record, {**facts, "sha256": hashed.hexdigest()})

        file.seek(len(_header(samples, width)) + done * width * 4 if done else 0)
        try:
            with closing(batches(done, samples)) as parts:
                for part in parts if done < samples else ():
                    if not width:
                        width = part.shape[1]
                        file.write(_header(samples, width))
                    if part.shape[1] != width:
                        raise ValueError(
                            f"data must give {width} features of every sample, as of the first, got {part.shape[1]}"
                        )
                    rows = part.cpu().contiguous().numpy().astype("<f4", copy=False)
                    file.write(rows.data)
                    hashed = written[1].copy()
                    hashed.update(rows.data)
                    written = (written[0] + len(part), hashed)  # at once, whatever interrupts
                    if time.monotonic() - told >= RECORD_SECONDS:
                        note()
                        told = time.monotonic()
        finally:
            if written[0]:
                note()
            else:
                partial.unlink()
        file.truncate(file.tell())
        if target.exists():
            raise FileExistsError(f"{out} exists and is not overwritten; what was computed is in {partial}")
        publish(partial, target)
    record.unlink()
    mapped: np.ndarray[Any, Any] = np.load(target, mmap_mode="r")
    return mapped


def identity_of(model: nn.Module, positions: Tensor) -> dict[str, str]:
    """Digests of a model (module types, tensors with their values) and of positions in a data set, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for path, module in model.named_modules():
        digest.update(f"{path} {type(module).__name__}\n".encode())
    for tensors in (model.named_parameters(), model.named_buffers()):
        for name, tensor in tensors:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy().data)
    order = hashlib.blake2b(positions.cpu().contiguous().numpy().data, digest_size=16)
    return {"model": digest.hexdigest(), "samples": order.hexdigest()}


def _begun(
    file: Any, partial: Path, record: Path, samples: int, batch_size: int, identity: Mapping[str, Any]
) -> tuple[int, int, Any]:
    """Rows that are there, in whole batches, their width, and their SHA-256; 0 rows where there is nothing to go on from.

    Raises:
        ValueError: the file was begun with something else.
        DamagedFileError: its rows are not those that were written.
    """
    try:
        begun = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0, 0, hashlib.sha256()
    other = [name for name in identity if begun["identity"].get(name) != identity[name]]
    if other:
        raise ValueError(
            f"out must be a file of this call, got {partial}, begun with another {' and '.join(other)}; "
            f"delete it and {record.name} to begin anew"
        )
    width = begun["features"]
    there = (file.seek(0, os.SEEK_END) - len(_header(samples, width))) // (width * 4)
    done = max(0, min(begun["rows"], there))
    if done < samples:
        done -= done % batch_size
    if not done:
        return 0, 0, hashlib.sha256()
    digest = hashlib.sha256()
    file.seek(len(_header(samples, width)))
    _digest_rows(digest, file, done * width * 4)
    if there >= begun["rows"]:  # else it was cut short, and there is no hash of what is left
        whole = digest.copy()
        _digest_rows(whole, file, (begun["rows"] - done) * width * 4)
        if whole.hexdigest() != begun.get("sha256", whole.hexdigest()):
            raise DamagedFileError(
                f"{partial} was changed or is damaged: its rows are not what was written, by their SHA-256; "
                f"delete it and {record.name} to begin anew"
            )
    return done, width, digest


def _digest_rows(digest: Any, file: Any, size: int) -> None:
    while size and (part := file.read(min(size, 1 << 20))):
        digest.update(part)
        size -= len(part)


def _check_start(file: Any, samples: int, width: int, partial: Path, batches: Batches, count: int) -> None:
    """That the first batch is what the file has: the data itself has no fingerprint. Devices may differ in the last bits."""
    file.seek(len(_header(samples, width)))
    stored = np.frombuffer(file.read(count * width * 4), "<f4").reshape(count, width)
    with closing(batches(0, count)) as parts:
        now = next(parts).cpu().numpy()
    if now.shape != stored.shape or not np.allclose(
        now, stored, rtol=1e-2, atol=1e-2 * np.abs(stored).max(initial=0), equal_nan=True
    ):
        raise ValueError(
            f"out must be a file of this call, got {partial}, begun with other data: its first samples have other features; "
            "delete it to begin anew"
        )


def _header(samples: int, width: int) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (samples, width)}
    )
    return header.getvalue()


def read_features(path: str | os.PathLike[str], samples: int) -> Tensor:
    """Features (samples, d) of a .npy file, float64 where the file has that, else float32.

    >>> _ = prunefuse.features(torch.nn.Linear(4, 2), torch.rand(10, 4), out="mine.npy")
    >>> prunefuse.training.read_features("mine.npy", 10).shape
    torch.Size([10, 4])

    Args:
        path: The file: an array (samples, d) of floating numbers, of any width, order and byte order.
        samples: How many rows it must have: one for each sample, in their order.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has something else, or a number that is not finite; the message names the row.
    """
    place = Path(path).expanduser()
    try:
        found = np.load(place, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"features must be a .npy file of numbers, got {path}: {told}") from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError(f"features must be a .npy file, got several arrays in {path}")
    if found.dtype.kind != "f" or found.itemsize > 8:
        raise ValueError(f"features must be float16, float32 or float64, got {found.dtype} in {path}")
    if found.ndim != 2 or len(found) != samples or found.shape[1] == 0:
        raise ValueError(
            f"features must have shape ({samples}, d), a row for each sample, got {found.shape} in {path}"
        )
    kind = np.float64 if found.itemsize == 8 else np.float32
    rows = torch.from_numpy(np.array(found, dtype=kind, order="C"))
    # A sum is finite or not as its parts are, but for an overflow, which is looked at again.
    odd = (~torch.isfinite(rows.sum(1))).nonzero()[:, 0]
    odd = odd[~torch.isfinite(rows[odd]).all(1)]
    if len(odd):
        raise ValueError(
            f"features must be finite, got {len(odd)} of {samples} rows in {path} that are not, the first of them row "
            f"{int(odd[0])}"
        )
    return rows
