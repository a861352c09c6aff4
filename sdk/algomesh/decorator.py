"""`@algorithm`: turns a function, or a class with `load()` and `apply(x)`, into an algorithm.

The decorated object stays what it was for its own process: a plain callable that runs without a mesh.
"""

import inspect
import re
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from typing import Any, Final, Generic, ParamSpec, TypeVar

from msgspec import structs

from algomesh import streams
from algomesh.batch import Batch, batch_of, check_outputs
from algomesh.composing import Composable
from algomesh.durations import parse_duration
from algomesh.errors import BadReference
from algomesh.kinds import Face, kind_of, notation
from algomesh.pipeline import Pipeline, stage_of
from algomesh.signature import Signature, read_batch_signature, read_signature
from algomesh_broker.errors import BadName
from algomesh_broker.names import Reference, Version, VersionId
from algomesh_broker.platform import Manifest, Options

P = ParamSpec("P")
R = TypeVar("R")

_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*(Ki|Mi|Gi|Ti|K|M|G|T|)B?")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

_decorated: Final[weakref.WeakValueDictionary[VersionId, Any]] = weakref.WeakValueDictionary()


class Algorithm(Composable, Generic[P, R]):
    """A function or class with a name, a version and options; call it as before, or compose it with `|` and `&`.

    `version_id` and `options` are what the mesh sees; `signature` how it reads input. Options of one stage of a
    pipeline are given by `algomesh.stage(algorithm).options(…)`.
    """

    def __init__(self, target: Callable[P, R] | type, version_id: VersionId, options: Options) -> None:
        self.target = target
        self.version_id = version_id
        self.is_class = isinstance(target, type)
        self._body = _apply_of(target) if isinstance(target, type) else target
        self.is_async = inspect.iscoroutinefunction(self._body) or inspect.isasyncgenfunction(self._body)
        self.yields = streams.yields(self._body)
        read = read_batch_signature if options.batch_max else read_signature
        self.signature: Signature = read(self._body, method=self.is_class)
        self.item_taken = streams.item_taken(self.signature.takes)
        self.options = structs.replace(options, streams=self.yields, takes_parts=self.item_taken is not None)
        if self.item_taken is not None and streams.is_async(self.signature.takes) != self.is_async:
            wanted = "AsyncIterator" if self.is_async else "Iterator"
            raise TypeError(f"{target.__qualname__} is {'' if self.is_async else 'not '}async; annotate {wanted}[…]")
        if options.batch_max and (self.yields or self.item_taken is not None):
            raise TypeError(f"{target.__qualname__} takes or yields parts, and batch=… wants lists of whole values")
        if options.cache_s and (self.yields or self.item_taken is not None):
            raise TypeError(f"{target.__qualname__} takes or yields parts, and cache=… keeps whole results")
        self._loaded: Callable[P, R] | None = None if isinstance(target, type) else target
        self._loading = threading.Lock()
        self.__doc__, self.__module__ = target.__doc__, target.__module__
        self.__name__, self.__qualname__ = target.__name__, target.__qualname__
        _decorated[version_id] = self

    @property
    def pipeline(self) -> Pipeline:
        """The stage that this very version is."""
        return stage_of(self)

    @cached_property
    def face(self) -> Face:
        """What it takes and gives, as its neighbours in a pipeline see it."""
        name = str(self.version_id)
        taken = kind_of(self.signature.takes, name)
        return Face((taken,) if taken.notation else (), kind_of(self.signature.gives, name, given=True))

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

    def run_one(self, value: Any) -> Any:
        """Run the code here on one input, for one output, whether it takes batches or not; async code's is awaitable.

        Raises what the code raises, and BadOutput for a batch of one that does not return one output.
        """
        function: Any = self.loaded()
        if not self.options.batch_max:
            return function(value)
        outputs = function([value])
        return _only(outputs) if inspect.isawaitable(outputs) else check_outputs(outputs, 1)[0]

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
            takes=notation(self.signature.takes),
            gives=notation(self.signature.gives, given=True),
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
    batch: Batch | int | None = None,
    cache: float | str | None = None,
    latency_value: float | None = None,
    prewarm: bool = True,
) -> Callable[[Callable[P, R]], Algorithm[P, R]]:
    """Make an algorithm of a function of one argument, or of a class with `load()` and `apply(x)`.

    name: `owner/name`.
    version: `1.2.0`; what is published under it never changes.
    gpu: share of a GPU (0.25), or how many (2); without a GPU it runs on the CPU.
    memory: limit per instance, `"2Gi"` or bytes; one that takes more is ended.
    concurrency: how many runs one instance takes at a time.
    timeout: longest run, seconds or `"5m"`; None for none.
    idle: how long an unused instance stays, seconds or `"10m"`; one with a GPU goes earlier, or stays longer, where the
        pre-warmer predicts that this pays.
    min_instances, max_instances: bounds of how many run.
    retry: whether a run whose instance died may be repeated (True: 3 attempts; a number: so many).
    calls: what it may call, `owner/name` or `owner/*`.
    preload: heavy modules to be imported before it is forked, such as `["torch"]`.
    batch: run up to so many calls together; the code then takes a list and returns one, its callers single values.
    cache: for pure code: how long a result is kept for the same version and input, seconds or `"10m"`; errors and
        results over 512 KiB are not.
    latency_value: how many seconds of a held GPU a second of a caller's waiting is worth (the mesh's own, 5, for
        None; 0 never starts it ahead).
    prewarm: False to have it started by calls alone, and kept for `idle`.

    Raises BadReference for the name or version, TypeError or ValueError for an option.
    """
    version_id = _version_id(name, version)
    together = batch_of(batch)
    if together and calls:
        raise ValueError("a batch runs for several callers and cannot call on behalf of one; leave out calls or batch")
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
        batch_max=together.max if together else 0,
        batch_wait_ms=float(together.wait_ms) if together else 0.0,
        cache_s=0.0 if cache is None else parse_duration("cache", cache),
        latency_value=None if latency_value is None else _worth(latency_value),
        prewarm=_switch("prewarm", prewarm),
    )

    def decorate(target: Callable[P, R]) -> Algorithm[P, R]:
        return Algorithm(target, version_id, options)

    return decorate


def find_algorithm(reference: Reference) -> Algorithm[Any, Any] | None:
    """The decorated object that a reference means in this process: the newest version that fits, None if none does."""
    fitting = [
        version_id
        for version_id in list(_decorated)
        if (version_id.owner, version_id.name) == reference[:2]
        and f"{version_id.version}.".startswith(f"{reference.version}." if reference.version else "")
    ]
    return _decorated.get(max(fitting)) if fitting else None


def parse_memory(text: str | int | None) -> int | None:
    """Bytes of `"2Gi"`, `"512Mi"`, `"1G"` or a number. Raises ValueError."""
    if text is None:
        return None
    match = _MEMORY.fullmatch(str(text).strip())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 2**20:
        raise ValueError(f"memory={text!r} is not a size of at least 1Mi; write '512Mi' or '2Gi'")
    return size


async def _only(outputs: Awaitable[Any]) -> Any:
    return check_outputs(await outputs, 1)[0]


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


def _worth(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e6:
        raise ValueError(f"latency_value={value!r} is not a number from 0 to 1,000,000")
    return float(value)


def _switch(option: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{option}={value!r} is True or False")
    return value


def _gpu(value: float) -> float:
    if not 0 <= value <= 64 or (value > 1 and value != int(value)):
        raise ValueError(f"gpu={value!r} is a share of one GPU (0.25) or a whole number of them (2)")
    return float(value)
