"""One call as it is given to a lane: what, with what, on whose behalf, until when."""

from collections.abc import Callable

from msgspec import Struct

from algomesh.chain import ANYWHERE, Chain
from algomesh.content import Content
from algomesh_broker import messages
from algomesh_broker.names import VersionId


class Order(Struct, frozen=True):
    """What to call, with what, on whose behalf; `deadline` is the loop's time.

    A chain of a pipeline has its `grant`, its first step `at`, and `chain`, what is known of the rest; `is_hop`
    when it is sent by an instance that hands over, and needs no right to call. Made by position where every call makes
    one, which takes a fifth of the time.
    """

    version: VersionId
    content: Content
    deadline: float
    run: str
    root: str
    parent: str
    root_caller: str
    depth: int = 0
    budget: int = 10_000
    traceparent: str = ""
    chain: Chain | None = None
    grant: bytes = b""
    at: int = ANYWHERE
    is_hop: bool = False
    is_near: bool = True
    attempts: int = 3
    credit: int = 0
    on_part: Callable[[messages.Part], None] | None = None
    on_progress: Callable[[messages.Running], None] | None = None
