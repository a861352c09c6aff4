"""What algorithms and named pipelines a project holds: its code is imported in a child process, never in this one.

`describe` starts the child; run as a module this file is the child.
"""

import importlib
import os
import subprocess
import sys
import tempfile
import traceback
from typing import Any, Final

import msgspec
from msgspec import Struct

from algomesh.decorator import Algorithm
from algomesh.errors import BadProject, MeshError
from algomesh.naming import Named
from algomesh.project import Project
from algomesh_broker.platform import Manifest

IMPORT_LIMIT_S: Final = 120.0
_SHOWN_LINES: Final = 12


class _Description(Struct):
    manifests: list[Manifest] = []
    problem: str = ""


def describe(project: Project, *, timeout_s: float = IMPORT_LIMIT_S) -> list[Manifest]:
    """The manifests of all algorithms in the project, then those of its named pipelines.

    Raises BadProject with the last lines of the traceback when the code cannot be imported, takes longer than
    `timeout_s` seconds to, or holds no algorithm after all.
    """
    with tempfile.TemporaryFile() as out:
        is_alone = "alone" if len(project.files) == 1 else "all"
        command = [sys.executable, "-P", "-m", "algomesh.describe", str(out.fileno()), str(project.folder), is_alone]
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
    return [
        manifest if manifest.pipeline else msgspec.structs.replace(manifest, requirements=project.requirements)
        for manifest in description.manifests
    ]


def _describe_here(folder: str, modules: list[str], *, is_alone: bool) -> _Description:
    """Import `modules`; `is_alone` when nothing else is packed, so that what they import is not theirs to publish."""
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
            if isinstance(thing, Named):
                manifest = thing.manifest()
            elif isinstance(thing, Algorithm) and not _is_of_another(thing, name, modules, is_alone):
                manifest = thing.manifest(f"{name}:{attribute}")
            else:
                continue
            version = str(thing.version_id)
            if version in found and (found[version].entry, found[version].pipeline) != (
                manifest.entry, manifest.pipeline
            ):  # fmt: skip
                first = found[version].entry or "another pipeline"
                return _Description(
                    problem=f"{version} is defined twice: {first}, {manifest.entry or f'{name}:{attribute}'}"
                )
            found[version] = manifest
    if not found:
        return _Description(problem=f"{', '.join(modules)} was imported, and defined no algorithm")
    # Pipelines last: their stages may be among the algorithms.
    return _Description(manifests=sorted(found.values(), key=lambda manifest: bool(manifest.pipeline)))


def _is_of_another(thing: Algorithm[Any, Any], name: str, modules: list[str], is_alone: bool) -> bool:
    """Whether it was only imported here, as a stage of a pipeline, say."""
    home = thing.__module__.partition(".")[0]
    return home != name.partition(".")[0] and (is_alone or home in modules)


def _main(arguments: list[str]) -> None:
    out = os.fdopen(int(arguments[0]), "wb")
    description = _describe_here(arguments[1], arguments[3:], is_alone=arguments[2] == "alone")
    out.write(msgspec.json.encode(description))
    out.close()
    # Threads and exit handlers of the user's modules are not waited for.
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1:])
