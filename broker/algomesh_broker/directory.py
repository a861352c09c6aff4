"""The directory: which algorithms and versions there are, as this process knows it.

A copy in memory, kept up to date by a plain subscription, so that resolving a name costs no round
trip. It is read page by page, without a consumer, at the start and again after every reconnect. What
arrives live counts more than a page, since a page may have been read before it.
"""

import asyncio
import bisect
import contextlib
import heapq
import itertools
import random
import secrets
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple, Self

import msgspec

from algomesh_broker.codec import decode_entry
from algomesh_broker.connection import Connection, Message, Subscription
from algomesh_broker.errors import BadMessage, BadName, BrokerError, Unreachable
from algomesh_broker.messages import AlgorithmEntry, VersionEntry
from algomesh_broker.names import Reference, Version, VersionId, nearest
from algomesh_broker.permissions import DIRECTORY_GET, DIRECTORY_UPDATES
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.directory")

_PREFIX = DIRECTORY_UPDATES.removesuffix(">")
_PAGE = 1_000
_PAGE_WITHIN_S = 5.0
_RETRY_S = 0.1
_LOOKED_AT, _COMPARED = 1_000, 32
_END_OF_PAGE, _NOT_FOUND = 204, 404
_GONE = ("DEL", "PURGE")
_parse_version = lru_cache(4_096)(Version.parse)  # most versions are 1.0.0


class UnknownAlgorithm(BrokerError, LookupError):
    """No such algorithm is published; `nearest` are the names most like it."""

    code = "unknown_algorithm"

    def __init__(self, algorithm: str, similar: list[str]) -> None:
        hint = f"; did you mean {' or '.join(similar)}?" if similar else "; `algomesh ls` lists what there is"
        super().__init__(f"there is no algorithm {algorithm!r}{hint}")
        self.algorithm = algorithm
        self.nearest = similar


class UnknownVersion(BrokerError, LookupError):
    """The algorithm has no version that fits, or no such alias; `versions` are those it has, newest first."""

    code = "unknown_version"

    def __init__(self, algorithm: str, version: str, versions: list[str], aliases: Iterable[str] = ()) -> None:
        there = ", ".join(versions[:5]) + (", …" if len(versions) > 5 else "")
        named = f", and the aliases {', '.join(sorted(aliases)[:5])}" if aliases else ""
        super().__init__(f"{algorithm!r} has no version {version!r}; it has {there or 'none'}{named}")
        self.algorithm = algorithm
        self.version = version
        self.versions = versions


class Resolved(NamedTuple):
    """The exact version that a reference means now."""

    version: VersionId
    entry: VersionEntry


class _Split(NamedTuple):
    """Several versions, and the sum of the weights of each and those before it."""

    targets: list[Resolved]
    sums: list[int]


class Known:
    """One algorithm's entry, prepared for look-ups."""

    __slots__ = ("_aliases", "entry", "versions")

    def __init__(self, entry: AlgorithmEntry) -> None:
        """Raises BadName for an entry with a version that is none."""
        self.entry = entry
        self.versions = [(_parse_version(version.version), version) for version in entry.versions]  # oldest first
        if len(self.versions) > 1:
            self.versions.sort(key=_number)
        self._aliases = {alias: _split(self, weights) for alias, weights in entry.aliases.items()}

    def find(self, reference: Reference, chance: Callable[[], float] = random.random) -> tuple[Resolved, bool]:
        """The version that a reference to this algorithm means, and whether it means that one every time.

        Raises UnknownVersion.
        """
        wanted = reference.version
        if reference.is_alias:
            split = self._aliases.get(wanted)
            if split is not None and split.targets:
                if len(split.targets) == 1:
                    return split.targets[0], True
                return split.targets[bisect.bisect(split.sums, chance() * split.sums[-1])], False
        else:
            numbers = tuple(map(int, wanted.split("."))) if wanted else ()
            for number, entry in reversed(self.versions):
                if number[: len(numbers)] == numbers:
                    return self.resolved(number, entry), True
        there = [str(number) for number, _ in reversed(self.versions)]
        raise UnknownVersion(reference.algorithm, wanted, there, self.entry.aliases)

    def targets(self, alias: str) -> list[Resolved]:
        """Every version that an alias may mean."""
        split = self._aliases.get(alias)
        return [] if split is None else split.targets

    def resolved(self, number: Version, entry: VersionEntry) -> Resolved:
        """One of its versions."""
        return Resolved(VersionId(self.entry.owner, self.entry.name, number), entry)


