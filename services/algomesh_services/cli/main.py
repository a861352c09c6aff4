"""The entry of the command `algomesh`: what holds for every command.

Errors are one line on stderr, exit code 1 (2 for a wrong command line), never a traceback; Ctrl-C ends quietly with
130, a closed pipe quietly too. Set ALGOMESH_DEBUG to see the traceback of an error that should not have been.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from algomesh_services.cli.hidden_argv import hide_secrets


def main() -> NoReturn:
    """Run the command line; ends the process."""
    hide_secrets(sys.argv)
    try:
        _run(sys.argv)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("ALGOMESH_DEBUG"):
            raise
        if isinstance(error, ModuleNotFoundError) and not (error.name or "algomesh").startswith("algomesh"):
            _end(f"this needs the package {error.name}, which is not installed: pip install 'algomesh[mesh]'")
        _end(f"{type(error).__name__}: {error}. This is a fault of algomesh; ALGOMESH_DEBUG=1 shows where")
    sys.exit(0)


def _run(argv: Sequence[str]) -> None:
    """Do what is asked. A program of the mesh starts without what reads command lines: that takes as long as itself."""
    if len(argv) == 3 and argv[1] == "serve" and not argv[2].startswith("-"):
        from algomesh_services.cli import serving

        if argv[2] in serving.PROGRAMS:
            serving.serve(argv[2])
            return
    from algomesh_services.cli.app import app

    app(prog_name="algomesh")


def _end(sentence: str) -> NoReturn:
    sys.stderr.write(f"error: {sentence}\n")
    sys.exit(1)
