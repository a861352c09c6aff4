"""`python -m algomesh_services.demo_prewarm [--output FILE] [--json]`."""

import argparse
import asyncio
import sys
from pathlib import Path

from algomesh.errors import MeshError
from algomesh_broker.errors import BrokerError
from algomesh_broker.program import ProgramError
from algomesh_observability.logs import configure
from algomesh_services.cli.output import say_error
from algomesh_services.demo.screen import Screen
from algomesh_services.local.errors import LocalError


def main() -> int:
    """Run the demo; 0, or 1 after a line that says what went wrong."""
    parser = argparse.ArgumentParser(
        prog="make demo-prewarm", description="The same calls of cold services, without and with the pre-warmer."
    )
    parser.add_argument("--output", type=Path, default=Path("demo-prewarm.png"), metavar="FILE", help="the picture")
    parser.add_argument("--json", action="store_true", help="print the last line only")
    options = parser.parse_args()
    configure("demo-prewarm", level="error")
    try:
        from algomesh_services.demo_prewarm.demo import Wanted, run

        asyncio.run(run(Wanted(output=options.output), Screen(sys.stdout, is_silent=options.json)))
    except ImportError as error:
        say_error(f"{error}; the demo needs pip install 'algomesh[mesh,catalog]'")
        return 1
    except BaseExceptionGroup as group:
        return _explain(group)
    except (MeshError, BrokerError, LocalError, ProgramError, OSError) as error:
        say_error(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _explain(group: BaseExceptionGroup[BaseException]) -> int:
    """What went wrong first, of several things at once. Raises the group when that is none of ours."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    if not isinstance(first, MeshError | BrokerError | LocalError | ProgramError | OSError):
        raise group
    say_error(str(first))
    return 1


if __name__ == "__main__":
    sys.exit(main())
