"""What can go wrong between this mesh and NATS.

    BrokerError
    ├── BadName            a reference, version or caller that cannot be part of a subject
    ├── BadMessage         bytes that are not the message they should be
    ├── PayloadTooLarge    a message over the server's limit
    ├── Unreachable        no server, or not in time
    ├── Unauthenticated    the server does not know this key
    ├── BadGrant           a route token that does not allow what was tried
    ├── ClaimGone          a payload that travels by claim is not there any more
    ├── Forbidden          the server refused one publish or subscription
    └── StreamError        JetStream said no; carries its `err_code`

The SDK and the services translate these once, at their own border.
"""


class BrokerError(Exception):
    """The root of everything this package raises. `code` is the word that goes on the wire."""

    code = "broker_error"


class BadName(BrokerError, ValueError):
    """A reference, version, pattern or caller is not of its form; the sentence shows the form."""

    code = "bad_reference"


class BadMessage(BrokerError, ValueError):
    """Bytes could not be decoded as the message that belongs on this subject."""

    code = "bad_message"


class PayloadTooLarge(BrokerError, ValueError):
    """A message is larger than the server takes; `size_bytes` and `limit_bytes` say by how much."""

    code = "payload_too_large"

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"the message has {size_bytes / 2**20:.1f} MiB, the mesh takes {limit_bytes / 2**20:.1f} MiB at most"
        )
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class Unreachable(BrokerError, ConnectionError):
    """No NATS server answered at this address in time."""

    code = "unreachable"


class Unauthenticated(BrokerError):
    """The server refused the key or the token of this connection."""

    code = "unauthenticated"


class BadGrant(BrokerError):
    """A route token is forged, over, or another's; the sentence says which."""

    code = "permission_denied"


class ClaimGone(BrokerError):
    """What a claim stands for has expired, was deleted, never was, or cannot be read from here."""

    code = "claim_gone"


class Forbidden(BrokerError):
    """The server refused a publish or a subscription; `subject` is the one it named."""

    code = "permission_denied"

    def __init__(self, operation: str, subject: str) -> None:
        super().__init__(f"this identity may not {operation} {subject!r}")
        self.operation = operation
        self.subject = subject


class StreamError(BrokerError):
    """JetStream refused a request; `err_code` is its number, e.g. 10077 when a subject is full."""

    code = "stream_error"

    def __init__(self, description: str, err_code: int = 0) -> None:
        super().__init__(description)
        self.err_code = err_code
