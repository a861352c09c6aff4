"""The directory in NATS as a copy of the versions and aliases in PostgreSQL.

Postgres decides: what differs is written again, whenever the registry starts or NATS comes back.
When nothing differs, the check is one query and one paged read, however many versions there are.
"""

from collections.abc import Iterable

import structlog

from algomesh_broker.directory import Directory
from algomesh_broker.messages import AlgorithmEntry, VersionEntry
from algomesh_broker.names import Version
from algomesh_broker.streams import JetStreamAdmin
from algomesh_services.registry.store import AliasRecord, Store, VersionRecord

log = structlog.get_logger("algomesh.registry")


class Mirror:
    """Writes the directory's bucket. `directory` is what is in it, kept up to date by itself."""

    def __init__(self, admin: JetStreamAdmin, directory: Directory, store: Store) -> None:
        self._admin = admin
        self.directory = directory
        self._store = store

    async def check(self) -> list[VersionRecord]:
        """Make the whole directory what the tables say; return what they say. Raises StoreAway, BrokerError."""
        records, aliases = await self._store.versions(), await self._store.aliases()
        if self._differing(records, aliases) or self._surplus(records):
            async with self._store.mirroring():
                records, aliases = await self._store.versions(), await self._store.aliases()
                surplus = self._surplus(records)
                for entry in surplus:
                    await self._admin.delete_entry(entry.owner, entry.name)
                written = await self._admin.put_entries(self._differing(records, aliases))
            log.info("directory_repaired", written=written, removed=len(surplus))
        return records

    async def write(self, owner: str, name: str) -> None:
        """Make one algorithm's entry what the tables say. Raises StoreAway, BrokerError."""
        async with self._store.mirroring():
            entry = await self.stored_entry(owner, name)
            await self._admin.put_entries([] if entry is None else [entry])

    async def stored_entry(self, owner: str, name: str) -> AlgorithmEntry | None:
        """One algorithm's entry as the tables have it; None when it was never published. Raises StoreAway."""
        found = entries_of(await self._store.versions(owner, name), await self._store.aliases(owner, name))
        return found[0] if found else None

    def _differing(self, records: Iterable[VersionRecord], aliases: Iterable[AliasRecord]) -> list[AlgorithmEntry]:
        wanted = entries_of(records, aliases)
        return [entry for entry in wanted if self.directory.entry(f"{entry.owner}/{entry.name}") != entry]

    def _surplus(self, records: Iterable[VersionRecord]) -> list[AlgorithmEntry]:
        published = {(record.owner, record.name) for record in records}
        return [entry for entry in self.directory.entries() if (entry.owner, entry.name) not in published]


def entries_of(records: Iterable[VersionRecord], aliases: Iterable[AliasRecord] = ()) -> list[AlgorithmEntry]:
    """The directory's entries of these versions, each with its versions oldest first."""
    named: dict[tuple[str, str], dict[str, dict[str, int]]] = {}
    for alias in sorted(aliases):
        named.setdefault((alias.owner, alias.name), {})[alias.alias] = alias.weights
    algorithms: dict[tuple[str, str], list[VersionRecord]] = {}
    for record in records:
        algorithms.setdefault((record.owner, record.name), []).append(record)
    return [
        AlgorithmEntry(
            owner=owner,
            name=name,
            versions=[
                VersionEntry(
                    version=record.version,
                    digest=record.digest,
                    timeout_s=record.timeout_s,
                    attempts=record.attempts,
                    description=record.description,
                    published_at=record.published_at,
                    min_instances=record.min_instances,
                    pipeline=record.pipeline,
                    takes=record.takes,
                    gives=record.gives,
                    cache_s=record.cache_s,
                    takes_parts=record.takes_parts,
                )
                for record in _oldest_first(versions)
            ],
            aliases=named.get((owner, name), {}),
        )
        for (owner, name), versions in algorithms.items()
    ]


def _oldest_first(versions: list[VersionRecord]) -> list[VersionRecord]:
    return sorted(versions, key=lambda record: Version.parse(record.version)) if len(versions) > 1 else versions
