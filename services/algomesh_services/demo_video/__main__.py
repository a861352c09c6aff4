"""`python -m algomesh_services.demo_video [--seconds S] [--size WxH] [--output DIR] [--json]`."""

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
from algomesh_services.demo_video.alone import AloneFailed
from algomesh_services.demo_video.demo import Wanted, run
from algomesh_services.local.errors import LocalError


def main() -> int:
    """Run the demo; 0, or 1 after a line that says what went wrong."""
    parser = argparse.ArgumentParser(
        prog="make demo-video", description="A video through split, stylize and join, each a service."
    )
    parser.add_argument("--seconds", type=_seconds, default=5.0, metavar="S", help="length of the video (5)")
    parser.add_argument("--size", type=_size, default=(320, 180), metavar="WxH", help="its pictures (320x180)")
    parser.add_argument("--output", type=Path, default=Path("demo-video"), metavar="DIR", help="(demo-video)")
    parser.add_argument("--json", action="store_true", help="print the last line only")
    options = parser.parse_args()
    configure("demo-video", level="error")
    wanted = Wanted(seconds=options.seconds, size=options.size, output=options.output)
    try:
        asyncio.run(run(wanted, Screen(sys.stdout, is_silent=options.json)))
    except ImportError as error:
        say_error(f"{error}; the demo needs pip install 'algomesh[mesh,catalog]'")
        return 1
    except (AloneFailed, MeshError, BrokerError, LocalError, ProgramError, OSError) as error:
        say_error(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and 64 <= int(width) <= 1920 and 64 <= int(height) <= 1920):
        raise argparse.ArgumentTypeError("write 320x180; from 64 to 1920 pixels")
    return int(width), int(height)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.5 <= seconds <= 600:
        raise argparse.ArgumentTypeError("from 0.5 to 600 seconds")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
