"""What can be asked without calling anything: what this mesh has, whether it is well, how to use it."""

from collections.abc import Callable
from html import escape
from typing import Any

from aiohttp import hdrs, web

from algomesh import errors, http_face
from algomesh_broker.messages import AlgorithmEntry
from algomesh_services.gateway.answers import MethodNotAllowed, NotFound, json_answer
from algomesh_services.gateway.intake import read_key
from algomesh_services.gateway.keys import KeyPool
from algomesh_services.gateway.link import Link

PATHS = {
    "POST /mesh/v1/call/{owner}/{name}[/{version}]": "run an algorithm: the body is its input, the answer its output",
    "POST /mesh/v1/pipe": "run a pipeline: a form with the parts `pipeline` (its JSON form) and `input`",
    "POST /mesh/v1/stream/{owner}/{name}[/{version}]": "run an algorithm, its parts as they come: events or JSON lines",
    "POST /mesh/v1/stream": "the same with a pipeline, in a form",
    "POST /v1/algo/{owner}/{name}[/{version}]": "one algorithm in Algorithmia's shapes: {result, metadata}",
    "GET /v1/algorithms": "what this mesh has",
    "GET /healthz": "whether this process lives",
    "GET /readyz": "whether calls can be taken",
}
_CURL = "curl -H 'Authorization: Bearer YOUR_API_KEY'"
_FORM = (
    """-F 'pipeline={"kind":"chain","stages":[{"kind":"stage","reference":"text/clean"},"""
    """{"kind":"stage","reference":"text/language"}]};type=application/json' """
    "-F 'input=hello   world;type=text/plain'"
)
EXAMPLES = {
    "call": f"{_CURL} -H 'Content-Type: text/plain' --data-binary 'hello   world' $GATEWAY/mesh/v1/call/text/clean",
    "pipe": f"{_CURL} {_FORM} $GATEWAY/mesh/v1/pipe",
    "stream": f"{_CURL} -N -H 'Accept: text/event-stream' {_FORM} $GATEWAY/mesh/v1/stream",
}
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>algomesh</title>
<style>body{{font:16px/1.5 system-ui;max-width:56rem;margin:3rem auto;padding:0 1rem}}
pre{{white-space:pre-wrap}}td{{vertical-align:top;padding-right:1rem}}</style>
<h1>algomesh</h1><p>This is the gateway of a mesh of algorithms. Call one, send a pipeline, read a stream:</p>
{examples}<table>{rows}</table></html>"""


class Pages:
    """The small answers. `is_serving` says whether the gateway still takes calls."""

    def __init__(self, link: Link, keys: KeyPool, is_serving: Callable[[], bool]) -> None:
        self._link, self._keys, self._is_serving = link, keys, is_serving

    async def index(self, request: web.Request) -> web.Response:
        """What this is and how to call it, as a page for browsers and JSON for everybody else."""
        if "text/html" not in request.headers.get(hdrs.ACCEPT, ""):
            return json_answer({"name": "algomesh", "paths": PATHS, "examples": EXAMPLES})
        rows = "".join(f"<tr><td><code>{path}</code><td>{what}" for path, what in PATHS.items())
        examples = "".join(f"<pre>{escape(example)}</pre>" for example in EXAMPLES.values())
        page = _PAGE.format(examples=examples, rows=rows)
        return web.Response(text=page, content_type="text/html")

    async def healthz(self, _: web.Request) -> web.Response:
        """This process lives."""
        return json_answer({"status": "alive"})

    async def readyz(self, _: web.Request) -> web.Response:
        """Calls can be taken: NATS answers, the directory is known, and nobody has asked us to stop."""
        if not self._is_serving():
            return json_answer({"status": "stopping"}, 503)
        if not self._link.is_up:
            return json_answer({"status": "unreachable", "message": "NATS or the directory is away"}, 503)
        return json_answer({"status": "ready", "algorithms": len(self._link.directory)})

    async def algorithms(self, request: web.Request) -> web.Response:
        """What this mesh has, for whoever has a key."""
        async with self._keys.lease(read_key(request), request.remote or "") as transport:
            entries = transport.directory.entries()
        return json_answer({"algorithms": [_described(entry) for entry in entries if entry.versions]})

    async def nothing(self, request: web.Request) -> web.Response:
        """Any other path. Raises NotFound or MethodNotAllowed."""
        path = request.path
        if path == http_face.PIPE_PATH or (path == http_face.STREAM_PATH and request.method != "POST"):
            raise MethodNotAllowed("a pipeline is sent with POST, as a form")
        for prefix, method in ((http_face.CALL_PATH, "POST"), (http_face.STREAM_PATH, "POST"), ("/v1/algo/", "POST")):
            if not path.startswith(prefix):
                continue
            if request.method != method:
                raise MethodNotAllowed(f"calls are made with {method}: the body is the input")
            raise errors.BadReference(f"write {prefix.rstrip('/')}/owner/name or {prefix.rstrip('/')}/owner/name/1.2.0")
        if path in ("/", "/v1/algorithms", "/healthz", "/readyz"):
            raise MethodNotAllowed("this is only read: GET")
        raise NotFound(f"there is nothing here; there is: {', '.join(PATHS)}")


def _described(entry: AlgorithmEntry) -> dict[str, Any]:
    versions = [
        {
            "version": version.version,
            "description": version.description,
            "timeout_s": version.timeout_s,
            "published_at": version.published_at,
        }
        for version in reversed(entry.versions)
    ]
    return {
        "algorithm": f"{entry.owner}/{entry.name}",
        "description": versions[0]["description"],
        "versions": versions,
    }
