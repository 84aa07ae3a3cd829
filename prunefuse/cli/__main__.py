"""``python -m prunefuse.cli`` is the command ``prunefuse``."""

from prunefuse.cli import main

main()
