"""A project that can be published: a folder with algorithms or named pipelines in it, or one file.

A folder may have a pyproject.toml: `[project] dependencies` are what it needs, `[tool.algomesh] modules` where
its algorithms are (else every top-level module that uses @algorithm, or has a variable that is `named(…)`),
`[tool.algomesh] exclude` what stays at home. One file may carry its dependencies as PEP 723 inline metadata.
Source: https://packaging.python.org/en/latest/specifications/inline-script-metadata/
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final, NamedTuple

from algomesh.errors import BadProject
from algomesh_broker.names import nearest

_SCRIPT: Final = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
_KEYS: Final = {"modules", "exclude"}
_STAY_AT_HOME: Final = (
    ".*", "__pycache__", "*.pyc", "*.egg-info", "venv", "node_modules", "build", "dist", "test_*.py", "tests",
)  # fmt: skip
_MOST_FILES: Final = 10_000


class Project(NamedTuple):
    """What to pack and what to import: `files` are paths below `folder`; `keeps_modes`: some may be programs to run."""

    folder: Path
    files: list[Path]
    modules: list[str]
    requirements: list[str]
    keeps_modes: bool = False


def read_project(path: str | Path) -> Project:
    """Read the project at `path`. Raises BadProject with what is wrong and how it should be."""
    place = Path(path)
    if place.is_file():
        return _read_file(place.resolve())
    if not place.is_dir():
        raise BadProject(f"{place} is neither a folder nor a .py file")
    return _read_folder(place.resolve())


def _read_file(file: Path) -> Project:
    if file.suffix != ".py":
        raise BadProject(f"{file.name} is not a .py file; publish a folder, one .py file, or a pipeline's .json file")
    if not _uses_algorithm(file):
        raise BadProject(f"{file.name} has no @algorithm and no named pipeline in it")
    return Project(file.parent, [Path(file.name)], [_module_name(file)], _script_requirements(file))


def _read_folder(folder: Path) -> Project:
    settings, requirements = _read_pyproject(folder / "pyproject.toml")
    exclude = [*_STAY_AT_HOME, *_texts(settings, "exclude")]
    files = sorted(walk(folder, folder, exclude))
    modules = _texts(settings, "modules")
    for module in modules:
        if not ((folder / f"{module}.py").is_file() or (folder / module / "__init__.py").is_file()):
            raise BadProject(f"[tool.algomesh] modules names {module!r}, but {folder.name}/{module}.py is not there")
    if not modules:
        top = [folder / file for file in files if len(file.parts) == 1 and file.suffix == ".py"]
        packages = [folder / file for file in files if len(file.parts) == 2 and file.name == "__init__.py"]
        modules = [_module_name(file) for file in top if _uses_algorithm(file)]
        modules += [file.parent.name for file in packages if _uses_algorithm(file)]
    if not modules:
        raise BadProject(
            f"{folder.name} has no algorithm in it: no top-level .py file uses @algorithm, or names a pipeline. "
            'Write one, or name its module in pyproject.toml: [tool.algomesh] modules = ["my_module"]; '
            "what is not Python describes itself in algomesh.toml"
        )
    return Project(folder, files, modules, requirements)


def _read_pyproject(file: Path) -> tuple[dict[str, Any], list[str]]:
    if not file.exists():
        return {}, []
    try:
        table = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise BadProject(f"{file.name} cannot be read: {error}") from error
    settings = table.get("tool", {}).get("algomesh", {})
    for key in settings:
        if key not in _KEYS:
            meant = nearest(key, sorted(_KEYS), 1)
            hint = f"; did you mean {meant[0]!r}?" if meant else f"; known are {', '.join(sorted(_KEYS))}"
            raise BadProject(f"pyproject.toml: [tool.algomesh] has no setting {key!r}{hint}")
    return settings, _requirements(table.get("project", {}).get("dependencies", []), file.name)


def _script_requirements(file: Path) -> list[str]:
    text = file.read_text(errors="replace")
    blocks = [match for match in _SCRIPT.finditer(text) if match["type"] == "script"]
    if len(blocks) > 1:
        raise BadProject(f"{file.name} has {len(blocks)} `# /// script` blocks; one is allowed")
    if not blocks:
        return []
    lines = blocks[0]["content"].splitlines(keepends=True)
    toml = "".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)
    try:
        return _requirements(tomllib.loads(toml).get("dependencies", []), file.name)
    except tomllib.TOMLDecodeError as error:
        raise BadProject(f"{file.name}: the `# /// script` block is not TOML: {error}") from error


def _requirements(found: Any, where: str) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise BadProject(f'{where}: dependencies must be a list of texts, like ["numpy>=2"]')
    return [item for item in found if not re.match(r"algomesh\b", item, re.IGNORECASE)]


def _texts(settings: dict[str, Any], key: str) -> list[str]:
    value = settings.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadProject(f"pyproject.toml: [tool.algomesh] {key} must be a list of texts")
    return value


def walk(folder: Path, top: Path, exclude: list[str], count: int = 0) -> Iterator[Path]:
    """The files below `folder`, as paths below `top`, without what matches `exclude`. Raises BadProject."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise BadProject(f"{folder} cannot be read: {error}") from error
    for entry in entries:
        inside = entry.relative_to(top)
        if any(fnmatch(entry.name, pattern) or fnmatch(str(inside), pattern) for pattern in exclude):
            continue
        if entry.is_symlink() and not entry.resolve().is_relative_to(top):
            raise BadProject(f"{inside} is a link that leads out of the project; copy what it points to, or exclude it")
        if entry.is_dir():
            yield from walk(entry, top, exclude, count)
        elif entry.is_file():
            count += 1
            if count > _MOST_FILES:
                raise BadProject(f"{top.name} has over {_MOST_FILES:,} files; exclude what the algorithm does not need")
            yield inside


def _uses_algorithm(file: Path) -> bool:
    """Whether a module decorates something with @algorithm or names a pipeline, by its syntax alone: nothing is
    imported here."""
    try:
        tree = ast.parse(file.read_bytes(), file.name)
    except (SyntaxError, ValueError) as error:
        raise BadProject(f"{file.name} is not Python: {error}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and any(
            _is_use_of("algorithm", decorator) for decorator in node.decorator_list
        ):
            return True
    return any(
        isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call)
        and _is_use_of("named", node.value)
        for node in tree.body
    )  # fmt: skip


def _is_use_of(name: str, used: ast.expr) -> bool:
    called = used.func if isinstance(used, ast.Call) else used
    return (isinstance(called, ast.Name) and called.id == name) or (
        isinstance(called, ast.Attribute) and called.attr == name
    )


def _module_name(file: Path) -> str:
    if not file.stem.isidentifier():
        raise BadProject(f"{file.name} cannot be imported by that name; use letters, digits and _")
    return file.stem
