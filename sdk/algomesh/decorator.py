"""`@algorithm`: turns a function, or a class with `load()` and `apply(x)`, into an algorithm.

The decorated object stays what it was for its own process: a plain callable that runs without a mesh.
"""

import inspect
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

from algomesh.errors import BadReference
from algomesh.signature import Signature, read_signature
from algomesh_broker.errors import BadName
from algomesh_broker.names import Reference, Version, VersionId
from algomesh_broker.platform import Manifest, Options

P = ParamSpec("P")
R = TypeVar("R")

_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*(Ki|Mi|Gi|Ti|K|M|G|T|)B?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SECONDS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0}


class Algorithm(Generic[P, R]):
    """A function or class with a name, a version and options; call it as before.

    `version_id` and `options` are what the mesh sees; `signature` how it reads input.
    """

    def __init__(self, target: Callable[P, R] | type, version_id: VersionId, options: Options) -> None:
        self.target = target
        self.version_id = version_id
        self.options = options
        self.is_class = isinstance(target, type)
        self._body = _apply_of(target) if isinstance(target, type) else target
        self.is_async = inspect.iscoroutinefunction(self._body)
        self.signature: Signature = read_signature(self._body, method=self.is_class)
        self._loaded: Callable[P, R] | None = None if isinstance(target, type) else target
        self._loading = threading.Lock()
        self.__doc__, self.__module__ = target.__doc__, target.__module__
        self.__name__, self.__qualname__ = target.__name__, target.__qualname__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the code here, without a mesh."""
        return self.loaded()(*args, **kwargs)

    def loaded(self) -> Callable[P, R]:
        """The callable that runs: the function itself, or `apply` of an object that was loaded once."""
        if self._loaded is None:
            with self._loading:
                if self._loaded is None:
                    thing: Any = self.target()  # type: ignore[call-arg]  # a class without arguments
                    load = getattr(thing, "load", None)
                    if load is not None:
                        load()
                    self._loaded = thing.apply
        assert self._loaded is not None
        return self._loaded

    @property
    def description(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.target) or "").partition("\n")[0][:200]

    def manifest(self, entry: str, requirements: Sequence[str] = ()) -> Manifest:
        """What the registry keeps of this version; `entry` is `module:attribute`."""
        return Manifest(
            owner=self.version_id.owner,
            name=self.version_id.name,
            version=str(self.version_id.version),
            entry=entry,
            description=self.description,
            options=self.options,
            input_schema=self.signature.input_schema,
            output_schema=self.signature.output_schema,
            requirements=list(requirements),
        )

    def __repr__(self) -> str:
        return f"<algorithm {self.version_id}>"


def algorithm(
    name: str,
    *,
    version: str,
    gpu: float = 0,
    memory: str | int | None = None,
    concurrency: int = 1,
    timeout: float | str | None = 60.0,
    idle: float | str = 60.0,
    min_instances: int = 0,
    max_instances: int = 4,
    retry: bool | int = True,
    calls: Sequence[str] = (),
    preload: Sequence[str] = (),
) -> Callable[[Callable[P, R]], Algorithm[P, R]]:
    """Make an algorithm of a function of one argument, or of a class with `load()` and `apply(x)`.

    name: `owner/name`.
    version: `1.2.0`; what is published under it never changes.
    gpu: share of a GPU (0.25), or how many (2); without a GPU it runs on the CPU.
    memory: limit per instance, `"2Gi"` or bytes; one that takes more is ended.
    concurrency: how many runs one instance takes at a time.
    timeout: longest run, seconds or `"5m"`; None for none.
    idle: how long an unused instance stays, seconds or `"10m"`.
    min_instances, max_instances: bounds of how many run.
    retry: whether a run whose instance died may be repeated (True: 3 attempts; a number: so many).
    calls: what it may call, `owner/name` or `owner/*`.
    preload: heavy modules to be imported before it is forked, such as `["torch"]`.

    Raises BadReference for the name or version, TypeError or ValueError for an option.
    """
    version_id = _version_id(name, version)
    options = Options(
        gpu=_gpu(gpu),
        memory_bytes=parse_memory(memory),
        concurrency=_count("concurrency", concurrency, 1, 10_000),
        timeout_s=None if timeout is None else parse_duration("timeout", timeout),
        idle_s=parse_duration("idle", idle),
        min_instances=_count("min_instances", min_instances, 0, 1000),
        max_instances=_count("max_instances", max_instances, max(1, min_instances), 1000),
        attempts=3 if retry is True else 1 if retry is False else _count("retry", retry, 1, 100),
        calls=[_pattern(pattern) for pattern in _strings("calls", calls)],
        preload=sorted(set(_strings("preload", preload))),
    )

    def decorate(target: Callable[P, R]) -> Algorithm[P, R]:
        return Algorithm(target, version_id, options)

    return decorate


def parse_memory(text: str | int | None) -> int | None:
    """Bytes of `"2Gi"`, `"512Mi"`, `"1G"` or a number. Raises ValueError."""
    if text is None:
        return None
    match = _MEMORY.fullmatch(str(text).strip())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 2**20:
        raise ValueError(f"memory={text!r} is not a size of at least 1Mi; write '512Mi' or '2Gi'")
    return size


def parse_duration(option: str, value: float | str) -> float:
    """Seconds of `90`, `"90s"`, `"5m"`, `"2h"`. Raises ValueError."""
    match = _DURATION.fullmatch(str(value).strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= 7 * 86400:
        raise ValueError(f"{option}={value!r} is not a duration; write seconds or '5m', at most 168h")
    return seconds


def _apply_of(target: type) -> Callable[..., Any]:
    body: Callable[..., Any] | None = getattr(target, "apply", None)
    if body is None or not callable(body):
        raise TypeError(f"class {target.__name__} has no method apply(self, x); an algorithm needs one")
    return body


def _version_id(name: str, version: str) -> VersionId:
    try:
        reference = Reference.parse(name)
        if reference.version:
            raise BadReference(f"write @algorithm({reference.algorithm!r}, version={reference.version!r})")
        return VersionId(reference.owner, reference.name, Version.parse(version))
    except BadName as error:
        raise BadReference(str(error)) from error


def _pattern(text: str) -> str:
    if text.endswith("/*"):
        return f"{Reference.parse(text[:-1] + 'x').owner}/*"
    try:
        return Reference.parse(text).algorithm
    except BadName as error:
        raise BadReference(f"calls: {error}") from error


def _strings(option: str, values: Sequence[str]) -> list[str]:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{option} is a list of texts, like {option}=['torch']")
    return list(values)


def _count(option: str, value: int, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{option}={value!r} is not a whole number from {least} to {most}")
    return value


def _gpu(value: float) -> float:
    if not 0 <= value <= 64 or (value > 1 and value != int(value)):
        raise ValueError(f"gpu={value!r} is a share of one GPU (0.25) or a whole number of them (2)")
    return float(value)
