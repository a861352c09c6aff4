"""Where algorithms stand in a picture of the call graph, and in the tree that a terminal shows."""

import itertools

import pytest

from algomesh_broker.platform import Edge
from algomesh_services.cli.graph import delay, tree
from algomesh_services.cli.graph_layout import MOST_EDGES, lay_out


def edge(caller_of: str, algorithm: str, probability: float = 1.0) -> Edge:
    return Edge(caller_of=caller_of, algorithm=algorithm, probability=probability, delay_s=1.0)


DIAMOND = [edge("a", "b"), edge("a", "c"), edge("b", "d"), edge("c", "d"), edge("a", "d", 0.5)]


def test_layers_follow_the_order_of_calls() -> None:
    layout = lay_out(DIAMOND)

    assert {name: layout.layer[name] for name in layout.algorithms} == {"a": 0, "b": 1, "c": 1, "d": 2}


def test_a_line_that_passes_a_layer_has_a_place_there() -> None:
    layout = lay_out(DIAMOND)

    (passing,) = [link for link in layout.links if len(link.spots) > 2]
    rows = sorted(layout.row[spot] for spot in layout.layer if layout.layer[spot] == 1)
    assert (passing.edge.caller_of, passing.edge.algorithm) == ("a", "d")
    assert all(after - before > 0.5 for before, after in itertools.pairwise(rows))


def test_what_calls_in_a_circle_leads_back_by_its_least_likely_edge() -> None:
    layout = lay_out([edge("a", "b"), edge("b", "c"), edge("c", "a", 0.2), edge("b", "b", 0.4)])

    back = {(link.edge.caller_of, link.edge.algorithm) for link in layout.links if link.is_back}
    assert back == {("c", "a"), ("b", "b")}
    assert [layout.layer[name] for name in "abc"] == [0, 1, 2]


def test_an_algorithm_that_only_calls_itself_has_a_place() -> None:
    assert lay_out([edge("a", "a")]).algorithms == ["a"]


def test_lines_that_need_not_cross_do_not() -> None:
    layout = lay_out([edge("a", "z"), edge("b", "y"), edge("c", "x"), edge("a", "y"), edge("b", "x")])

    order = [layout.row[name] for name in "zyx"]
    assert order in (sorted(order), sorted(order, reverse=True))


def test_unlikely_edges_and_too_many_are_left_out() -> None:
    assert lay_out([edge("a", "b"), edge("a", "c", 0.01)]).left_out == 1
    many = lay_out([edge(f"a{number % 40}", f"b{number}", 0.1 + number / 1_000) for number in range(500)])
    assert (len(many.links), many.left_out) == (MOST_EDGES, 500 - MOST_EDGES)


def test_a_tree_shows_what_follows_once_and_says_where_there_is_more() -> None:
    assert [line for line, _ in tree([*DIAMOND, edge("d", "e")])] == [
        "a",
        "├─ b",
        "│  └─ d",
        "│     └─ e",
        "├─ c",
        "│  └─ d …",
        "└─ d …",
    ]


def test_a_tree_of_circles_ends() -> None:
    assert [line for line, _ in tree([edge("a", "b"), edge("b", "a"), edge("c", "c")])] == [
        "c",
        "└─ c …",
        "a",
        "└─ b",
        "   └─ a …",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.02, "20 ms"), (0.9999, "1.0 s"), (1.23, "1.2 s"), (75, "75.0 s"), (200, "3.3 min")]
)
def test_delays_have_the_digits_that_matter(seconds: float, text: str) -> None:
    assert delay(seconds) == text
