"""Pipelines that came over HTTP, read from their JSON form; the ones of late are remembered."""

import asyncio
from collections import OrderedDict
from typing import Final

from algomesh import errors
from algomesh.pipeline import Pipeline

LARGEST_BYTES: Final = 2**20
_MOST_KNOWN: Final = 256
_KNOWN_BYTES: Final = 65_536
_QUICK_BYTES: Final = 8_192


class PipelineReader:
    """Reads the JSON form of pipelines; large ones in a thread, since they take some milliseconds."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Pipeline] = OrderedDict()

    async def read(self, data: bytes) -> Pipeline:
        """The pipeline. Raises BadInput and BadReference with the path of what is wrong, PayloadTooLarge."""
        if len(data) > LARGEST_BYTES:
            raise errors.PayloadTooLarge(
                f"the pipeline has {len(data):,} bytes, at most {LARGEST_BYTES:,} are taken; publish it under a name"
            )
        known = self._known.get(data)
        if known is not None:
            self._known.move_to_end(data)
            return known
        read = Pipeline.from_json
        found = read(data) if len(data) <= _QUICK_BYTES else await asyncio.to_thread(read, data)
        if len(data) <= _KNOWN_BYTES:
            self._known[data] = found
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return found
