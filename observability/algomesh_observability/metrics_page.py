"""The page `/metrics`: what the registry holds, as Prometheus reads it.

With OpenMetrics, which Prometheus asks for, exemplars are on it too. What form somebody gets, and the metrics of the
process (processor time, memory, file descriptors, Python's garbage collector), are left to Prometheus' own client. Our
lines are written here: the client takes 40 µs for each, and a ledger with 500 versions has 25,000 of them.
"""

import math
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from algomesh_observability.metrics import Exemplar, Family, Labels

_TRACE: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_EOF: Final = b"# EOF\n"
_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Page(NamedTuple):
    """A page and its content type."""

    body: bytes
    content_type: str


def render(families: Iterable[Family], accept: str) -> Page:
    """The page in the form that the header `accept` asks for. Takes a microsecond or two for each line."""
    encode, content_type = choose_encoder(accept)
    foreign = encode(_of_the_process())
    is_openmetrics = foreign.endswith(_EOF)
    lines = [line for family in families for line in _lines(family, is_openmetrics=is_openmetrics)]
    own = "".join(f"{line}\n" for line in lines).encode()
    return Page(own + foreign, content_type)


@lru_cache(1)
def _of_the_process() -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def _lines(family: Family, *, is_openmetrics: bool) -> Iterator[str]:
    name, labels = family.name, family.labels
    # OpenMetrics calls a counter by its name without the ending that its samples have.
    told = name.removesuffix("_total") if is_openmetrics and family.kind == "counter" else name
    yield f"# HELP {told} {_escaped(family.help)}"
    yield f"# TYPE {told} {family.kind}"
    for values, value in family.samples:
        yield f"{name}{_braced(_pairs(labels, values))} {_number(value)}"
    bounds = [*map(repr, family.bounds), "+Inf"]
    for values, spread in family.spreads:
        pairs = _pairs(labels, values)
        prefix = f'{name}_bucket{{{pairs}{"," if pairs else ""}le="'
        count = 0
        for bound, count, exemplar in zip(bounds, accumulate(spread.counts), spread.exemplars, strict=True):
            shown = _exemplar(exemplar) if exemplar is not None and is_openmetrics else ""
            yield f'{prefix}{bound}"}} {count}{shown}'
        yield f"{name}_count{_braced(pairs)} {count}"
        yield f"{name}_sum{_braced(pairs)} {_number(spread.total)}"


def _pairs(labels: Labels, values: Labels) -> str:
    return ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(labels, values, strict=True))


def _braced(pairs: str) -> str:
    return f"{{{pairs}}}" if pairs else ""


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _exemplar(found: Exemplar) -> str:
    trace_id, value, at = found
    return f' # {{trace_id="{trace_id}"}} {_number(value)} {at:.3f}' if _TRACE.fullmatch(trace_id) else ""


def _escaped(text: str) -> str:
    return text.translate(_ESCAPED)
