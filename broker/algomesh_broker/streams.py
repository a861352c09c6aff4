"""Streams, consumers and the directory's bucket: JetStream, administered.

The programs that keep a stream use this, each under its own store identity (credentials.py), which
may touch nothing else. It speaks JetStream's JSON API over the mesh's own connection: a request and an
answer are all there is to it, and importing nats-py would cost every program half a second.

    parked     memory, lost with the server, and with it its consumers: `ensure_*` again after a reconnect
    events     file, taken in without acknowledgement
    claims     file; payloads too large for a message, each piece under a subject of its own (claims_stream.py)
    cache      file; results that are kept, each under a subject of its own, the oldest dropped when it is full
    directory  a key-value bucket: the stream KV_directory, file
"""

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Self

import msgspec

from algomesh_broker import subjects
from algomesh_broker.codec import encode
from algomesh_broker.connection import Connection
from algomesh_broker.errors import StreamError
from algomesh_broker.identity import Identity
from algomesh_broker.messages import AlgorithmEntry
from algomesh_broker.names import VersionId
from algomesh_broker.permissions import DIRECTORY_STREAM, DIRECTORY_UPDATES

__all__ = ["JetStreamAdmin"]

PARKED_PER_CALLER = 1_000
ACK_WAIT_S = 5.0
_DAY_S = 86_400
_NANOSECONDS = 1_000_000_000
_IN_FLIGHT = 256

_PARKED = {
    "name": subjects.PARKED_STREAM,
    "description": "Calls that wait for an instance",
    "subjects": [subjects.ALL_PARKED],
    "storage": "memory",
    "retention": "workqueue",
    "discard": "new",
    "discard_new_per_subject": True,
    "max_msgs_per_subject": PARKED_PER_CALLER,
    "max_bytes": 2**30,
    "max_age": _DAY_S * _NANOSECONDS,
    "max_consumers": 100_000,
    "allow_msg_ttl": True,
    "num_replicas": 1,
}
_EVENTS = {
    "name": subjects.EVENTS_STREAM,
    "description": "What happened, until the ledger has it",
    "subjects": [subjects.ALL_EVENTS],
    "storage": "file",
    "retention": "limits",
    "discard": "old",
    "max_bytes": 512 * 2**20,
    "max_age": _DAY_S * _NANOSECONDS,
    # Nobody waits for it, and an acknowledgement could be steered (ADR 0004).
    "no_ack": True,
    # Written behind: with every message synced it took 1,150 of them a second, and the server's time from calls.
    # A power cut may cost the ledger the last moments; what runs cost is no reason to slow them down.
    "persist_mode": "async",
    "num_replicas": 1,
}
_CLAIMS = {
    "name": subjects.CLAIMS_STREAM,
    "description": "Payloads too large for a message, until they expire",
    "subjects": [subjects.ALL_CLAIMS],
    "storage": "file",
    "retention": "limits",
    # Full means a refusal; an empty piece still takes the place of a larger one, so deleting always works.
    "discard": "new",
    "max_msgs_per_subject": 1,
    "max_age": _DAY_S * _NANOSECONDS,
    "allow_msg_ttl": True,
    "allow_direct": True,
    "deny_delete": True,
    # Written behind: who loses a server loses the run's messages too, and sends again.
    "persist_mode": "async",
    "num_replicas": 1,
}
_CACHE = {
    "name": subjects.CACHE_STREAM,
    "description": "Results that are kept, until they expire",
    "subjects": [subjects.ALL_RESULTS],
    # A result may be kept for a week, longer than servers run; memory is better left to what runs.
    "storage": "file",
    "retention": "limits",
    "discard": "old",
    "max_msgs_per_subject": 1,
    "max_msg_size": 600 * 2**10,
    "max_age": 7 * _DAY_S * _NANOSECONDS,
    "allow_msg_ttl": True,
    "allow_direct": True,
    "deny_delete": True,
    # Nobody waits for it, and an acknowledgement could be steered (ADR 0004).
    "no_ack": True,
    "persist_mode": "async",
    "num_replicas": 1,
}
_CLAIMS_BYTES, _CACHE_BYTES, _LEAST_BYTES = 8 * 2**30, 2**30, 64 * 2**20
_DIRECTORY = {
    "name": DIRECTORY_STREAM,
    "description": "Which algorithms and versions there are; a copy of the registry's tables",
    "subjects": [DIRECTORY_UPDATES],
    "storage": "file",
    "retention": "limits",
    "discard": "new",
    "max_msgs_per_subject": 1,
    "allow_rollup_hdrs": True,
    "deny_delete": True,
    "allow_direct": True,
    "num_replicas": 1,
}