def _split(known: Known, weights: dict[str, int]) -> _Split:
    """What an alias means; versions that are not there, or have no weight, are left out."""
    entries = {str(number): (number, entry) for number, entry in known.versions}
    weighed = [(entries[version], weight) for version, weight in weights.items() if weight > 0 and version in entries]
    targets = [known.resolved(*found) for found, _ in weighed]
    return _Split(targets, list(itertools.accumulate(weight for _, weight in weighed)))


Changed = Callable[[str], None]


class Directory:
    """Every published algorithm. Open it with `Directory.open`; plain reads never wait."""

    def __init__(self, connection: Connection) -> None:
        self.on_change: list[Changed] = []
        self._connection = connection
        self._known: dict[str, Known] = {}
        self._resolved: dict[Reference, Resolved] = {}
        self._by_name: dict[str, set[str]] = {}
        self._by_owner: dict[str, set[str]] = {}
        self._heard: set[str] = set()
        self._updates: Subscription | None = None
        self._reload: asyncio.Task[None] | None = None
        # Not to be guessed: an inbox is kept from others by permission, and this page from a stray answer.
        self._inbox = f"{connection.identity.inbox}.dir-{secrets.token_hex(8)}"
        self._pages = itertools.count(1)
        # Its own: an algorithm may seed the common one, and every caller would then choose alike.
        self._random = random.Random()  # noqa: S311  # no secret hangs on it

    @classmethod
    async def open(cls, connection: Connection, *, timeout_s: float = 10.0) -> Self:
        """Subscribe and read all of it. Raises Unreachable when there is no directory within `timeout_s`, Forbidden."""
        directory = cls(connection)
        directory._updates = await connection.subscribe(DIRECTORY_UPDATES, directory._update)
        try:
            async with asyncio.timeout(timeout_s):
                await directory._load_until_done()
        except TimeoutError as error:
            await directory.close()
            raise Unreachable(f"the directory could not be read within {timeout_s:g} s; is the registry up?") from error
        except BaseException:
            await directory.close()
            raise
        connection.on_reconnect.append(directory._on_reconnect)
        return directory

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop listening. What is known stays readable."""
        with contextlib.suppress(ValueError):
            self._connection.on_reconnect.remove(self._on_reconnect)
        if self._reload is not None:
            self._reload.cancel()
            await asyncio.gather(self._reload, return_exceptions=True)
        if self._updates is not None:
            updates, self._updates = self._updates, None
            with contextlib.suppress(BrokerError):  # the connection may be closed already
                await updates.leave()

    def resolve(self, reference: Reference) -> Resolved:
        """The newest version that fits `reference`: exactly, or by its first numbers, or any; or what an alias means.

        An alias of several versions means one of them at each call, by weight. Raises UnknownAlgorithm, UnknownVersion.
        """
        resolved = self._resolved.get(reference)
        if resolved is None:
            resolved, is_lasting = self._resolve(reference)
            if is_lasting:
                self._resolved[reference] = resolved
        return resolved

    def is_lasting(self, reference: Reference) -> bool:
        """Whether `reference` means the same version until the directory changes; else each call chooses anew."""
        known = self._known.get(reference.algorithm)
        return not reference.is_alias or known is None or len(known.targets(reference.version)) < 2

    def entries(self) -> list[AlgorithmEntry]:
        """Every algorithm, by name."""
        return [self._known[name].entry for name in sorted(self._known)]

    def entry(self, algorithm: str) -> AlgorithmEntry | None:
        """The entry of `owner/name`, if there is one."""
        known = self._known.get(algorithm)
        return known.entry if known else None

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, version: VersionId) -> bool:
        known = self._known.get(version.algorithm)
        return known is not None and any(number == version.version for number, _ in known.versions)

    def _resolve(self, reference: Reference) -> tuple[Resolved, bool]:
        known = self._known.get(reference.algorithm)
        if known is None or not known.versions:
            similar = nearest(reference.algorithm, self._similar(reference))
            raise UnknownAlgorithm(reference.algorithm, similar)
        return known.find(reference, self._random.random)

    def _similar(self, reference: Reference) -> list[str]:
        """A few names worth comparing closely: to compare with ten thousand would take a second."""
        same_name = sorted(self._by_name.get(reference.name, ()))[: _COMPARED // 2]
        wanted, letters = reference.algorithm, set(reference.algorithm)

        def unlikeness(algorithm: str) -> int:
            return len(letters.symmetric_difference(algorithm)) + abs(len(algorithm) - len(wanted))

        pool: Iterable[str] = self._by_owner.get(reference.owner) or self._known
        close = heapq.nsmallest(_COMPARED - len(same_name), itertools.islice(pool, _LOOKED_AT), key=unlikeness)
        return [name for name in (*same_name, *close) if self._known[name].versions]

    # Keeping up

    def _update(self, message: Message) -> None:
        headers = message.headers or {}
        if not message.subject.startswith(_PREFIX) or "Nats-Subject" in headers:
            return  # an answer to somebody's request that was steered here; writes never look like this
        try:
            self._take(message.subject, message.data, headers, is_live=True)
        except (BadMessage, BadName) as error:
            log.warning("directory_entry_ignored", subject=message.subject, error=str(error))

    def _take(self, subject: str, data: bytes | memoryview, headers: dict[str, str], *, is_live: bool) -> None:
        algorithm = subject.removeprefix(_PREFIX).replace(".", "/")
        if is_live:
            self._heard.add(algorithm)
        elif algorithm in self._heard:
            return
        if headers.get("KV-Operation") in _GONE:
            self._forget(algorithm)
            return
        entry = decode_entry(data)
        if f"{entry.owner}/{entry.name}" != algorithm:
            raise BadMessage(f"the entry of {entry.owner}/{entry.name} lies under {subject!r}")
        before = self._known.get(algorithm)
        if before is not None and before.entry == entry:
            return
        self._known[algorithm] = Known(entry)
        self._by_name.setdefault(entry.name, set()).add(algorithm)
        self._by_owner.setdefault(entry.owner, set()).add(algorithm)
        self._changed(algorithm)

    def _forget(self, algorithm: str) -> None:
        known = self._known.pop(algorithm, None)
        if known is not None:
            self._by_name[known.entry.name].discard(algorithm)
            self._by_owner[known.entry.owner].discard(algorithm)
            self._changed(algorithm)

    def _changed(self, algorithm: str) -> None:
        if self._resolved:
            self._resolved = {
                reference: resolved
                for reference, resolved in self._resolved.items()
                if reference.algorithm != algorithm
            }
        for hook in tuple(self.on_change):
            hook(algorithm)

    # Reading all of it

    def _on_reconnect(self) -> None:
        if self._reload is None or self._reload.done():
            self._reload = asyncio.create_task(self._load_until_done(), name="directory-reload")

    async def _load_until_done(self) -> None:
        while True:
            try:
                await self._load()
            except (Unreachable, TimeoutError) as error:
                log.debug("directory_read_failed", error=str(error))
            else:
                return
            await asyncio.sleep(_RETRY_S)

    async def _load(self) -> None:
        self._heard.clear()
        seen: set[str] = set()
        next_seq = 1
        while next_seq:
            messages, next_seq = await self._page(next_seq)
            for subject, message in messages:
                seen.add(subject.removeprefix(_PREFIX).replace(".", "/"))
                try:
                    self._take(subject, message.data, message.headers or {}, is_live=False)
                except (BadMessage, BadName) as error:
                    log.warning("directory_entry_ignored", subject=subject, error=str(error))
        for algorithm in self._known.keys() - seen - self._heard:
            self._forget(algorithm)
        self._heard.clear()

    async def _page(self, seq: int) -> tuple[list[tuple[str, Message]], int]:
        """At most a page from sequence `seq` on, and where the next begins (0: that was the last)."""
        inbox = f"{self._inbox}.{next(self._pages)}"
        messages: list[tuple[str, Message]] = []
        ended: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def collect(message: Message) -> None:
            subject = (message.headers or {}).get("Nats-Subject")
            if message.status and not ended.done():
                ended.set_result(message)
            elif subject is not None:
                messages.append((subject, message))

        request = {"seq": seq, "next_by_subj": DIRECTORY_UPDATES, "batch": _PAGE}
        subscription = self._connection.join(inbox, collect)
        try:
            self._connection.publish(DIRECTORY_GET, msgspec.json.encode(request), inbox)
            async with asyncio.timeout(_PAGE_WITHIN_S):
                end = await ended
        finally:
            subscription.leave()
        if end.status == _NOT_FOUND:
            return [], 0
        if end.status != _END_OF_PAGE:
            raise Unreachable(f"the directory is not there yet (status {end.status})")
        headers = end.headers or {}
        if headers.get("Nats-Num-Pending", "0") == "0" or not messages:
            return messages, 0
        return messages, int((messages[-1][1].headers or {})["Nats-Sequence"]) + 1


def _number(pair: tuple[Version, VersionEntry]) -> Version:
    return pair[0]
