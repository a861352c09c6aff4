"""From a pipeline to its route: every reference resolved once, named pipelines put in their place, steps numbered.

Whoever sends a pipeline compiles it against its copy of the directory. A reference that stands in it twice means one
version, also where an alias would choose anew, so that no publish and no alias mixes versions within a run.
"""

from collections.abc import Callable
from typing import Final

from algomesh.errors import BadInput, BadReference
from algomesh.kinds import Face, Kind, check_neighbours, face_of_all, face_of_each
from algomesh.pipeline import All, Chain, Each, Pipeline, Stage
from algomesh_broker.errors import BrokerError
from algomesh_broker.messages import VersionEntry
from algomesh_broker.names import Reference, VersionId
from algomesh_broker.route import END, MOST_STEPS, AllStep, CallStep, EachStep, Route, Step

Resolve = Callable[[Reference], tuple[VersionId, VersionEntry]]

_DEEPEST: Final = 32


def compile_route(pipeline: Pipeline, resolve: Resolve) -> Route:
    """The route of a pipeline, with the versions that its references mean now.

    Raises BadInput for one that is too large or in which neighbours cannot fit, BadReference for a cycle of named
    pipelines, and whatever `resolve` raises.
    """
    compiler = _Compiler(resolve)
    compiler.add(pipeline)
    return Route(compiler.steps())


def check_fit(pipeline: Pipeline, resolve: Resolve) -> None:
    """Raise BadInput where neighbours cannot fit, by what the directory says of their versions.

    What the directory does not know yet fits everything; compiling will tell.
    """
    _Compiler(resolve, is_lenient=True).face_of(pipeline)


class _Compiler:
    """Steps in the order of the walk; where each goes on is filled in when the next one is there."""

    def __init__(self, resolve: Resolve, *, is_lenient: bool = False) -> None:
        self._resolve = resolve
        self._is_lenient = is_lenient
        self._resolved: dict[Reference, tuple[VersionId, VersionEntry]] = {}
        self._made: list[Callable[[int], Step]] = []
        self._next: list[int] = []
        self._within: list[str] = []
        self._named: dict[bytes, Pipeline] = {}

    def steps(self) -> list[Step]:
        """All of them, linked."""
        return [make(after) for make, after in zip(self._made, self._next, strict=True)]

    def add(self, node: Pipeline) -> tuple[int, int, Face]:
        """Append the steps of one part: its first, its last, and what it takes and gives."""
        match node:
            case Stage():
                return self._add_stage(node)
            case Chain():
                return self._add_chain(node)
            case All():
                return self._add_all(node)
            case Each():
                return self._add_each(node)
        raise BadInput(f"{type(node).__name__} is no part of a pipeline")

    def face_of(self, node: Pipeline) -> Face:
        """What one part takes and gives, its neighbours compared."""
        return self.add(node)[2]

    def _add_stage(self, stage: Stage) -> tuple[int, int, Face]:
        try:
            version, entry = self._once(stage.target)
        except (BrokerError, LookupError):
            if not self._is_lenient:
                raise
            return *self._append(lambda after: CallStep("", after)), stage.face
        name = str(version)
        if entry.pipeline and not self._is_lenient:
            return self._expand(stage, name, entry.pipeline)
        taken, given = Kind(entry.takes, "", name), Kind(entry.gives, "", name)
        face = Face((taken,) if taken.notation else (), given)

        # How often a stage may be sent again is its sender's to know, who has only the route.
        attempts = entry.attempts if stage.attempts is None else stage.attempts
        # Whether a result is looked up is for whoever hands over to the stage, who has only the route, too.
        cache_s = (entry.cache_s or None) if stage.cache_s is None else stage.cache_s

        def make(after: int) -> Step:
            return CallStep(name, after, stage.timeout_s, attempts, cache_s, entry.takes_parts)

        return *self._append(make), face

    def _add_chain(self, node: Chain) -> tuple[int, int, Face]:
        first, last, face = self.add(node.stages[0])
        takes = face.takes
        for part in node.stages[1:]:
            following, after, behind = self.add(part)
            check_neighbours(face, behind)
            self._next[last] = following
            last, face = after, behind
        return first, last, Face(takes, face.gives)

    def _add_all(self, node: All) -> tuple[int, int, Face]:
        branches: list[int] = []
        first, last = self._append(lambda after: AllStep(branches, after, list(node.names)))
        faces = []
        for branch in node.branches:
            begin, _, face = self.add(branch)
            branches.append(begin)
            faces.append(face)
        return first, last, face_of_all(faces, is_mapping=bool(node.names))

    def _add_each(self, node: Each) -> tuple[int, int, Face]:
        first, last = self._append(lambda after: EachStep(first + 1, after, node.in_flight, node.ordered))
        _, _, face = self.add(node.of)
        return first, last, face_of_each(face)

    def _append(self, make: Callable[[int], Step]) -> tuple[int, int]:
        if len(self._made) >= MOST_STEPS:
            raise BadInput(
                f"with its named pipelines in place it has over {MOST_STEPS:,} steps; call some from a stage"
            )
        self._made.append(make)
        self._next.append(END)
        return len(self._made) - 1, len(self._made) - 1

    def _once(self, reference: Reference) -> tuple[VersionId, VersionEntry]:
        found = self._resolved.get(reference)
        if found is None:
            found = self._resolved[reference] = self._resolve(reference)
        return found

    def _expand(self, stage: Stage, name: str, data: bytes) -> tuple[int, int, Face]:
        """A named pipeline, in place."""
        if name in self._within:
            cycle = " → ".join([*self._within[self._within.index(name) :], name])
            raise BadReference(
                f"named pipelines lead back to themselves: {cycle}; publish one of them without the other"
            )
        if len(self._within) >= _DEEPEST:
            raise BadInput(f"named pipelines stand in one another over {_DEEPEST} deep: {self._within[0]} … {name}")
        if not stage.is_plain:
            raise BadInput(f"{name} is a pipeline; options belong to its stages, or to the call as a whole")
        inner = self._named.get(data)
        if inner is None:
            inner = self._named[data] = Pipeline.from_json(data)
        self._within.append(name)
        try:
            return self.add(inner)
        finally:
            self._within.pop()