class JetStreamAdmin:
    """JetStream as one program may use it. Open it with `JetStreamAdmin.open`, and close it.

    Every method raises StreamError when JetStream refuses, Forbidden when the identity may not ask,
    and Unreachable when no answer came.
    """

    def __init__(self, connection: Connection, timeout_s: float = 5.0) -> None:
        self.connection = connection
        self._timeout_s = timeout_s

    @classmethod
    async def open(cls, url: str, identity: Identity, *, timeout_s: float = 5.0) -> Self:
        """Connect under a store identity. Raises Unauthenticated, Unreachable."""
        name = f"{identity.caller.rpartition('~')[2]}-store"
        connection = await Connection.open(url, identity.with_own_inbox(), name=name, timeout_s=timeout_s)
        return cls(connection, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self.connection.close()

    # Streams

    async def ensure_parked(self) -> bool:
        """Make the stream of parked calls as it must be; True when it was not there."""
        return await self._ensure_stream(_PARKED)

    async def ensure_events(self) -> bool:
        """Make the stream of run events as it must be; True when it was not there."""
        return await self._ensure_stream(_EVENTS)

    async def ensure_claims(self, max_bytes: int = _CLAIMS_BYTES) -> bool:
        """Make the stream of claims as it must be, as large as the disk allows; True when it was not there."""
        return await self._ensure_with_room(_CLAIMS, max_bytes)

    async def ensure_cache(self, max_bytes: int = _CACHE_BYTES) -> bool:
        """Make the stream of kept results as it must be, as large as the disk allows; True when it was not there."""
        return await self._ensure_with_room(_CACHE, max_bytes)

    async def ensure_directory(self) -> bool:
        """Make the directory's bucket as it must be; True when it was not there."""
        return await self._ensure_stream(_DIRECTORY)

    async def pending(self, stream: str, subjects_filter: str) -> dict[str, int]:
        """How many messages wait under each subject that the filter fits."""
        counts: dict[str, int] = {}
        while True:
            request = {"subjects_filter": subjects_filter, "offset": len(counts)}
            answer = await self._ask(f"STREAM.INFO.{stream}", request)
            page = answer["state"].get("subjects") or {}
            counts |= page
            if not page or len(counts) >= answer.get("total", 0):
                return counts

    async def pending_parked(self, version: VersionId | None = None) -> dict[str, int]:
        """How many calls are parked under each subject; of one version, or of all.

        A call that an instance was given and has not acknowledged yet counts.
        """
        return await self.pending(
            subjects.PARKED_STREAM, subjects.ALL_PARKED if version is None else subjects.parked_of(version)
        )

    async def oldest_parked(self, version: VersionId) -> float | None:
        """When the oldest of this version's parked calls came, in seconds since the epoch; None when there is none."""
        request = {"seq": 1, "next_by_subj": subjects.parked_of(version)}
        try:
            answer = await self._ask(f"STREAM.MSG.GET.{subjects.PARKED_STREAM}", request)
        except StreamError as error:
            if error.err_code != _NO_MESSAGE:
                raise
            return None
        return datetime.fromisoformat(answer["message"]["time"]).timestamp()

    async def purge(self, stream: str, subject: str) -> int:
        """Remove the messages under `subject` (wildcards allowed), and say how many they were."""
        answer = await self._ask(f"STREAM.PURGE.{stream}", {"filter": subject})
        return int(answer["purged"])

    async def purge_parked(self, version: VersionId) -> int:
        """Remove every parked call of this version, and say how many they were."""
        return await self.purge(subjects.PARKED_STREAM, subjects.parked_of(version))

    # Consumers

    async def ensure_version(self, version: VersionId) -> None:
        """Make the consumer from which the instances of `version` take parked calls."""
        config = {
            "durable_name": version.consumer,
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT_S * _NANOSECONDS),
            "max_deliver": -1,
            "max_ack_pending": 10_000,
            "filter_subject": subjects.parked_of(version),
        }
        await self._ensure_consumer(subjects.PARKED_STREAM, version.consumer, config)

    async def delete_version(self, version: VersionId) -> bool:
        """Remove the version's consumer; what is parked stays. False when there was none."""
        try:
            await self._ask(f"CONSUMER.DELETE.{subjects.PARKED_STREAM}.{version.consumer}")
        except StreamError as error:
            if error.err_code in (_NO_CONSUMER, _NO_STREAM):
                return False
            raise
        return True

    async def ensure_ledger(self, consumer: str = "ledger", *, ack_wait_s: float = 30.0, ahead: int = 4_096) -> None:
        """Make the durable consumer from which the ledger takes events, at most `ahead` of them unacknowledged."""
        config = {
            "durable_name": consumer,
            "ack_policy": "explicit",
            "ack_wait": int(ack_wait_s * _NANOSECONDS),
            "max_deliver": -1,
            "max_ack_pending": ahead,
        }
        await self._ensure_consumer(subjects.EVENTS_STREAM, consumer, config)

    # The directory

    async def put_entries(self, entries: Iterable[AlgorithmEntry]) -> int:
        """Write these entries into the directory, many at a time, and say how many they were."""
        room = asyncio.Semaphore(_IN_FLIGHT)
        count = 0
        try:
            async with asyncio.TaskGroup() as group:
                for entry in entries:
                    await room.acquire()
                    task = group.create_task(self._put(entry), name="directory-put")
                    task.add_done_callback(lambda _: room.release())
                    count += 1
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return count

    async def delete_entry(self, owner: str, name: str) -> None:
        """Remove an algorithm from the directory; whoever reads it hears of it."""
        self.connection.publish(subjects.directory_key(owner, name), b"", headers={"KV-Operation": "DEL"})
        await self.connection.flush(self._timeout_s)

    async def _put(self, entry: AlgorithmEntry) -> None:
        await self._request(subjects.directory_key(entry.owner, entry.name), encode(entry))

    # Asking JetStream

    async def _ensure_with_room(self, config: dict[str, Any], max_bytes: int) -> bool:
        while True:
            try:
                return await self._ensure_stream(config | {"max_bytes": max_bytes})
            except StreamError as error:
                if error.err_code not in _NO_ROOM or max_bytes <= _LEAST_BYTES:
                    raise
            max_bytes //= 2

    async def _ensure_stream(self, config: dict[str, Any]) -> bool:
        try:
            answer = await self._ask(f"STREAM.INFO.{config['name']}")
        except StreamError as error:
            if error.err_code != _NO_STREAM:
                raise
            # Two programs may make it at once: the same config is no error, and did_create says whose it is.
            answer = await self._ask(f"STREAM.CREATE.{config['name']}", config)
            return bool(answer.get("did_create", True))
        if any(answer["config"].get(field) != value for field, value in config.items()):
            await self._ask(f"STREAM.UPDATE.{config['name']}", answer["config"] | config)
        return False

    async def _ensure_consumer(self, stream: str, name: str, config: dict[str, Any]) -> None:
        filter_subject = config.get("filter_subject")
        path = f"{stream}.{name}.{filter_subject}" if filter_subject else f"{stream}.{name}"
        await self._ask(f"CONSUMER.CREATE.{path}", {"stream_name": stream, "config": config, "action": ""})

    async def _ask(self, verb: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        return await self._request(f"$JS.API.{verb}", b"" if request is None else msgspec.json.encode(request))

    async def _request(self, subject: str, payload: bytes) -> dict[str, Any]:
        message = await self.connection.request(subject, payload, self._timeout_s)
        answer: dict[str, Any] = msgspec.json.decode(message.data)
        if error := answer.get("error"):
            raise StreamError(error.get("description", "JetStream refused"), error.get("err_code", 0))
        return answer


_NO_STREAM, _NO_CONSUMER, _NO_MESSAGE = 10059, 10014, 10037
_NO_ROOM = (10028, 10047)  # of memory and of disk, in the account or on the server
