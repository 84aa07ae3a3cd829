"""prunefuse: prune at initialisation, select with the small network, fuse it back."""

from prunefuse.version import __version__

__all__ = ["__version__"]
