"""The command line, of typer; the library does all the work.

The entry point is here, where nothing is imported that the extra ``cli`` installs.
"""

from __future__ import annotations

import sys

from prunefuse._extras import needed_for
from prunefuse.errors import MissingPackageError


def main() -> None:
    """The command ``prunefuse``. Without a package of the extra ``cli`` it says so in one line and exits with 1."""
    for stream in (sys.stdout, sys.stderr):  # help and file names print in any encoding
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    command = " ".join(["prunefuse", *[word for word in sys.argv[1:2] if not word.startswith("-")]])
    try:
        with needed_for(command):
            from prunefuse.cli.app import main as run

            run()
    except MissingPackageError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:  # while the command was imported
        print("Stopped: nothing was written.", file=sys.stderr)
        sys.exit(130)
