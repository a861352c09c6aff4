"""How the demo's figures are put before people."""

from collections.abc import Sequence
from typing import Final

from algomesh_broker.platform import InstanceRow
from algomesh_services.demo.figures import Measured, VersionFigures
from algomesh_services.demo.posts import Posts
from algomesh_services.demo.screen import Screen

_ROWS: Final = 10
_NARROW: Final = 66


def show_instances(screen: Screen, instances: Sequence[InstanceRow]) -> None:
    """What runs now."""
    if not instances:
        screen.text("No instance runs: what nobody calls costs no process, no memory and no GPU.")
        return
    rows = [(f"{row.algorithm} {row.version}", str(row.pid), row.state, _mib(row)) for row in instances]
    screen.line()
    screen.text("What runs now, each a process of its own:")
    screen.table(("service", "pid", "state", "memory"), rows)
    for note in sorted({f"{row.algorithm} {row.version}: {row.note}" for row in instances if row.note}):
        screen.text(note)


def show_hops(screen: Screen, version: str, cold: Measured, warm: Measured) -> None:
    """What each hop cost, cold against warm."""
    rows = [
        (f"{first.algorithm} {first.version}", _ms(first.total_ms), _ms(first.cold_ms), _ms(second.total_ms),
         _ms(second.compute_ms))
        for first, second in zip(cold.hops, warm.hops, strict=True)
    ]  # fmt: skip
    total_cold = sum(hop.cold_ms for hop in cold.hops)
    total_code = sum(hop.compute_ms for hop in warm.hops)
    rows.append(("together", _ms(cold.total_ms), _ms(total_cold), _ms(warm.total_ms), _ms(total_code)))
    screen.line()
    screen.text(f"One post, scored by text/sentiment {version}; in milliseconds:")
    if screen.width < _NARROW:
        screen.table(("service", "1st", "2nd"), [(row[0], row[1], row[3]) for row in rows])
    else:
        screen.table(("service", "1st call", "of it start", "2nd call", "of it code"), rows)
    screen.text(f"The second time was {cold.total_ms / max(warm.total_ms, 1e-3):,.0f} times faster.")


def show_results(screen: Screen, posts: Posts, figures: Sequence[VersionFigures]) -> None:
    """Some posts with their scores, and how well the versions agree with people."""
    screen.text("Scores from -1 (bad) to +1 (good):")
    headings = ["post", *(figure.version for figure in figures)]
    if posts.ratings is not None:
        headings.append("people")
    rows = []
    for index in _spread(len(posts.texts), _ROWS):
        row = [posts.texts[index], *(f"{figure.scores[index]:+.2f}" for figure in figures)]
        rows.append([*row, f"{posts.ratings[index]:+.2f}"] if posts.ratings is not None else row)
    screen.table(headings, rows)
    if len(posts.texts) > _ROWS:
        screen.text(f"… {_ROWS} of {len(posts.texts):,}")
    if posts.ratings is not None:
        screen.text("people: how people rated the post, on the scale of the file")


def show_speed(screen: Screen, figures: Sequence[VersionFigures]) -> None:
    """One line per version."""
    has_people = any(figure.correlation is not None for figure in figures)
    headings = ["text/sentiment", "1st call ms", "2nd call ms", "posts/s", *(["r"] if has_people else [])]
    rows = []
    for figure in figures:
        row = [figure.version, _ms(figure.cold_ms), _ms(figure.warm_ms), f"{figure.posts_per_s:,.0f}"]
        agreement = "-" if figure.correlation is None else f"{figure.correlation:.3f}"
        rows.append([*row, agreement] if has_people else row)
    screen.line()
    screen.text("In short, for all three services together:")
    screen.table(headings, rows)
    if has_people:
        screen.text("r: correlation with people's ratings; 1 is the same opinion, 0 is none in common")
    screen.line()


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` places, evenly over all `count`."""
    if count <= most:
        return list(range(count))
    return [index * count // most for index in range(most)]


def _ms(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _mib(row: InstanceRow) -> str:
    return f"{row.memory_bytes / 2**20:,.0f} MiB" if row.memory_bytes else "-"
