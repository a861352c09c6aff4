"""A project in another language: a folder with `algomesh.toml`, which says what Python code would say by @algorithm.

    name = "text/slugify"
    version = "1.0.0"
    command = ["node", "slugify.js"]   # run in this folder; docs/protocol.md is what it must speak
    image = "node:22-slim"             # for meshes that run instances in containers; may be left out
    description = "…"
    takes = "text"                     # kinds, so that neighbours in a pipeline can be compared; may be left out
    gives = "text"
    exclude = ["*.test.js"]            # what stays at home

    [options]                          # as in @algorithm: gpu, memory, concurrency, timeout, idle, …
    concurrency = 4
    timeout = "30s"

What is packed must run where it is unpacked: no package manager is called there. So the packages of a Node project
travel with it, those of its package-lock.json that are no development tools; they must be installed as locked.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from algomesh.decorator import algorithm
from algomesh.errors import BadProject, BadReference
from algomesh.project import Project, walk
from algomesh_broker.names import nearest
from algomesh_broker.platform import Manifest, Options

FILE: Final = "algomesh.toml"
_KEYS: Final = ("name", "version", "command", "image", "description", "takes", "gives", "exclude", "options")
OPTIONS: Final = (
    "gpu", "memory", "concurrency", "timeout", "idle", "min_instances", "max_instances", "retry", "calls",
    "latency_value", "prewarm",
)  # fmt: skip
_STAY_AT_HOME: Final = (".*", "__pycache__", "*.pyc", "venv", "node_modules", "*.log")
_NOT_RUN: Final = (".*", "*.d.ts", "*.d.cts", "*.d.mts", "*.map")
_SCRIPT: Final = re.compile(r"[^-].*\.(js|mjs|cjs|ts|py|rb|pl|php|lua|sh|jar|wasm|r|jl)", re.IGNORECASE)
_BASE: Final = r"text|binary|tensor|json(:(object|number|boolean|null|array))?"
_KIND: Final = re.compile(rf"({_BASE})(\[.*\])?(\|({_BASE})(\[.*\])?)*")


def is_foreign(folder: Path) -> bool:
    """Whether a folder describes itself in `algomesh.toml`."""
    return (folder / FILE).is_file()


def read_foreign(folder: Path) -> tuple[Project, Manifest]:
    """What to pack and what it is. Raises BadProject with what is wrong and how it should be."""
    folder = folder.resolve()
    table = _read_table(folder / FILE)
    _check_known(table, _KEYS, "")
    command = _texts(table, "command")
    if not command:
        raise _bad('`command` is missing; write what starts it, like command = ["node", "slugify.js"]')
    exclude = _texts(table, "exclude")
    packages = list(_node_packages(folder))
    files = [*walk(folder, folder, [*_STAY_AT_HOME, *exclude]), *packages]
    _check_command(folder, command, {file.as_posix() for file in files})
    manifest = describe_foreign(
        name=_text(table, "name", needed='"owner/name"'),
        version=_text(table, "version", needed='"1.0.0"'),
        options=table.get("options", {}),
        description=_text(table, "description"),
        takes=_kind(table, "takes"),
        gives=_kind(table, "gives"),
        command=command,
        image=_text(table, "image"),
    )
    return Project(folder, sorted(set(files)), [], [], keeps_modes=True), manifest


def describe_foreign(
    *,
    name: str,
    version: str,
    options: dict[str, Any],
    description: str = "",
    takes: str = "",
    gives: str = "",
    command: list[str],
    image: str = "",
) -> Manifest:
    """The manifest of something that is not Python; `options` are those of @algorithm that it may have.

    Without a `command` it is one that runs outside: no launcher can start it.

    Raises BadProject.
    """
    if not isinstance(options, dict):
        raise _bad("[options] is a table, like `concurrency = 4` below a line `[options]`")
    _check_known(options, OPTIONS, "[options] ")
    given = dict(options)
    if given.get("timeout") == "none":
        given["timeout"] = None
    try:
        made = algorithm(name, version=version, **given)(_stands_for_it)
    except (TypeError, ValueError, BadReference) as error:
        raise _bad(str(error)) from error
    wanted: Options = made.options
    return Manifest(
        owner=made.version_id.owner,
        name=made.version_id.name,
        version=str(made.version_id.version),
        entry="",
        description=description,
        options=wanted,
        takes=takes,
        gives=gives,
        command=command,
        image=image,
        is_outside=not command,
    )


def _stands_for_it(value: Any) -> Any:
    """So that @algorithm reads the options of what is not Python."""
    return value


def _read_table(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise _bad(f"it cannot be read: {error}") from error


def _check_known(table: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            meant = nearest(key, list(known), 1)
            hint = f"did you mean {meant[0]!r}?" if meant else f"known are {', '.join(known)}"
            misplaced = "; it belongs below [options]" if not where and key in OPTIONS else f"; {hint}"
            raise _bad(f"{where}has no setting {key!r}{misplaced}")


def _text(table: dict[str, Any], key: str, *, needed: str = "") -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise _bad(f"`{key}` is {value!r}, and should be a text")
    if needed and not value:
        raise _bad(f"`{key}` is missing; write {key} = {needed}")
    return value


def _texts(table: dict[str, Any], key: str) -> list[str]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        example = '["node", "slugify.js"]' if key == "command" else '["*.test.js"]'
        raise _bad(f"`{key}` is {value!r}, and should be a list of texts, like {key} = {example}")
    return value


def _kind(table: dict[str, Any], key: str) -> str:
    value = _text(table, key)
    if value and not _KIND.fullmatch(value):
        raise _bad(f"`{key}` is {value!r}, which is no kind; write text, json, json:array[text], binary or tensor")
    return value


def _check_command(folder: Path, command: list[str], files: set[str]) -> None:
    """See that what the command names of this folder is packed, and can be run."""
    program = command[0]
    inside = program.removeprefix("./")
    if program.startswith("/"):
        raise _bad(f"`command` begins with {program!r}; name a program of the PATH, or a file of this folder")
    if "/" in program and inside not in files:
        raise _bad(f"`command` names {program!r}, which is not in this folder, or is excluded")
    if "/" in program and not os.access(folder / inside, os.X_OK):
        raise _bad(f"`command` names {program!r}, which cannot be executed; run `chmod +x {inside}`")
    for word in command[1:]:
        if _SCRIPT.fullmatch(word) and not word.startswith("/") and word.removeprefix("./") not in files:
            raise _bad(f"`command` names {word!r}, which is not in this folder, or is excluded")


def _node_packages(folder: Path) -> Iterator[Path]:
    """The files of the packages that a Node project needs when it runs."""
    package, lock = folder / "package.json", folder / "package-lock.json"
    if not package.is_file() or not _read_json(package).get("dependencies"):
        return
    if not lock.is_file():
        raise BadProject(
            f"{folder.name}/package.json has dependencies, and no package-lock.json says of which versions; "
            "run `npm install` there, and publish again"
        )
    for place, locked in _read_json(lock).get("packages", {}).items():
        if not place or locked.get("dev") or locked.get("link"):
            continue
        there = folder / place / "package.json"
        found = _read_json(there).get("version") if there.is_file() else None
        if found is None and (locked.get("optional") or locked.get("devOptional")):
            continue
        if found != locked.get("version"):
            what = "is not installed" if found is None else f"is installed as {found}"
            raise BadProject(
                f"{folder.name}/{place} {what}, and package-lock.json says {locked.get('version')}; "
                "packages travel with the project: run `npm ci --omit=dev` there, and publish again"
            )
        nested = f"{place}/node_modules"
        yield from walk(folder / place, folder, [*_NOT_RUN, nested, f"{nested}/*"])


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise BadProject(f"{file.parent.name}/{file.name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise BadProject(f"{file.parent.name}/{file.name} is not a JSON object")
    return found


def _bad(sentence: str) -> BadProject:
    return BadProject(f"{FILE}: {sentence}")
