"""Which of several launchers is to have a version up."""

from algomesh_services.prewarmer.placement import PATIENCE_S, Having, Placement

V = "text/b/1.0.0"
THREE = ("host-a", "host-b", "host-c")


def test_the_only_launcher_need_not_be_named() -> None:
    assert Placement().choose(V, ["host-a"], [], 0.0, 0.0) == ""


def test_the_same_one_is_named_whatever_the_order_in_which_they_are_heard() -> None:
    placement = Placement()
    first = placement.choose(V, THREE, [], 0.0, 0.0)

    assert first in THREE
    assert placement.choose(V, reversed(THREE), [], 0.0, 1.0) == first
    assert Placement().choose(V, reversed(THREE), [], 0.0, 50.0) == first


def test_versions_are_spread_over_launchers() -> None:
    placement = Placement()

    assert {placement.choose(f"text/n{number}/1.0.0", THREE, [], 0.0, 0.0) for number in range(50)} == set(THREE)


def test_who_has_an_instance_keeps_it_a_ready_one_before_one_that_loads() -> None:
    placement = Placement()
    for launcher in THREE:
        assert placement.choose(V, THREE, [Having(launcher, False)], 0.0, 0.0) == launcher
        others = [Having(other, False) for other in THREE if other != launcher]
        assert placement.choose(V, THREE, [*others, Having(launcher, True)], 0.0, 0.0) == launcher


def test_who_was_named_stays_so_among_equals() -> None:
    placement = Placement()
    placement.choose(V, THREE, [Having("host-c", True)], 0.0, 0.0)

    assert placement.choose(V, THREE, [Having(launcher, True) for launcher in THREE], 0.0, 1.0) == "host-c"


def test_where_nothing_begins_to_start_the_next_one_is_named_and_so_on() -> None:
    placement = Placement()
    named = [placement.choose(V, THREE, [], 10.0, at_s) for at_s in (0.0, 10.0 + PATIENCE_S)]
    assert named[0] == named[1]  # its time has hardly come

    later = [placement.choose(V, THREE, [], 10.0, 10.0 + (PATIENCE_S + 0.1) * turn) for turn in (1, 2, 3)]

    assert {named[0], *later[:2]} == set(THREE)
    assert later[2] == named[0]


def test_a_launcher_that_is_gone_is_not_named() -> None:
    placement = Placement()
    first = placement.choose(V, THREE, [], 0.0, 0.0)
    left = [launcher for launcher in THREE if launcher != first]

    assert placement.choose(V, left, [], 0.0, 0.1) in left
