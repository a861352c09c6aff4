"""What algorithms a project holds: its code is imported in a child process, never in this one.

`describe` starts the child; run as a module this file is the child.
"""

import importlib
import os
import subprocess
import sys
import tempfile
import traceback
from typing import Final

import msgspec
from msgspec import Struct

from algomesh.decorator import Algorithm
from algomesh.errors import BadProject, MeshError
from algomesh.project import Project
from algomesh_broker.platform import Manifest

IMPORT_LIMIT_S: Final = 120.0
_SHOWN_LINES: Final = 12


class _Description(Struct):
    manifests: list[Manifest] = []
    problem: str = ""


def describe(project: Project, *, timeout_s: float = IMPORT_LIMIT_S) -> list[Manifest]:
    """The manifests of all algorithms in the project.

    Raises BadProject with the last lines of the traceback when the code cannot be imported, takes longer than
    `timeout_s` seconds to, or holds no algorithm after all.
    """
    with tempfile.TemporaryFile() as out:
        command = [sys.executable, "-P", "-m", "algomesh.describe", str(out.fileno()), str(project.folder)]
        with subprocess.Popen(
            [*command, *project.modules],
            pass_fds=[out.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as child:
            try:
                said, _ = child.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired as error:
                child.kill()
                raise BadProject(f"importing {', '.join(project.modules)} took over {timeout_s:g} s") from error
        out.seek(0)
        data = out.read()
    if not data:
        tail = said.decode(errors="replace").strip().splitlines()[-_SHOWN_LINES:]
        raise BadProject(f"the project ended its process (status {child.returncode}) when imported\n" + "\n".join(tail))
    description = msgspec.json.decode(data, type=_Description)
    if description.problem:
        raise BadProject(description.problem)
    return [msgspec.structs.replace(manifest, requirements=project.requirements) for manifest in description.manifests]


def _describe_here(folder: str, modules: list[str]) -> _Description:
    sys.path.insert(0, folder)
    os.chdir(folder)
    found: dict[str, Manifest] = {}
    for name in modules:
        try:
            module = importlib.import_module(name)
        except MeshError as error:
            return _Description(problem=f"{name}: {error}")
        except BaseException as error:  # whatever the user's module raises
            lines = "".join(traceback.format_exception(error)).strip().splitlines()[-_SHOWN_LINES:]
            return _Description(problem=f"{name} cannot be imported:\n" + "\n".join(lines))
        for attribute, thing in vars(module).items():
            if not isinstance(thing, Algorithm):
                continue
            manifest = thing.manifest(f"{name}:{attribute}")
            version = str(thing.version_id)
            if version in found and found[version].entry != manifest.entry:
                return _Description(problem=f"{version} is defined twice: {found[version].entry}, {manifest.entry}")
            found[version] = manifest
    if not found:
        return _Description(problem=f"{', '.join(modules)} was imported, and defined no algorithm")
    return _Description(manifests=list(found.values()))


def _main(arguments: list[str]) -> None:
    out = os.fdopen(int(arguments[0]), "wb")
    description = _describe_here(arguments[1], arguments[2:])
    out.write(msgspec.json.encode(description))
    out.close()
    # Threads and exit handlers of the user's modules are not waited for.
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1:])
