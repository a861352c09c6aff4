"""Secrets given on the command line of `up`, taken out of the process list.

Everybody on a machine can read everybody's command line, so `algomesh up --key K` runs itself again at once
without them; the secrets wait in a file in memory that only the new program inherits.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

SECRETS_FD = "--secrets-fd"
_OPTIONS = ("--key", "--postgres")


class Given(NamedTuple):
    """A command line in two parts: what anybody may see, and the secrets by their option."""

    arguments: list[str]
    secrets: dict[str, str]


def hide_secrets(argv: Sequence[str]) -> None:
    """Execute this program anew if `argv` (sys.argv) carries a secret; else return."""
    given = separate(argv[1:])
    if not given.secrets:
        return
    fd = os.memfd_create("algomesh-secrets", 0)  # inherited, and gone with its last reader
    os.write(fd, json.dumps(given.secrets).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    python = sys.orig_argv[: len(sys.orig_argv) - len(argv) + 1]
    os.execv(sys.executable, [*python, *given.arguments, SECRETS_FD, str(fd)])  # noqa: S606  # ourselves


def separate(arguments: Sequence[str]) -> Given:
    """Take the secrets out of the arguments of `up`; what is not `up` is left as it is."""
    words = list(arguments)
    command = next((word for word in words if not word.startswith("-")), "")
    if command != "up":
        return Given(words, {})
    kept: list[str] = []
    secrets: dict[str, str] = {}
    while words:
        word = words.pop(0)
        option, equals, value = word.partition("=")
        if option not in _OPTIONS or (not equals and not words):
            kept.append(word)
            continue
        if not equals:
            value = words.pop(0)
        if option == "--postgres" and not _has_password(value):
            kept += [option, value]
        else:
            secrets[option] = value
    return Given(kept, secrets)


def read_secrets(fd: int | None) -> dict[str, str]:
    """What `hide_secrets` left behind, by option. Reads it once."""
    if fd is None:
        return {}
    try:
        with os.fdopen(fd, "rb") as file:
            found = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return {str(option): str(value) for option, value in found.items()} if isinstance(found, dict) else {}


def _has_password(dsn: str) -> bool:
    # Decided before anything is imported, and wrong only on the careful side.
    from urllib.parse import parse_qsl, urlsplit

    try:
        parts = urlsplit(dsn)
        return parts.password is not None or "password" in dict(parse_qsl(parts.query))
    except ValueError:
        return True
