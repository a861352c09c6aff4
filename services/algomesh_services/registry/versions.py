"""Whether a version may be published, or called by an alias: bounds, requirements, what it wants to call.

Pure functions that raise Refusal with what to do about it. User code is never imported here.
"""

import importlib.metadata
import math
import re
from collections.abc import Iterable

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from algomesh_broker.errors import BadName
from algomesh_broker.messages import AlgorithmEntry
from algomesh_broker.names import RESERVED_OWNERS, Version, VersionId, check_alias, check_name
from algomesh_broker.permissions import Pattern, may_call
from algomesh_broker.platform import AliasSet, Manifest, Options
from algomesh_broker.request_server import Refusal

_MODULE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_ENTRY = re.compile(rf"{_MODULE}:{_MODULE}", re.ASCII)
_DOTTED = re.compile(_MODULE, re.ASCII)
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._/:@-]*", re.ASCII)
_LONGEST_DESCRIPTION, _LONGEST_SCHEMA, _LONGEST_LINE = 4_000, 64 * 1024, 500
_MOST_WORDS, _LONGEST_COMMAND = 256, 16 * 1024
_MOST_CALLS, _MOST_PRELOADS, _MOST_REQUIREMENTS = 64, 64, 256
_MOST_ALIASES, _MOST_TARGETS, _MOST_WEIGHT = 64, 16, 1_000_000
_DAY_S = 86_400.0
LARGEST_PIPELINE = 256 * 1024


def check_manifest(manifest: Manifest, algorithm: str) -> VersionId:
    """The version that `manifest` describes, which was sent under the subject of `algorithm`. Raises Refusal."""
    try:
        version = VersionId(check_name(manifest.owner), check_name(manifest.name), Version.parse(manifest.version))
    except BadName as error:
        raise Refusal("bad_manifest", f"the manifest's name: {error}") from error
    if version.algorithm != algorithm:
        raise Refusal("bad_manifest", f"the manifest is of {version.algorithm}, and was sent as {algorithm}")
    if version.owner in RESERVED_OWNERS:
        raise Refusal("name_reserved", f"the owner {version.owner!r} is kept for the mesh itself; take another")
    if manifest.pipeline:
        _check_pipeline(version, manifest)
    elif manifest.command or manifest.is_outside:
        _check_command(version, manifest)
    elif not _ENTRY.fullmatch(manifest.entry) or len(manifest.entry) > _LONGEST_LINE:
        raise _bad(version, "entry", manifest.entry, "write module:attribute")
    if len(manifest.image) > _LONGEST_LINE or (manifest.image and not _IMAGE.fullmatch(manifest.image)):
        raise _bad(version, "image", manifest.image, "write it as docker does, like 'node:22-slim'")
    if len(manifest.description) > _LONGEST_DESCRIPTION:
        raise _bad(version, "description", "…", f"write at most {_LONGEST_DESCRIPTION} characters")
    if max(len(manifest.input_schema), len(manifest.output_schema)) > _LONGEST_SCHEMA:
        raise _bad(version, "input_schema or output_schema", "…", f"it has at most {_LONGEST_SCHEMA} bytes")
    if max(len(manifest.takes), len(manifest.gives)) > _LONGEST_LINE:
        raise _bad(version, "takes or gives", "…", f"it has at most {_LONGEST_LINE} letters")
    _check_options(version, manifest.options)
    if len(manifest.requirements) > _MOST_REQUIREMENTS:
        raise _bad(version, "requirements", len(manifest.requirements), f"name at most {_MOST_REQUIREMENTS}")
    return version


def _check_command(version: VersionId, manifest: Manifest) -> None:
    """What is said of a program in another language, and what can only be said of Python code."""
    command, options = manifest.command, manifest.options
    if manifest.entry:
        raise _bad(version, "entry", manifest.entry, "a version has a command or an entry, not both")
    if len(command) > _MOST_WORDS or sum(map(len, command)) > _LONGEST_COMMAND:
        raise _bad(
            version,
            "command",
            f"{command[0]} …",
            f"it has at most {_MOST_WORDS} words and {_LONGEST_COMMAND:,} letters",
        )
    if command and (not command[0] or any("\0" in word for word in command)):
        raise _bad(version, "command", command, "write the program and its arguments, like ['node', 'slugify.js']")
    ours = {"preload": options.preload, "batch_max": options.batch_max, "cache_s": options.cache_s}
    ours |= {"streams": options.streams, "takes_parts": options.takes_parts, "requirements": manifest.requirements}
    for field, value in ours.items():
        if value:
            raise _bad(version, field, value, "only a version in Python can have it")
    if manifest.is_outside and command:
        raise _bad(version, "command", command, "a version that runs outside has none")
    if manifest.is_outside and (options.min_instances or manifest.image):
        raise _bad(version, "command", command, "without one nothing can be started: leave out min_instances and image")


def _check_pipeline(version: VersionId, manifest: Manifest) -> None:
    """A pipeline has no code of its own, so nothing that is said of code."""
    has_code = manifest.entry or manifest.command or manifest.is_outside
    if has_code or manifest.requirements or manifest.options != Options():
        raise _bad(version, "pipeline", "…", "a pipeline has no entry, no requirements and no options of its own")
    if len(manifest.pipeline) > LARGEST_PIPELINE:
        raise _bad(
            version, "pipeline", f"{len(manifest.pipeline):,} bytes of JSON",
            f"it has at most {LARGEST_PIPELINE:,}; publish a part of it under a name of its own",
        )  # fmt: skip


