"""Packages that only a part of prunefuse needs: what is missing is told in one line, with the command that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prunefuse.errors import MissingPackageError

# Module: the package that has it, and the extra of pyproject.toml that installs it.
PACKAGES = {
    "faiss": ("faiss", "faiss"),
    "h5py": ("h5py", "files"),
    "jinja2": ("jinja2", "cli"),
    "matplotlib": ("matplotlib", "cli"),
    "pyarrow": ("pyarrow", "files"),
    "rich": ("rich", "cli"),
    "sklearn": ("scikit-learn", "cli"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "tomli": ("tomli", "cli"),
    "torch_geometric": ("torch-geometric", "gnn"),
    "typer": ("typer", "cli"),
    "zarr": ("zarr", "files"),
}


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """A context for imports: one that fails, of a package in an extra, raises ``MissingPackageError``, which names ``what``."""
    try:
        yield
    except MissingPackageError:
        raise  # it names what is nearer
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in PACKAGES:
            raise
        package, extra = PACKAGES[module]
        message = f'{what} needs {package}, which is not installed: pip install "prunefuse[{extra}]"'
        raise MissingPackageError(message, name=module) from error
