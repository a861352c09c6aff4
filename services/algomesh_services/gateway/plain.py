"""Results for clients that know nothing of the mesh: what is in a bundle, written as JSON."""

import asyncio
import base64
from collections.abc import Mapping
from typing import Any, Final

from algomesh import content, errors
from algomesh.content import Content

_QUICK_BYTES: Final = 65_536
_HOW: Final = "ask for it as it is with `Accept: application/vnd.algomesh.bundle`"


async def as_plain(result: Content) -> Content:
    """A bundle as JSON: arrays as nested lists, bytes in base64; anything else as it is. Raises BadOutput."""
    if result.content_type != "bundle":
        return result
    if result.size_bytes <= _QUICK_BYTES:
        return _as_json(result)
    return await asyncio.to_thread(_as_json, result)


def _as_json(bundle: Content) -> Content:
    try:
        return Content("json", "", content.encode_json(_value(bundle)))
    except (errors.BadInput, errors.BadOutput) as error:
        raise errors.BadOutput(f"the result cannot be written as JSON: {error.message}; {_HOW}") from error
    except RecursionError as error:
        raise errors.BadOutput(f"the result is nested too deeply for JSON; {_HOW}") from error


def _value(part: Content) -> Any:
    if part.content_type == "bundle":
        names, parts = content.read_bundle(part.payload)
        values = [_value(inner) for inner in parts]
        return dict(zip(names, values, strict=True)) if names else values
    if part.content_type == "binary":
        return base64.b64encode(part.payload).decode()
    if "bfloat16" in part.detail:
        raise errors.BadOutput("it has an array of bfloat16")
    value = content.decode(*part)
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, Mapping) else value
