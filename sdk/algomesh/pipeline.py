"""Pipelines as values: what runs after what, composed with `|`, `&`, `all` and `each`, before anything runs.

    clean | (sentiment & topics | merge) | report

`|` chains, `&` runs several on one input (flattened; the result is a list in the order written), `all(x=a, y=b)`
does the same and nests, `.each()` maps over a list. `&` binds tighter than `|`. A pipeline never changes, equal ones
compare equal, and `from_json(to_json())` gives an equal one. It is checked as it is made: neighbours whose types are
known and cannot fit are refused, so are too many stages.
"""

from functools import cached_property, reduce
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from algomesh.composing import Composable, Handle
from algomesh.durations import parse_duration
from algomesh.errors import BadInput, BadReference
from algomesh.kinds import Face, check_neighbours, face_of_all, face_of_each
from algomesh_broker.errors import BadName
from algomesh_broker.names import Reference

MOST_STAGES: Final = 4_000
DEEPEST: Final = 32
MOST_IN_FLIGHT: Final = 1_024
_MOST_SECONDS: Final = 7 * 86_400.0
_MOST_ATTEMPTS: Final = 100
_LONGEST_NAME: Final = 128


class Pipeline(
    Composable, Struct, frozen=True, dict=True, weakref=True, tag_field="kind", omit_defaults=True,
    forbid_unknown_fields=True,
):  # fmt: skip
    """A composition of stages; made by `algomesh.stage`, `algomesh.all` and the operators, never changed."""

    @property
    def pipeline(self) -> "Pipeline":
        """Itself."""
        return self

    @cached_property
    def size(self) -> int:
        """How many stages it has in all."""
        return 1

    @cached_property
    def depth(self) -> int:
        """How deeply fan-outs and eaches are nested; a stage has 0."""
        return 0

    @cached_property
    def face(self) -> Face:
        """What it takes and gives, as far as this process knows."""
        return Face()

    def options(
        self,
        *,
        timeout: float | str | None = None,
        retry: bool | int | None = None,
        cache: float | str | bool | None = None,
    ) -> "Pipeline":
        """Options of one stage; what is left out stays as the version has it.

        timeout: longest run, seconds or `"5m"`. retry: False, True or how many attempts.
        cache: how long a result is kept, seconds or `"10m"`; False for not at all. Raises BadInput.
        """
        raise BadInput(f"options belong to one stage, and this has {self.size}; give them to the stage itself")

    def local(self, value: Any) -> Any:
        """Run it in this process, without a mesh, and return the result.

        Every stage must be an algorithm that this process has imported. Values convert as they do in the mesh;
        timeouts, retries and caches are the mesh's. What a stage raises comes as it is, with a note of the stage.
        Raises UnknownAlgorithm, BadInput.
        """
        from algomesh.local import run_local

        return run_local(self, value)

    def to_json(self) -> bytes:
        """Its JSON form, the same for equal pipelines; `pipeline_schema()` describes it."""
        return msgspec.json.encode(self)

    @staticmethod
    def from_json(data: bytes | str) -> "Pipeline":
        """Read the JSON form. Raises BadInput, or BadReference, with the path of what is wrong."""
        try:
            found = _decode(data)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise BadInput(f"this is not a pipeline: {error}") from error
        return _rebuilt(found, "$", 0)

    def __str__(self) -> str:
        from algomesh.drawing import draw

        return draw(self)

    def __repr__(self) -> str:
        from algomesh.drawing import express

        return express(self)


class Stage(Pipeline, frozen=True, tag="stage"):
    """One algorithm, by its reference; times in seconds, and what is None is as the version has it.

    A stage of an algorithm in this process remembers it for `local`; that is no part of its value.
    """

    reference: str
    timeout_s: float | None = None
    attempts: int | None = None
    cache_s: float | None = None

    @cached_property
    def target(self) -> Reference:
        """The reference, parsed."""
        return Reference.parse(self.reference)

    @property
    def is_plain(self) -> bool:
        """Whether it has no options of its own."""
        return self.timeout_s is None and self.attempts is None and self.cache_s is None

    @property
    def algorithm(self) -> Any:
        """The decorated object it was made of; None for a reference."""
        return self.__dict__.get("algorithm_here")

    @cached_property
    def face(self) -> Face:
        """What the decorated object takes and gives."""
        return Face() if self.algorithm is None else self.algorithm.face

    def options(
        self,
        *,
        timeout: float | str | None = None,
        retry: bool | int | None = None,
        cache: float | str | bool | None = None,
    ) -> "Stage":
        """The same stage with options; see `Pipeline.options`."""
        changed = structs.replace(
            self,
            timeout_s=self.timeout_s if timeout is None else _seconds("timeout", timeout),
            attempts=self.attempts if retry is None else _attempts(retry),
            cache_s=self.cache_s if cache is None else 0.0 if cache is False else _seconds("cache", cache),
        )
        return _remembering(changed, self.algorithm)


