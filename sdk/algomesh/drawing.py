"""How a pipeline looks: drawn for people (`str`), and as the expression that makes it (`repr`)."""

from typing import Final, NamedTuple

from algomesh.pipeline import All, Chain, Each, Pipeline, Stage

_WIDEST: Final = 100
_NARROWEST: Final = 32
_ARROW: Final = " ─▶ "
# The vertical line beside branches: its top, a branch, its end, in between.
_LEFT: Final = ("┬", "├", "└", "│")
_RIGHT: Final = ("┬", "┤", "┘", "│")


class _Block(NamedTuple):
    """A piece of the drawing: the way comes in on the left of row `entry` and leaves on the right of row `exit`."""

    lines: list[str]
    entry: int = 0
    exit: int = 0

    @property
    def width(self) -> int:
        return max(map(len, self.lines))


def draw(pipeline: Pipeline) -> str:
    """The drawing: from left to right, branches below one another, a new row where a chain grows too wide."""
    return "\n".join(line.rstrip() for line in _draw(pipeline, _WIDEST).lines)


def express(pipeline: Pipeline) -> str:
    """One line, as it would be written, with references for stages."""
    match pipeline:
        case Stage():
            return pipeline.reference + (f".options({_options(pipeline)})" if not pipeline.is_plain else "")
        case Chain():
            return " | ".join(f"({express(part)})" if _is_bare_fan(part) else express(part) for part in pipeline.stages)
        case All():
            return _express_all(pipeline)
        case Each():
            inner = express(pipeline.of)
            body = inner if isinstance(pipeline.of, Stage | Each) else f"({inner})"
            ordered = "" if pipeline.ordered else ", ordered=False"
            return f"{body}.each(in_flight={pipeline.in_flight}{ordered})"
    return object.__repr__(pipeline)


def _express_all(node: All) -> str:
    if node.names:
        named = zip(node.names, node.branches, strict=True)
        return f"all({', '.join(f'{name}={express(branch)}' for name, branch in named)})"
    if node.nests or len(node.branches) == 1:
        return f"all({', '.join(map(express, node.branches))})"
    return " & ".join(
        f"({express(branch)})" if isinstance(branch, Chain) else f"all({', '.join(map(express, branch.branches))})"
        if isinstance(branch, All) and not branch.names
        else express(branch)
        for branch in node.branches
    )  # fmt: skip


def _is_bare_fan(node: Pipeline) -> bool:
    return isinstance(node, All) and not node.names and not node.nests and len(node.branches) > 1


def _options(stage: Stage) -> str:
    said = []
    if stage.timeout_s is not None:
        said.append(f"timeout={stage.timeout_s:g}")
    if stage.attempts is not None:
        said.append(f"retry={stage.attempts}")
    if stage.cache_s is not None:
        said.append(f"cache={stage.cache_s:g}" if stage.cache_s else "cache=False")
    return ", ".join(said)


def _draw(node: Pipeline, room: int) -> _Block:
    match node:
        case Chain():
            return _draw_chain(node, room)
        case All():
            return _draw_all(node, room)
        case Each():
            return _draw_each(node, room)
        case Stage():
            return _Block([node.reference + ("" if node.is_plain else f" ({_options(node)})")])
    return _Block([repr(node)])


def _draw_chain(node: Chain, room: int) -> _Block:
    rows: list[_Block] = []
    row: _Block | None = None
    for part in node.stages:
        block = _draw(part, room)
        if row is not None and row.width + len(_ARROW) + block.width > room:
            rows.append(row)
            row = None
        if row is not None:
            row = _beside(row, _ARROW, block)
        else:
            row = block if not rows else _beside(_Block([""]), "─▶ ", block)
    assert row is not None
    return _below([*rows, row])


def _draw_all(node: All, room: int) -> _Block:
    labels = [f"─ {name} ─▶ " for name in node.names] or ["─▶ "] * len(node.branches)
    widest = max(map(len, labels))
    labels = [label[:-2].ljust(widest - 2, "─") + "▶ " for label in labels]
    blocks = [_draw(branch, max(_NARROWEST, room - widest - 4)) for branch in node.branches]
    inside = max(block.width for block in blocks)
    entries, exits, row = [], [], 0
    for block in blocks:
        entries.append(row + block.entry)
        exits.append(row + block.exit)
        row += len(block.lines)
    lines: list[str] = []
    for block, label in zip(blocks, labels, strict=True):
        for index, line in enumerate(block.lines):
            at = len(lines)
            left = _side(at, entries, _LEFT) + (label if index == block.entry else " " * widest)
            right = _side(at, exits, _RIGHT)
            if index == block.exit:
                way_out = ("" if line.endswith("┬") else " ") + "─"
                lines.append(left + (line + way_out).ljust(inside + 2, "─") + right)
            else:
                lines.append(left + line.ljust(inside + 2) + right)
    return _Block(lines, entries[0], exits[0])


def _side(row: int, rows: list[int], signs: tuple[str, str, str, str]) -> str:
    """The vertical line that joins `rows`, as it looks in one row."""
    top, branch, end, between = signs
    if len(rows) == 1:
        return "─" if row == rows[0] else " "
    if row in rows:
        return top if row == rows[0] else end if row == rows[-1] else branch
    return between if rows[0] < row < rows[-1] else " "


def _draw_each(node: Each, room: int) -> _Block:
    body = _draw(node.of, max(_NARROWEST, room - 4))
    title = f" each, {node.in_flight} in flight{'' if node.ordered else ', as they come'} "
    width = max(body.width, len(title)) + 2
    top, bottom = f"┌{title.center(width, '─')}┐", f"└{'─' * width}┘"
    return _Block(
        [top, *(f"│ {line.ljust(width - 2)} │" for line in body.lines), bottom], body.entry + 1, body.exit + 1
    )


def _beside(left: _Block, arrow: str, right: _Block) -> _Block:
    """`right` at the end of `left`, so that its way in is level with the way out."""
    shift = left.exit - right.entry
    above, first = max(0, -shift), max(0, shift)
    height = max(above + len(left.lines), first + len(right.lines))
    width = left.width
    lines: list[str] = []
    for row in range(height):
        ours = left.lines[row - above] if 0 <= row - above < len(left.lines) else ""
        theirs = right.lines[row - first] if 0 <= row - first < len(right.lines) else ""
        between = arrow if row == above + left.exit else " " * len(arrow)
        if ours.endswith("┬") and between == _ARROW:
            between = "──▶ "
        lines.append(ours.ljust(width) + between + theirs)
    return _Block(lines, above + left.entry, first + right.exit)


def _below(rows: list[_Block]) -> _Block:
    """A chain in several rows: it goes in at the first and out at the last."""
    above = sum(len(row.lines) for row in rows[:-1])
    return _Block([line for row in rows for line in row.lines], rows[0].entry, above + rows[-1].exit)
