"""Writes constraints.txt: the version of every package that the extras bring, resolved anew.

Nothing is installed: pip resolves in a dry run and reports what it would do. Run by `make constraints`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Named here because pip would otherwise follow the newest; the catalog's figures were taken with this one.
FIXED = ["torch==2.13.0"]
EXTRAS = ".[mesh,catalog,dev]"
HEADER = """\
# The version of every package that `pip install -e .[mesh,catalog,dev]` brings, on Linux and Python 3.11.
# `make setup` installs exactly these. Written by `make constraints`, never by hand: to move, run that, then
# `make check test demo`, and commit the difference. torch stays where .ci/constraints.py fixes it; a build
# with a local suffix (2.13.0+cpu, 2.13.0+cu130) satisfies the pin.
"""


def resolve() -> dict[str, str]:
    """The packages pip would install into an empty environment, by canonical name."""
    options = ["--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    said = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *FIXED, EXTRAS],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    found = (item["metadata"] for item in json.loads(said)["install"])
    return {canonical(item["name"]): item["version"].split("+")[0] for item in found}


def canonical(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Resolve, then replace the file in one step."""
    pins = resolve()
    pins.pop("algomesh")
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
    target = ROOT / "constraints.txt"
    draft = target.with_suffix(".new")
    draft.write_text(HEADER + "".join(lines))
    draft.replace(target)
    sys.stdout.write(f"{target.name}: {len(lines)} packages\n")


if __name__ == "__main__":
    main()