class Chain(Pipeline, frozen=True, tag="chain"):
    """One after the other; never directly in another chain."""

    stages: tuple["Node", ...]

    @cached_property
    def size(self) -> int:
        """How many stages it has in all."""
        return sum(stage.size for stage in self.stages)

    @cached_property
    def depth(self) -> int:
        """How deeply it is nested."""
        return max(stage.depth for stage in self.stages)

    @cached_property
    def face(self) -> Face:
        """What it takes and gives."""
        return Face(self.stages[0].face.takes, self.stages[-1].face.gives)


class All(Pipeline, frozen=True, tag="all"):
    """Several on one input; a list, or a mapping where there are `names`. `nests`: `&` takes it as one branch."""

    branches: tuple["Node", ...]
    names: tuple[str, ...] = ()
    nests: bool = False

    @cached_property
    def size(self) -> int:
        """How many stages it has in all."""
        return sum(branch.size for branch in self.branches)

    @cached_property
    def depth(self) -> int:
        """How deeply it is nested."""
        return 1 + max(branch.depth for branch in self.branches)

    @cached_property
    def face(self) -> Face:
        """What it takes and gives."""
        return face_of_all([branch.face for branch in self.branches], is_mapping=bool(self.names))


class Each(Pipeline, frozen=True, tag="each"):
    """Every item of a list through `of`, at most `in_flight` at once; `ordered` keeps the list's order."""

    of: "Node"
    in_flight: int = 8
    ordered: bool = True

    @cached_property
    def size(self) -> int:
        """How many stages it has in all."""
        return self.of.size

    @cached_property
    def depth(self) -> int:
        """How deeply it is nested."""
        return 1 + self.of.depth

    @cached_property
    def face(self) -> Face:
        """What it takes and gives."""
        return face_of_each(self.of.face)


Node = Stage | Chain | All | Each
Operand = Composable | Handle | Reference | str
_decode = msgspec.json.Decoder(Node).decode


def stage(of: Operand) -> Stage:
    """One stage: of a reference `owner/name[/version]`, or of a decorated algorithm. Raises BadReference."""
    if isinstance(of, str):
        return Stage(str(_reference(of)))
    found = value_of(of)
    if isinstance(found, Stage):
        return found
    raise BadReference(f"{of!r} is not one stage; write algomesh.stage('owner/name')")


def stage_of(algorithm: Any) -> Stage:
    """The stage of a decorated algorithm: its very version, and the object itself for `local`."""
    return _remembering(Stage(str(algorithm.version_id)), algorithm)


def all_of(*branches: Operand, **named: Operand) -> Pipeline:
    """Run several on one input: `all(a, b)` gives a list, `all(x=a, y=b)` a mapping. As an operand of `&` it nests.

    A fan-out of a client's handles is a value; run it by `client.algo(…)`. Raises BadInput, BadReference.
    """
    if bool(branches) == bool(named):
        raise BadInput("a fan-out has branches, all with a name or all without: all(a, b) or all(x=a, y=b)")
    return fan_out([value_of(operand) for operand in branches or named.values()], tuple(named), nests=True)


def value_of(operand: Operand) -> Pipeline:
    """The value that stands for a reference, an algorithm, a handle or a pipeline. Raises BadReference."""
    if isinstance(operand, Composable | Handle):
        return operand.pipeline
    if isinstance(operand, str):
        return stage(operand)
    if isinstance(operand, Reference):
        return Stage(str(operand))
    raise BadReference(
        f"{type(operand).__name__} is no part of a pipeline; take algomesh.stage('owner/name'), a decorated algorithm "
        "or a pipeline"
    )


def chain(left: Pipeline, right: Pipeline) -> Pipeline:
    """`left | right`. Raises BadInput."""
    first = left.stages if isinstance(left, Chain) else (_inner(left),)
    then = right.stages if isinstance(right, Chain) else (_inner(right),)
    check_neighbours(first[-1].face, then[0].face)
    made = Chain(first + then)
    # Known without looking at every stage again: a chain may be built of thousands, one by one.
    vars(made)["size"] = left.size + right.size
    vars(made)["depth"] = max(left.depth, right.depth)
    return _bounded(made)


