"""Expressions of PromQL, and the queries of panels that are made of them.

`where` is a selector such as `{code="ok"}`, `by` the labels that a sum keeps, `a, b`.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

Json: TypeAlias = dict[str, Any]

PROMETHEUS: Final[Json] = {"type": "prometheus", "uid": "prometheus"}


def query(expression: str, legend: str = "", *, has_exemplars: bool = False, is_instant: bool = False) -> Json:
    """One expression of a panel; `legend` is a template such as `{{code}}`."""
    return {
        "datasource": PROMETHEUS,
        "expr": expression,
        "legendFormat": legend or "__auto",
        "exemplar": has_exemplars,
        "instant": is_instant,
        "range": not is_instant,
        **({"format": "table"} if is_instant and not legend else {}),
    }


def rate(metric: str, by: str = "", where: str = "") -> str:
    """How fast a counter grows at a moment, a second."""
    return f"{_sum(by)}(rate({metric}{where}[$__rate_interval]))"


def growth(metric: str, by: str = "", where: str = "") -> str:
    """By how much a counter grows around a moment."""
    return f"{_sum(by)}(increase({metric}{where}[$__rate_interval]))"


def over_range(metric: str, by: str = "", where: str = "") -> str:
    """By how much a counter grew over the range of the dashboard."""
    return f"{_sum(by)}(increase({metric}{where}[$__range]))"


def rates(metric: str, by: str, where: str = "") -> list[Json]:
    """A course for each value of `by`."""
    return [query(rate(metric, by, where), legend_of(by))]


def growths(metric: str, by: str, where: str = "") -> list[Json]:
    """A course for each value of `by`, in how many rather than how many a second."""
    return [query(growth(metric, by, where), legend_of(by))]


def or_zero(expression: str) -> str:
    """0 where there is nothing yet."""
    return f"{expression} or vector(0)"


def quantile(share: float, metric: str, by: str = "", where: str = "") -> str:
    """A quantile of a histogram."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({metric}_bucket{where}[$__rate_interval])))"


def quantiles(metric: str, by: str = "", where: str = "", *, at: Sequence[float] = (0.5, 0.95, 0.99)) -> list[Json]:
    """Quantiles of a histogram, with exemplars on the highest."""
    return [
        query(
            quantile(share, metric, by, where),
            f"p{share * 100:g} {legend_of(by)}".strip(),
            has_exemplars=share == max(at),
        )
        for share in at
    ]


def mean_phases(where: str = "") -> list[Json]:
    """The mean time of each part of a start."""
    total, count = (rate(f"algomesh_cold_start_phase_seconds_{part}", "phase", where) for part in ("sum", "count"))
    return [query(f"{total} / {count}", "{{phase}}")]


def legend_of(by: str) -> str:
    """The template that shows these labels."""
    return " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(",") if label.strip())


def _sum(by: str) -> str:
    return f"sum by ({by}) " if by else "sum"
