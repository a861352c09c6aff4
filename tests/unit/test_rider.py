"""What need not go at once: with other things when there are some, else alone."""

import asyncio

from algomesh_broker.connection import Connection
from algomesh_broker.identity import Identity

FOREVER_S = 60.0


class Link:
    """Keeps what is written."""

    max_payload = 2**20

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


class World:
    """A connection with one rider, which publishes `ride` and is counted."""

    def __init__(self, ready_s: float, latest_s: float) -> None:
        self.connection = Connection("nats://nowhere", Identity("k~me", "_INBOX.me"), "test")
        self.link = Link()
        self.connection._link = self.link  # type: ignore[assignment]  # it writes, and no more
        self.connection.is_connected = True
        self.rider = self.connection.rider(lambda: self.connection.publish("ride"), ready_s, latest_s)

    async def write_something(self) -> list[bytes]:
        """What one write held."""
        self.link.written.clear()
        self.connection.publish("other")
        while not self.link.written:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return self.link.written


OTHER, RIDE = b"PUB other 0\r\n\r\n", b"PUB ride 0\r\n\r\n"


async def test_it_goes_with_the_next_write_once_it_is_ready() -> None:
    world = World(0.0, FOREVER_S)
    world.rider.arm()

    assert await world.write_something() == [OTHER + RIDE]
    assert await world.write_something() == [OTHER]
    assert not world.rider.is_armed


async def test_before_that_other_things_go_without_it() -> None:
    world = World(FOREVER_S, FOREVER_S)
    world.rider.arm()

    assert await world.write_something() == [OTHER]
    assert world.rider.is_armed


async def test_with_nothing_else_to_write_it_goes_alone() -> None:
    world = World(0.0, 0.0)
    world.rider.arm()
    while not world.link.written:
        await asyncio.sleep(0)

    assert world.link.written == [RIDE]


async def test_one_that_was_disarmed_stays() -> None:
    world = World(0.0, 0.0)
    world.rider.arm()
    world.rider.disarm()

    assert await world.write_something() == [OTHER]


async def test_while_the_server_is_away_it_waits() -> None:
    world = World(0.0, FOREVER_S)
    world.rider.arm()
    world.connection.is_connected = False
    world.connection._flush()

    assert world.rider.is_armed
    assert world.link.written == []
