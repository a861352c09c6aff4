"""What is decided about a call that waits."""

import asyncio

import pytest

from algomesh import errors
from algomesh.chain import chain_of_call
from algomesh.pending import PARKED, RUNNING, SENT, Pending
from algomesh_broker.messages import Call
from algomesh_broker.names import VersionId

VERSION = VersionId.parse("text/clean/1.0.0")


@pytest.fixture
async def pending() -> Pending:
    call = Call(run="r", root="r", root_caller="k~a", session="s", call="1", time_left_ms=1)
    return Pending(VERSION, call, "call.x", 10.0, chain_of_call(VERSION, 3), asyncio.get_running_loop().create_future())


async def test_a_call_that_waited_for_a_start_met_a_cold_start(pending: Pending) -> None:
    pending.state, pending.parked_at = PARKED, 100.0

    pending.taken("l-1", ready_ms=200, now=101.0)

    assert pending.cold_s == pytest.approx(0.8)
    assert pending.state == RUNNING


async def test_a_call_that_waited_for_a_slot_of_a_warm_instance_did_not(pending: Pending) -> None:
    pending.state, pending.parked_at = PARKED, 100.0

    pending.taken("l-1", ready_ms=60_000, now=101.0)

    assert pending.cold_s == 0.0


async def test_only_what_was_there_may_have_died_there(pending: Pending) -> None:
    pending.state, pending.instance = RUNNING, "l-1"
    assert pending.may_have_died_with(VERSION, "l-1", "crash")
    assert not pending.may_have_died_with(VERSION, "l-2", "crash")

    pending.state = SENT
    assert pending.may_have_died_with(VERSION, "l-2", "crash")

    pending.state = PARKED
    assert not pending.may_have_died_with(VERSION, "l-1", "crash")


async def test_it_is_sent_again_until_its_attempts_are_over(pending: Pending) -> None:
    pending.state = RUNNING

    assert pending.lost("crash", "killed by signal 9") is None
    assert pending.lost("crash", "killed by signal 9") is None
    error = pending.lost("crash", "killed by signal 9")

    assert isinstance(error, errors.InstanceLost)
    assert "text/clean/1.0.0" in str(error)
    assert "signal 9" in str(error)


async def test_a_timeout_or_too_much_memory_is_not_tried_again(pending: Pending) -> None:
    pending.state = RUNNING

    assert isinstance(pending.lost("timeout", ""), errors.RunTimeout)
    assert isinstance(pending.lost("memory_exceeded", "2.1 of 2.0 GiB"), errors.MemoryExceeded)


async def test_a_neighbour_of_one_that_took_too_much_is_tried_again(pending: Pending) -> None:
    pending.state = SENT

    assert pending.lost("memory_exceeded", "") is None


async def test_one_that_left_in_good_order_took_only_what_it_still_ran(pending: Pending) -> None:
    pending.state = SENT
    assert not pending.may_have_died_with(VERSION, "l-1", "retired")

    pending.state, pending.instance = RUNNING, "l-1"
    assert pending.may_have_died_with(VERSION, "l-1", "retired")
