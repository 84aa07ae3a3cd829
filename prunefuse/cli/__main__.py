"""``python -m prunefuse.cli`` is the command ``prunefuse``."""

from prunefuse.cli.app import main

main()
