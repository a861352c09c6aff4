"""The images that were built for versions, and when they go.

They are tagged and labelled with their mesh, and nobody else's are touched. A file for each, in the state directory,
says which versions' digests have used it, and by its time when that was: the engine does not remember, and the next
launcher must know. One goes when the directory has none of these versions any more; and beyond the `Retention.most`
that were used last, when it has not been used for a day. One that a container was made of is refused by the engine,
one that a start is about to take is held here, and one that was used a moment ago is left to other launchers of this
state directory. Whatever was removed is built again when somebody wants it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from algomesh_services.launcher.docker_engine import LABEL, Engine
from algomesh_services.launcher.driver import LaunchFailed

log = structlog.get_logger("algomesh.launcher")

BUILT_FOR: Final = f"{LABEL}built-for"
DIGEST: Final = f"{LABEL}digest"


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long images stay, in seconds. Beyond the `most` used last they go when `unused_s` have passed since.

    Those of which no version is published go `unpublished_s` after that was noticed first, and after their last use.
    It is looked at `every_s`.
    """

    most: int = 50
    unused_s: float = 86_400.0
    unpublished_s: float = 600.0
    every_s: float = 600.0


@dataclass(frozen=True)
class Image:
    """One image that was built: for which digests, when it was used last, and since when none of them is published.

    `used_at` and `unpublished_at` are seconds since the epoch; None: one is published, or nobody knows.
    """

    tag: str
    digests: frozenset[str]
    used_at: float
    unpublished_at: float | None = None


def surplus(images: Iterable[Image], retention: Retention, now: float) -> dict[str, str]:
    """The tags of the images that should go, each with the reason."""
    found: dict[str, str] = {}
    kept: list[Image] = []
    for image in images:
        is_gone = image.unpublished_at is not None and image.unpublished_at <= now - retention.unpublished_s
        if is_gone and image.used_at <= now - retention.unpublished_s:
            found[image.tag] = "none of its versions is published any more"
        else:
            kept.append(image)
    kept.sort(key=lambda image: (-image.used_at, image.tag))
    for image in kept[retention.most :]:
        if image.used_at <= now - retention.unused_s:
            found[image.tag] = f"{retention.most} others were used since"
    return found


class BuiltImages:
    """What the launchers of one mesh have built; `labels` mark it, `state` is their state directory."""

    def __init__(self, engine: Engine, mesh: str, labels: Mapping[str, str], state: Path, retention: Retention) -> None:
        self.labels = dict(labels)
        self.published: Callable[[], Collection[str]] = frozenset
        self._engine, self._mesh, self._folder, self._retention = engine, mesh, state / "images", retention
        self._held: Counter[str] = Counter()
        self._removing: dict[str, asyncio.Lock] = {}
        self._unpublished: dict[str, float] = {}

    def name(self, tag: str) -> str:
        """The whole name of what is tagged so."""
        return f"algomesh/{self._mesh}:{tag}"

    @asynccontextmanager
    async def using(self, tag: str, digest: str) -> AsyncIterator[None]:
        """While it is built and a container is made of it, for a version with this digest, it is not removed."""
        self._held[tag] += 1
        try:
            async with self._removing.setdefault(tag, asyncio.Lock()):
                await asyncio.to_thread(self._remember, tag, digest)
            yield
            await asyncio.to_thread(self._remember, tag, digest)
        finally:
            self._held[tag] -= 1
            if not self._held[tag]:
                del self._held[tag]

    async def prune(self) -> list[str]:
        """Remove what should go; return its tags. What cannot be removed is logged, and tried again next time."""
        removed: list[str] = []
        try:
            images = await self._known()
        except LaunchFailed as error:
            log.warning("images_not_pruned", error=str(error))
            return removed
        await asyncio.to_thread(self._forget_others, {image.tag for image in images} | self._held.keys())
        for tag, reason in surplus(images, self._retention, time.time()).items():
            async with self._removing.setdefault(tag, asyncio.Lock()):
                if tag in self._held:
                    continue
                try:
                    is_removed = await self._engine.remove_image(self.name(tag))
                except LaunchFailed as error:
                    log.warning("image_not_removed", image=self.name(tag), error=str(error))
                    continue
                if is_removed:
                    removed.append(tag)
                    self._unpublished.pop(tag, None)
                    await asyncio.to_thread(self._forget, tag)
                    log.info("image_removed", image=self.name(tag), reason=reason)
                else:  # an instance runs in it
                    await asyncio.to_thread(self._remember, tag, "")
        return removed

    async def keep_pruned(self) -> None:
        """Prune now and then, for ever."""
        while True:
            await asyncio.sleep(self._retention.every_s)
            try:
                await self.prune()
            except Exception:  # of no kind that is known; the next turn may do better
                log.exception("images_not_pruned")

    async def _known(self) -> list[Image]:
        """What is there, and since when it is not wanted. Raises LaunchFailed."""
        rows = await self._engine.images(f"{LABEL}mesh={self._mesh}")
        # Nothing at all is more likely a directory that is being filled than one that has been emptied.
        published, now = frozenset(self.published()), time.time()
        images: list[Image] = []
        for row in rows:
            for name in row.get("RepoTags") or ():
                tag = name.removeprefix(self.name(""))
                if tag != name:
                    images.append(await asyncio.to_thread(self._read, tag, row))
        unwanted = {each.tag for each in images if published and each.digests.isdisjoint(published)}
        self._unpublished = {tag: self._unpublished.get(tag, now) for tag in unwanted}
        return [Image(each.tag, each.digests, each.used_at, self._unpublished.get(each.tag)) for each in images]

    def _read(self, tag: str, row: Mapping[str, Any]) -> Image:
        digests, used_at = {(row.get("Labels") or {}).get(DIGEST, "")}, float(row.get("Created") or 0.0)
        try:
            path = self._folder / tag
            digests.update(path.read_text().split())
            used_at = max(used_at, path.stat().st_mtime)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("image_use_unknown", image=self.name(tag), error=str(error))
            used_at = time.time()
        return Image(tag, frozenset(digests - {""}), used_at)

    def _remember(self, tag: str, digest: str) -> None:
        path = self._folder / tag
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if digest and (not path.exists() or digest not in path.read_text().split()):
                with path.open("a") as file:
                    file.write(f"{digest}\n")
            path.touch()
        except (OSError, ValueError) as error:
            log.warning("image_use_not_noted", image=self.name(tag), error=str(error))

    def _forget_others(self, tags: Collection[str]) -> None:
        """Drop the notes on images that are gone, removed by somebody else or never built."""
        long_ago = time.time() - self._retention.unused_s
        try:
            notes = [path for path in self._folder.iterdir() if path.name not in tags]
            for path in notes:
                if path.stat().st_mtime < long_ago:
                    path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("image_notes_not_read", error=str(error))

    def _forget(self, tag: str) -> None:
        try:
            (self._folder / tag).unlink(missing_ok=True)
        except OSError as error:
            log.warning("image_use_not_noted", image=self.name(tag), error=str(error))
