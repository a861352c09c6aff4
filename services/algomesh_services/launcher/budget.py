"""What a machine has, and whether one more instance fits: GPU shares per device, memory, a number of instances.

Pure: nothing is read or remembered here. A share below 1 lies on one device (0.6 and 0.6 do not fit on one); from 1
on it takes whole devices, so `gpu=1.5` takes two. Where there is no GPU, a wish for one costs nothing and is noted.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from algomesh_broker.platform import Options

# What an instance that declares nothing is taken for; a fork of a zygote has less, a model says `memory=`.
ASSUMED_MEMORY_BYTES = 128 * 2**20
_TOLERANCE = 1e-6  # ten shares of 0.1 fill a device


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What instances may use together; `gpus` are the devices as CUDA_VISIBLE_DEVICES names them."""

    max_instances: int
    memory_bytes: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one instance has of the machine: `share` of each of `gpus`; `note` says what it asked for in vain."""

    gpus: tuple[str, ...] = ()
    share: float = 0.0
    memory_bytes: int = 0
    note: str = ""


def find_place(options: Options, capacity: Capacity, taken: Iterable[Place]) -> Place | None:
    """The place an instance with these options gets beside those that are taken, or None when it does not fit."""
    places = tuple(taken)
    memory_bytes = ASSUMED_MEMORY_BYTES if options.memory_bytes is None else options.memory_bytes
    if len(places) >= capacity.max_instances:
        return None
    if sum(place.memory_bytes for place in places) + memory_bytes > capacity.memory_bytes:
        return None
    if options.gpu <= 0:
        return Place(memory_bytes=memory_bytes)
    if not capacity.gpus:
        note = f"gpu {options.gpu:g} asked for, none here: runs on the CPU"
        return Place(memory_bytes=memory_bytes, note=note)
    share = min(options.gpu, 1.0)
    free = _free_shares(capacity, places)
    # The fullest device that has room: what is whole stays whole for those who need all of it.
    roomy = sorted((room, device) for device, room in free.items() if room >= share - _TOLERANCE)
    count = max(1, math.ceil(options.gpu - _TOLERANCE))
    if len(roomy) < count:
        return None
    return Place(gpus=tuple(device for _, device in roomy[:count]), share=share, memory_bytes=memory_bytes)


def explain_misfit(options: Options, capacity: Capacity) -> str:
    """Why an instance with these options does not fit even on the empty machine; empty when it does."""
    if find_place(options, capacity, ()) is not None:
        return ""
    if capacity.max_instances < 1:
        return "this launcher may not run any instance"
    if options.gpu and capacity.gpus and math.ceil(options.gpu - _TOLERANCE) > len(capacity.gpus):
        return f"it asks for {options.gpu:g} GPUs, and this machine has {len(capacity.gpus)}"
    wanted = (options.memory_bytes or ASSUMED_MEMORY_BYTES) / 2**30
    return f"it asks for {wanted:.3g} GiB of memory, and instances may use {capacity.memory_bytes / 2**30:.3g} GiB here"


def _free_shares(capacity: Capacity, places: Iterable[Place]) -> dict[str, float]:
    free = dict.fromkeys(capacity.gpus, 1.0)
    for place in places:
        for device in place.gpus:
            if device in free:
                free[device] -= place.share
    return free
