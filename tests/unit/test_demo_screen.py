"""The demo's posts, figures and lines."""

import io
import json
from pathlib import Path

import pytest

from algomesh_services.demo.figures import Hop, Measured, VersionFigures, correlation
from algomesh_services.demo.posts import BadPosts, Posts, parse_posts, read_posts
from algomesh_services.demo.report import show_hops, show_results, show_speed
from algomesh_services.demo.screen import Screen


def test_the_sample_has_posts() -> None:
    posts = read_posts()

    assert len(posts.texts) >= 20
    assert posts.ratings is None


def test_lines_are_posts_and_a_tab_makes_columns() -> None:
    assert parse_posts("one\r\n\n two \n")[1:] == (["one", "two"], None)
    assert parse_posts("1\tfirst\n2\tsecond\n")[1:] == (["first", "second"], None)
    assert parse_posts("1\t2.5\tgood\n2\t-1\tbad\n")[1:] == (["good", "bad"], [2.5, -1.0])
    assert parse_posts("id\trating\ttext\n1\t2.5\tgood\n")[1:] == (["good"], [2.5])
    assert parse_posts("1\tx\tgood\n2\t-1\tbad\n")[1:] == (["good", "bad"], None)
    assert parse_posts("with\ttab\nwithout\n")[1:] == (["with\ttab", "without"], None)


def test_files_without_posts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(BadPosts, match="one a line"):
        read_posts(tmp_path / "empty")
    with pytest.raises(BadPosts, match="cannot be read"):
        read_posts(tmp_path / "none")
    with pytest.raises(BadPosts, match="cannot be read"):
        read_posts(tmp_path)


def test_correlation_is_one_for_the_same_and_none_where_there_is_none() -> None:
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert correlation([1, 1], [1, 2]) is None
    assert correlation([1], [1]) is None


def test_what_is_printed_fits_the_width_and_the_figures_are_json() -> None:
    hops = [Hop("text/clean", "1.0.0", 45.2, 44.0, 0.1), Hop("text/sentiment", "2.0.0", 5_000, 4_990, 9)]
    posts = Posts("here", ["wörld 🎉 " * 30, "short"], [1.0, -2.0])
    figures = [
        VersionFigures(
            version=v, cold_ms=5045.23, warm_ms=3.2, posts_per_s=612.4, scores=[0.5, -0.25], correlation=0.87
        )
        for v in ("1.0.0", "2.0.0")
    ]
    out = io.StringIO()
    screen = Screen(out)

    show_hops(screen, "2.0.0", Measured(hops, 0.5), Measured(hops, 0.5))
    show_results(screen, posts, figures)
    show_speed(screen, figures)

    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("wörld" in line and "…" in line and line.endswith("+0.50  +0.50   +1.00") for line in lines)
    assert any(line.split() == ["together", "5,045", "5,034", "5,045", "9.1"] for line in lines)
    assert "\x1b" not in out.getvalue()
    assert json.loads(json.dumps(figures[0].as_json())) == {
        "cold_ms": 5045.2, "warm_ms": 3.2, "posts_per_s": 612.4, "correlation": 0.87,
    }  # fmt: skip


def test_a_silent_screen_prints_the_last_line_only() -> None:
    out = io.StringIO()
    screen = Screen(out, is_silent=True)

    screen.title("title")
    screen.moving("moving")
    screen.table(("a", "b"), [("1", "2")])
    screen.last_line("{}")

    assert out.getvalue() == "{}\n"
