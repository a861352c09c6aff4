"""What tests of the docker driver need: an engine that answers, and an image with what an instance imports.

The image is built once for what the sources are; the engine keeps it, and its layers of packages, for the next time.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPOSITORY = "algomesh-driver-test"
BARE_IMAGE = "python:3.11-slim"
_FOLDERS = ("sdk/algomesh", "broker/algomesh_broker", "observability/algomesh_observability")
_BUILD_S = 600
_KEPT_IMAGES = 3


def docker(*arguments: str, timeout_s: float = 60) -> str:
    """What the command prints. Raises CalledProcessError."""
    command = ["docker", *arguments]
    environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=True)
    return done.stdout.strip()


@functools.cache
def instance_image() -> str:
    """The image's name, built if need be; skips where there is no engine."""
    if shutil.which("docker") is None:
        pytest.skip("needs a Docker engine: there is no docker command")
    try:
        docker("version", timeout_s=20)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"needs a Docker engine: {error}")
    with tempfile.TemporaryDirectory() as folder:
        name = f"{REPOSITORY}:{_write_context(Path(folder))}"
        if not docker("image", "ls", "-q", name):
            try:
                docker("build", "-q", "--network", "host", "-t", name, folder, timeout_s=_BUILD_S)
            except subprocess.CalledProcessError as error:
                pytest.fail(f"the image of the tests cannot be built: {error.stderr[-1000:]}")
            _forget_old()
    return name


def labelled(label: str) -> list[str]:
    """The containers, running or not, that have a label."""
    return docker("ps", "-aq", "--no-trunc", "--filter", f"label={label}").split()


def _forget_old() -> None:
    """Remove the images of sources that have changed since, but for the newest few, which others may be using."""
    known = docker("images", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY).split()
    for name in known[_KEPT_IMAGES:]:
        with contextlib.suppress(subprocess.CalledProcessError):  # in use
            docker("rmi", name)


def _write_context(folder: Path) -> str:
    """Lay out what the build needs; return a digest of it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], "uvloop"]
    (folder / "requirements.txt").write_text("\n".join(wanted) + "\n")
    shutil.copy(ROOT / "constraints.txt", folder)
    shutil.copy(ROOT / "tests" / "driver_image" / "Dockerfile", folder)
    for each in _FOLDERS:
        source = ROOT / each
        shutil.copytree(source, folder / "code" / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
