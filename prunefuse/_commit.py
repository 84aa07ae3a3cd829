"""Several files of a folder that change as one, and a manifest that says what is in them.

``manifest.json`` has the SHA-256 of every file. `commit` writes the new files under hidden names, then the manifest in one
step, then gives the files their names: a process killed in between leaves either all of the old files or all of the new
ones, whatever their names, and `read` finds them. Nothing that is not in the manifest is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunefuse import _files as files
from prunefuse.errors import DamagedFileError

MANIFEST = "manifest.json"
_STAGED = re.compile(r"\..+\.[0-9a-f]{16}\.new")


@dataclass(frozen=True)
class Manifest:
    """What a folder holds: SHA-256 by file name, and facts that were written with them."""

    folder: Path
    files: Mapping[str, str]
    facts: Mapping[str, Any]

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            DamagedFileError: the manifest does not have it, or it is not what was written.
        """
        if name not in self.files:
            raise DamagedFileError(f"{self.folder / name} is not in {MANIFEST} beside it, so it is not read")
        wanted = self.files[name]
        for path in (self.folder / name, _staged(self.folder / name, wanted)):
            with suppress(FileNotFoundError):
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == wanted:
                    return content
        now = manifest(self.folder)
        if now is not None and now.files.get(name, wanted) != wanted:
            return now.read(name)  # another process has committed since this manifest was read
        path = self.folder / name
        if not path.exists():
            raise DamagedFileError(f"{path} is missing: {MANIFEST} says that it was written")
        raise DamagedFileError(
            f"{path} was changed or is damaged: it is not what was written, by its SHA-256"
        )

    def check(self) -> None:
        """Raise ``DamagedFileError`` for the first file that is not what was written."""
        for name in self.files:
            self.read(name)


def commit(folder: Path, contents: Mapping[str, bytes], facts: Mapping[str, Any] | None = None) -> None:
    """Replace these files and facts of a folder as one; other files of its manifest stay.

    Raises:
        OSError: something cannot be written; the folder keeps what it had.
    """
    before = manifest(folder)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    staged = {name: _staged(folder / name, hashes[name]) for name in contents}
    try:
        for name, content in contents.items():
            try:
                files.write_bytes(staged[name], content)
            except OSError as error:
                raise type(error)(error.errno, error.strerror, str(folder / name)) from error
        told = {
            "files": {**(before.files if before else {}), **hashes},
            "facts": {**(before.facts if before else {}), **(facts or {})},
        }
        files.write_json(folder / MANIFEST, {"sha256": digest_of(told), **told})
    except OSError:  # before the manifest had its name: nothing was changed
        for path in staged.values():
            with suppress(OSError):
                path.unlink()
        raise
    for name, path in staged.items():
        files.publish(path, folder / name)


def manifest(folder: Path) -> Manifest | None:
    """What a folder holds; None where nothing was committed.

    Raises:
        DamagedFileError: the manifest is not what was written.
    """
    path = folder / MANIFEST
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        kept = told.pop("sha256")
        if kept != digest_of(told):
            raise ValueError("its content has another SHA-256 than when it was written")
        return Manifest(folder, told["files"], told["facts"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path} was changed or is damaged: {error}") from error


def settle(folder: Path) -> None:
    """Finish what a killed `commit` began, and remove what one left that never happened."""
    found = manifest(folder)
    for name, wanted in (found.files if found else {}).items():
        staged = _staged(folder / name, wanted)
        if staged.exists():
            files.publish(staged, folder / name)
    for path in folder.iterdir() if folder.is_dir() else ():
        if _STAGED.fullmatch(path.name) or (path.name.startswith(".") and path.name.endswith(".tmp")):
            path.unlink(missing_ok=True)


def _staged(path: Path, digest: str) -> Path:
    return path.with_name(f".{path.name}.{digest[:16]}.new")


def digest_of(told: Mapping[str, Any]) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
