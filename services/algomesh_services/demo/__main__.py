"""`python -m algomesh_services.demo [--posts FILE] [--json]`."""

import argparse
import asyncio
import sys
from pathlib import Path

from algomesh.errors import MeshError
from algomesh_broker.errors import BrokerError
from algomesh_broker.program import ProgramError
from algomesh_observability.logs import configure
from algomesh_services.cli.output import say_error
from algomesh_services.demo.demo import run
from algomesh_services.demo.posts import BadPosts, read_posts
from algomesh_services.demo.screen import Screen
from algomesh_services.local.errors import LocalError


def main() -> int:
    """Run the demo; 0, or 1 after a line that says what went wrong."""
    parser = argparse.ArgumentParser(
        prog="make demo", description="Posts through clean, lemmatize and two versions of sentiment, each a service."
    )
    parser.add_argument(
        "--posts", type=Path, metavar="FILE", help="one post a line; or TSV, the text in the last column"
    )
    parser.add_argument("--json", action="store_true", help="print the last line only")
    options = parser.parse_args()
    configure("demo", level="error")
    try:
        posts = read_posts(options.posts)
        asyncio.run(run(posts, Screen(sys.stdout, is_silent=options.json)))
    except (BadPosts, MeshError, BrokerError, LocalError, ProgramError, OSError) as error:
        say_error(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