def check_alias_set(asked: AliasSet, entry: AlgorithmEntry | None, algorithm: str) -> None:
    """Whether an alias of an algorithm may mean this; `entry` is the algorithm as it is now. Raises Refusal."""
    try:
        check_alias(asked.alias)
    except BadName as error:
        raise Refusal(error.code, str(error)) from error
    if entry is None:
        raise Refusal("unknown_algorithm", f"there is no algorithm {algorithm!r}; publish it first")
    aliases, there = entry.aliases, [version.version for version in entry.versions]
    if not asked.weights:
        if asked.alias not in aliases:
            named = f"; it has {', '.join(sorted(aliases))}" if aliases else ""
            raise Refusal("unknown_version", f"{algorithm} has no alias {asked.alias!r}{named}")
        return
    for version in asked.weights:
        if version not in there:
            newest = ", ".join(reversed(there[-5:]))
            raise Refusal("unknown_version", f"{algorithm} has no version {version!r}; it has {newest}")
    if asked.alias not in aliases and len(aliases) >= _MOST_ALIASES:
        raise Refusal("bad_reference", f"{algorithm} has {_MOST_ALIASES} aliases already; remove one first")
    weights = asked.weights.values()
    if len(asked.weights) > _MOST_TARGETS or not all(0 <= weight <= _MOST_WEIGHT for weight in weights):
        raise Refusal(
            "bad_reference",
            f"an alias means 1 to {_MOST_TARGETS} versions, each with a weight from 0 to {_MOST_WEIGHT:,}",
        )
    if not any(weights):
        raise Refusal("bad_reference", f"{asked.alias!r} would mean no version at all; give one of them a weight")


def _check_options(version: VersionId, options: Options) -> None:
    bounds: list[tuple[str, float | None, float, float]] = [
        ("gpu", options.gpu, 0, 64),
        ("memory_bytes", options.memory_bytes, 2**20, 2**43),
        ("concurrency", options.concurrency, 1, 1_024),
        ("timeout_s", options.timeout_s, 0.001, 7 * _DAY_S),
        ("idle_s", options.idle_s, 0, 7 * _DAY_S),
        ("min_instances", options.min_instances, 0, options.max_instances),
        ("max_instances", options.max_instances, 1, 1_000),
        ("attempts", options.attempts, 1, 100),
        ("cache_s", options.cache_s, 0, 7 * _DAY_S),
        ("batch_max", options.batch_max, 0, 4_096),
        ("batch_wait_ms", options.batch_wait_ms, 0, 60_000),
    ]
    for field, value, least, most in bounds:
        if value is not None and not (math.isfinite(value) and least <= value <= most):
            raise _bad(version, field, value, f"it is {least:g} to {most:g}")
    if len(options.calls) > _MOST_CALLS:
        raise _bad(version, "calls", len(options.calls), f"name at most {_MOST_CALLS}; 'owner/*' is one")
    for called in options.calls:
        try:
            Pattern.parse(called)
        except BadName as error:
            raise _bad(version, "calls", called, "write owner/name, owner/* or *") from error
    if len(options.preload) > _MOST_PRELOADS:
        raise _bad(version, "preload", len(options.preload), f"name at most {_MOST_PRELOADS} modules")
    for module in options.preload:
        if not _DOTTED.fullmatch(module) or len(module) > _LONGEST_LINE:
            raise _bad(version, "preload", module, "write the name of a module")


def check_calls(version: VersionId, calls: Iterable[str], scopes: Iterable[str]) -> None:
    """Whether a key of these `scopes` may let `version` call all of `calls`. Raises Refusal."""
    held = list(scopes)
    refused = [called for called in calls if not may_call(held, called)]
    if refused:
        raise Refusal(
            "permission_denied",
            f"{version} wants to call {', '.join(refused)}, which the publishing key may not call itself; "
            f"publish with a key that has {' '.join(f'call:{called}' for called in refused)}",
        )


def check_requirements(version: VersionId, requirements: Iterable[str]) -> None:
    """Whether this environment has what `version` requires. Raises Refusal, naming each that is missing."""
    missing = [said for text in requirements if (said := _missing(version, text))]
    if missing:
        names = " ".join(f"'{text}'" for text, _ in missing)
        raise Refusal(
            "requirements_missing",
            f"{version} needs what the mesh's environment lacks: {'; '.join(why for _, why in missing)}. "
            f"Install it where the mesh runs: pip install {names}",
        )


def _missing(version: VersionId, text: str) -> tuple[str, str] | None:
    try:
        requirement = Requirement(text[:_LONGEST_LINE])
    except InvalidRequirement as error:
        raise _bad(
            version, "requirements", text[:_LONGEST_LINE], "write it as pip reads it, like 'numpy>=2'"
        ) from error
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return None
    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        installed = importlib.metadata.version(canonicalize_name(requirement.name))
    except importlib.metadata.PackageNotFoundError:
        return wanted, f"{wanted} is not installed"
    if not requirement.specifier.contains(installed, prereleases=True):
        return wanted, f"{wanted} is required and {installed} is installed"
    return None


def next_free(version: Version, published: Iterable[Version]) -> Version:
    """The next patch version of the same line that is not published yet."""
    same_line = [other.patch for other in published if other[:2] == version[:2]]
    return Version(version.major, version.minor, max([version.patch, *same_line]) + 1)


def _bad(version: VersionId, field: str, value: object, form: str) -> Refusal:
    return Refusal("bad_manifest", f"{version}: {field} is {value!r}; {form}")