def fan_out(branches: list[Pipeline], names: tuple[str, ...] = (), *, nests: bool = False) -> Pipeline:
    """Several on one input, as they are. Raises BadInput."""
    if not branches:
        raise BadInput("a fan-out has one branch at least")
    if names and (len(names) != len(branches) or len(set(names)) != len(names)):
        raise BadInput("a fan-out has one name for each branch, each name once")
    if any(not 0 < len(name) <= _LONGEST_NAME for name in names):
        raise BadInput(f"the name of a branch has 1 to {_LONGEST_NAME} letters")
    return _bounded(All(tuple(_inner(branch) for branch in branches), names, nests))


def flat_fan_out(left: Pipeline, right: Pipeline) -> Pipeline:
    """`left & right`: what `&` made before is taken apart. Raises BadInput."""
    branches: list[Pipeline] = []
    for side in (left, right):
        spread = isinstance(side, All) and not side.nests and not side.names
        branches.extend(side.branches if spread and isinstance(side, All) else [side])
    return fan_out(branches)


def each(of: Pipeline, in_flight: int = 8, ordered: bool = True) -> Pipeline:
    """`of` over every item of a list. Raises BadInput."""
    if isinstance(in_flight, bool) or not isinstance(in_flight, int) or not 1 <= in_flight <= MOST_IN_FLIGHT:
        raise BadInput(f"in_flight={in_flight!r} is not a whole number from 1 to {MOST_IN_FLIGHT}")
    return _bounded(Each(_inner(of), in_flight, bool(ordered)))


def pipeline_schema() -> dict[str, Any]:
    """The JSON Schema of the JSON form."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Node)}


def _inner(part: Pipeline) -> Node:
    """As part of something else: there `nests` says nothing any more."""
    if isinstance(part, All) and part.nests:
        part = structs.replace(part, nests=False)
    assert isinstance(part, Stage | Chain | All | Each)
    return part


def _bounded(made: Pipeline) -> Pipeline:
    if made.size > MOST_STAGES:
        raise BadInput(f"a pipeline has at most {MOST_STAGES:,} stages; publish a part of it under a name of its own")
    if made.depth > DEEPEST:
        raise BadInput(f"fan-outs and eaches are nested at most {DEEPEST} deep; publish a part under a name of its own")
    return made


def _remembering(made: Stage, algorithm: Any) -> Stage:
    if algorithm is not None:
        vars(made)["algorithm_here"] = algorithm
    return made


def _reference(text: str) -> Reference:
    try:
        return Reference.parse(text)
    except BadName as error:
        raise BadReference(str(error)) from error


def _seconds(option: str, value: float | str) -> float:
    try:
        return parse_duration(option, value)
    except ValueError as error:
        raise BadInput(str(error)) from error


def _attempts(retry: bool | int) -> int:
    if isinstance(retry, bool):
        return 3 if retry else 1
    if not isinstance(retry, int) or not 1 <= retry <= _MOST_ATTEMPTS:
        raise BadInput(f"retry={retry!r} is not True, False or a number of attempts from 1 to {_MOST_ATTEMPTS}")
    return retry


def _rebuilt(node: Node, path: str, depth: int) -> Pipeline:
    """The same, made by the same hands as every other, so that nothing unchecked gets through."""
    try:
        if depth > 2 * DEEPEST + 1:
            raise BadInput(f"fan-outs and eaches are nested at most {DEEPEST} deep")
        match node:
            case Stage():
                return _rebuilt_stage(node)
            case Chain():
                parts = [_rebuilt(part, f"{path}.stages[{i}]", depth + 1) for i, part in enumerate(node.stages)]
                if not parts:
                    raise BadInput("a chain has one stage at least")
                return reduce(chain, parts)
            case All():
                parts = [_rebuilt(part, f"{path}.branches[{i}]", depth + 1) for i, part in enumerate(node.branches)]
                return fan_out(parts, node.names, nests=node.nests)
            case Each():
                return each(_rebuilt(node.of, f"{path}.of", depth + 1), node.in_flight, node.ordered)
    except (BadInput, BadReference) as error:
        if "`$" in error.message:
            raise
        raise type(error)(f"{error.message} - at `{path}`") from error


def _rebuilt_stage(found: Stage) -> Stage:
    made = stage(found.reference)
    for option, seconds in (("timeout_s", found.timeout_s), ("cache_s", found.cache_s)):
        least = 0 if option == "cache_s" else 1e-9
        if seconds is not None and not least <= seconds <= _MOST_SECONDS:
            raise BadInput(f"{option}={seconds!r} is not a number of seconds, at most a week")
    if found.attempts is not None:
        _attempts(found.attempts)
    return structs.replace(made, timeout_s=found.timeout_s, attempts=found.attempts, cache_s=found.cache_s)
