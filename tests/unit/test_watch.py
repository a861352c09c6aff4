"""The watch page: what an instance writes is what its launcher reads."""

import fcntl
import os

import pytest

from algomesh.instance import watch
from algomesh.instance.watch import Phase, WatchReader, WatchWriter


@pytest.fixture
def page() -> bytearray:
    return bytearray(watch.SIZE_BYTES)


def test_a_new_page_says_nothing_is_running(page: bytearray) -> None:
    reader = WatchReader(page)

    assert (reader.phase, reader.active, reader.runs_total, reader.deadline_ns, reader.heartbeat_ns) == (0, 0, 0, 0, 0)
    assert not reader.overdue(2**62)


def test_a_run_is_overdue_after_its_deadline_and_not_before(page: bytearray) -> None:
    writer, reader = WatchWriter(page), WatchReader(page)

    writer.begin("run", 1000)

    assert not reader.overdue(1000)
    assert reader.overdue(1001)


def test_a_deadline_may_move(page: bytearray) -> None:
    writer, reader = WatchWriter(page), WatchReader(page)
    writer.begin("a", 1000)
    writer.begin("b", 2000)

    deadlines = []
    for run, deadline_ns in [("a", 3000), ("b", 4000), ("b", 500), ("b", 0), ("a", 0), ("b", 100)]:
        writer.move(run, deadline_ns)
        deadlines.append(reader.deadline_ns)

    assert deadlines == [2000, 3000, 500, 3000, 0, 100]
    assert (reader.active, reader.runs_total) == (2, 2)


def test_the_earliest_deadline_of_the_running_runs_counts(page: bytearray) -> None:
    writer, reader = WatchWriter(page), WatchReader(page)

    writer.begin("a", 3000)
    writer.begin("b", 1000)
    writer.begin("c", 2000)
    writer.begin("endless", 0)
    assert reader.deadline_ns == 1000

    writer.end("b")
    assert reader.deadline_ns == 2000
    writer.end("a")
    assert reader.deadline_ns == 2000
    writer.end("c")
    assert reader.deadline_ns == 0
    assert (reader.active, reader.runs_total) == (1, 4)


@pytest.mark.parametrize(("others_ns", "seen_ns"), [([], 2000), ([3000], 2000), ([1000], 1000)])
def test_a_run_that_is_alone_counts_beside_the_others(page: bytearray, others_ns: list[int], seen_ns: int) -> None:
    writer, reader = WatchWriter(page), WatchReader(page)
    for other_ns in others_ns:
        writer.begin(other_ns, other_ns)
    before = reader.active, reader.deadline_ns

    writer.begin_alone(2000)

    assert (reader.active, reader.runs_total, reader.deadline_ns) == (len(others_ns) + 1, len(others_ns) + 1, seen_ns)

    writer.end_alone()

    assert (reader.active, reader.deadline_ns) == before


def test_the_end_of_an_unknown_run_changes_nothing(page: bytearray) -> None:
    writer, reader = WatchWriter(page), WatchReader(page)
    writer.begin("a", 5)

    writer.end("b")

    assert (reader.active, reader.deadline_ns) == (1, 5)


def test_phases_keep_when_they_began(page: bytearray) -> None:
    writer, reader = WatchWriter(page), WatchReader(page)

    writer.enter(Phase.IMPORTING, 10)
    writer.enter(Phase.READY, 20)
    writer.beat(30)

    assert reader.phase is Phase.READY
    assert (reader.began_ns(Phase.IMPORTING), reader.began_ns(Phase.LOADING), reader.began_ns(Phase.READY)) == (
        10,
        0,
        20,
    )
    assert reader.heartbeat_ns == 30


def test_nonsense_on_the_page_does_not_upset_the_reader(page: bytearray) -> None:
    reader = WatchReader(page)

    page[:] = b"\xff" * len(page)

    assert reader.phase is Phase.FORKED
    assert not reader.overdue(1)


def test_a_page_is_shared_and_cannot_be_shrunk_under_its_reader() -> None:
    fd, ours = watch.create_page()
    theirs = watch.open_page(fd)
    writer, reader = WatchWriter(theirs), WatchReader(ours)

    writer.beat(7)

    assert reader.heartbeat_ns == 7
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    for side in (writer, reader):
        side.release()
    ours.close()
    theirs.close()
    os.close(fd)
