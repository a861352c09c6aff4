"""The operators that compose. What is only a value composes to a pipeline; a client's handle to a handle of the same.

`Composable` is what pipelines and decorated algorithms share, `Handle` what a client gives out.
"""

from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from algomesh.errors import BadInput
from algomesh_broker.names import Reference

if TYPE_CHECKING:
    from algomesh.pipeline import Operand, Pipeline

_H = TypeVar("_H", bound="Handle")


class Composable:
    """A value that may stand in a pipeline. `&` binds tighter than `|`."""

    __slots__ = ()

    @property
    def pipeline(self) -> "Pipeline":
        """The pipeline that this is."""
        raise NotImplementedError

    def each(self, in_flight: int = 8, ordered: bool = True) -> "Pipeline":
        """Over every item of a list, at most `in_flight` (1 to 1,024) at once.

        ordered: the results come in the list's order; False: as they are done. Raises BadInput.
        """
        from algomesh import pipeline

        return pipeline.each(self.pipeline, in_flight, ordered)

    @overload
    def __or__(self, other: _H) -> _H: ...
    @overload
    def __or__(self, other: "Composable | Reference | str") -> "Pipeline": ...
    def __or__(self, other: Any) -> Any:
        from algomesh import pipeline

        return NotImplemented if _is_foreign(other) else pipeline.chain(self.pipeline, pipeline.value_of(other))

    @overload
    def __ror__(self, other: _H) -> _H: ...
    @overload
    def __ror__(self, other: "Composable | Reference | str") -> "Pipeline": ...
    def __ror__(self, other: Any) -> Any:
        from algomesh import pipeline

        return NotImplemented if _is_foreign(other) else pipeline.chain(pipeline.value_of(other), self.pipeline)

    @overload
    def __and__(self, other: _H) -> _H: ...
    @overload
    def __and__(self, other: "Composable | Reference | str") -> "Pipeline": ...
    def __and__(self, other: Any) -> Any:
        from algomesh import pipeline

        return NotImplemented if _is_foreign(other) else pipeline.flat_fan_out(self.pipeline, pipeline.value_of(other))

    @overload
    def __rand__(self, other: _H) -> _H: ...
    @overload
    def __rand__(self, other: "Composable | Reference | str") -> "Pipeline": ...
    def __rand__(self, other: Any) -> Any:
        from algomesh import pipeline

        return NotImplemented if _is_foreign(other) else pipeline.flat_fan_out(pipeline.value_of(other), self.pipeline)


class Handle:
    """A pipeline bound to a client; what it is composed with becomes bound to the same client."""

    __slots__ = ()

    @property
    def pipeline(self) -> "Pipeline":
        """The pipeline that it runs."""
        raise NotImplementedError

    @property
    def owner(self) -> Any:
        """The client, or the run, that it calls for."""
        raise NotImplementedError

    def bound(self, pipeline: "Pipeline") -> Self:
        """Another pipeline of the same client."""
        raise NotImplementedError

    def each(self, in_flight: int = 8, ordered: bool = True) -> Self:
        """Over every item of a list; see `Pipeline.each`."""
        from algomesh import pipeline

        return self.bound(pipeline.each(self.pipeline, in_flight, ordered))

    def options(
        self,
        *,
        timeout: float | str | None = None,
        retry: bool | int | None = None,
        cache: float | str | bool | None = None,
    ) -> Self:
        """With options of its one stage; see `Pipeline.options`."""
        return self.bound(self.pipeline.options(timeout=timeout, retry=retry, cache=cache))

    def __or__(self, other: "Operand") -> Self:
        from algomesh import pipeline

        return self.bound(pipeline.chain(self.pipeline, self._value_of(other)))

    def __ror__(self, other: "Operand") -> Self:
        from algomesh import pipeline

        return self.bound(pipeline.chain(self._value_of(other), self.pipeline))

    def __and__(self, other: "Operand") -> Self:
        from algomesh import pipeline

        return self.bound(pipeline.flat_fan_out(self.pipeline, self._value_of(other)))

    def __rand__(self, other: "Operand") -> Self:
        from algomesh import pipeline

        return self.bound(pipeline.flat_fan_out(self._value_of(other), self.pipeline))

    def _value_of(self, other: "Operand") -> "Pipeline":
        from algomesh import pipeline

        if isinstance(other, Handle) and other.owner is not self.owner:
            raise BadInput("these belong to two clients; compose the handles of one, or values: algomesh.stage(…)")
        return pipeline.value_of(other)


def _is_foreign(other: object) -> bool:
    """A handle composes for itself, and what is no operand may know what to do; else Python refuses it."""
    return not isinstance(other, Composable | Reference | str)
