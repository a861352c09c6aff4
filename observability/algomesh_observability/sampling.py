"""Which traces are kept, by the standard variables OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG. Pure.

The decision about a root is one about its trace id, the same wherever it is made and the same as other SDKs' ratio
samplers make it, so that the stages of a pipeline need not be told. What failed or met a cold start goes out whatever
was decided; that is not decided here.
"""

from collections.abc import Mapping
from typing import Final, Self

_RATES: Final = {"always_on": 1.0, "always_off": 0.0}
_PARENT_BASED: Final = "parentbased_"
_DEFAULT: Final = "parentbased_always_on"
_IDS: Final = 2**64


class Sampler:
    """Keeps `rate` of the traces that nobody has decided about; with `by_parent` others stay as they were decided."""

    def __init__(self, rate: float, *, by_parent: bool = True) -> None:
        self.rate = min(1.0, max(0.0, rate))
        self.by_parent = by_parent
        self._bound = round(self.rate * _IDS)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """What the variables ask for; samplers that are not known, and ratios that are none, keep everything."""
        name = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower() or _DEFAULT
        by_parent = name.startswith(_PARENT_BASED)
        name = name.removeprefix(_PARENT_BASED)
        if name == "traceidratio":
            return cls(_ratio(environment.get("OTEL_TRACES_SAMPLER_ARG", "")), by_parent=by_parent)
        return cls(_RATES.get(name, 1.0), by_parent=by_parent or name not in _RATES)

    def samples(self, trace_id: str, decided: bool | None = None) -> bool:
        """Whether a trace is kept, given 32 hex digits and what was decided about its parent."""
        if decided is not None and self.by_parent:
            return decided
        return int(trace_id[16:], 16) < self._bound


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        return 1.0
    return ratio if 0.0 <= ratio <= 1.0 else 1.0
