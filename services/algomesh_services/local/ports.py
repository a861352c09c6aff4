"""Ports on this machine: whether one is free, and one that is.

Asked before any program starts, so that a taken port is one sentence and no program's stack trace.
"""

import errno
import socket

from algomesh_services.local.errors import PortInUse


def check_port(host: str, port: int, *, option: str = "--port") -> int:
    """Return `port`, or a free one where it is 0, after having listened on it for a moment.

    A free port stays free only as long as nobody takes it; the program that wants it should follow soon.

    Raises:
        PortInUse: another program listens there; the sentence names `option` as the way to choose another.
        OSError: `host` is no address of this machine, or the port needs rights we lack.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # As the programs do: without it, connections that a previous program left closing would count as a user.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(host, port, option) from error
            raise
        found: int = listener.getsockname()[1]
        return found
