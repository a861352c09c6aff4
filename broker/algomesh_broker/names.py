"""Names of algorithms, versions and callers: parsing, folding, checking.

Every name that reaches a subject has passed through here, since nats-py and the server
let `a..b`, `>` and NUL through. Capitals are folded at every edge; what is not of the
form afterwards is refused with the form in the sentence.
"""

import re
from difflib import get_close_matches
from functools import lru_cache
from typing import NamedTuple, Self

from algomesh_broker.errors import BadName

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}", re.ASCII)
_VERSION = re.compile(r"(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})", re.ASCII)
_EXACT = re.compile(rf"({_NAME.pattern})/({_NAME.pattern})/{_VERSION.pattern}", re.ASCII)
_PARTIAL = re.compile(r"(0|[1-9]\d{0,5})(\.(0|[1-9]\d{0,5})){0,2}", re.ASCII)
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_KEY_ID = re.compile(r"k~[a-z0-9]{1,32}", re.ASCII)
_FORM = "owner/name or owner/name/1.2.0, each name like 'text-clean' (a-z, 0-9, _ and -, at most 63)"

LATEST = "latest"
RESERVED_OWNERS = frozenset({"platform", "none", "host"})


class Version(NamedTuple):
    """A semantic version `major.minor.patch`, ordered as numbers."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `1.2.0`. Raises BadName for anything else."""
        if not isinstance(text, str) or not _VERSION.fullmatch(text):
            raise BadName(f"{text!r} is not a version; write three numbers, like 1.2.0")
        return cls(*map(int, text.split(".")))

    @property
    def token(self) -> str:
        """The version as one token of a subject: `1-2-0`."""
        return f"{self.major}-{self.minor}-{self.patch}"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


class Reference(NamedTuple):
    """What a caller writes: `owner/name`, perhaps with a version, a partial one (`1.2`), an alias or `latest`."""

    owner: str
    name: str
    version: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference; `algo://` and a leading slash are accepted, capitals folded.

        Raises BadName when the text is not of the form `owner/name[/version]`.
        """
        if not isinstance(text, str):
            raise BadName(f"a reference is text, {_FORM}; got {type(text).__name__}")
        folded = text.strip().removeprefix("algo://").removeprefix("/").lower()
        parts = folded.split("/")
        if len(parts) not in (2, 3):
            raise BadName(f"{text!r} is not a reference; write {_FORM}")
        owner, name = check_name(parts[0], text), check_name(parts[1], text)
        version = parts[2] if len(parts) == 3 else ""
        if len(parts) == 3 and not (_PARTIAL.fullmatch(version) or _ALIAS.fullmatch(version)):
            raise BadName(f"{text!r} ends in {version!r}, which is neither a version nor an alias; write {_FORM}")
        return cls(owner, name, "" if version == LATEST else version)

    @property
    def algorithm(self) -> str:
        """`owner/name`, without the version."""
        return f"{self.owner}/{self.name}"

    @property
    def is_alias(self) -> bool:
        """Whether it ends in a name that the algorithm's owner gave to one or several versions."""
        return self.version[:1].isalpha()

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}/{self.version}" if self.version else f"{self.owner}/{self.name}"


class VersionId(NamedTuple):
    """One exact version of one algorithm, as subjects and the fleet name it."""

    owner: str
    name: str
    version: Version

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `owner/name/1.2.0`. Raises BadName."""
        exact = _EXACT.fullmatch(text) if isinstance(text, str) else None
        if exact is not None:  # as routes have thousands of them
            owner, name, *numbers = exact.groups()
            return cls(owner, name, Version(*map(int, numbers)))
        reference = Reference.parse(text)
        return cls(reference.owner, reference.name, Version.parse(reference.version))

    @classmethod
    def of_tokens(cls, owner: str, name: str, version: str) -> Self:
        """Read the three tokens of a subject, the version written `1-2-0`. Raises BadName."""
        return cls(check_name(owner), check_name(name), Version.parse(version.replace("-", ".")))

    @property
    def algorithm(self) -> str:
        """`owner/name`."""
        return f"{self.owner}/{self.name}"

    @property
    def tokens(self) -> str:
        """`owner.name.1-2-0`, for subjects."""
        return f"{self.owner}.{self.name}.{self.version.token}"

    @property
    def caller(self) -> str:
        """Who an instance of this version is when it calls: `owner~name`."""
        return f"{self.owner}~{self.name}"

    @property
    def consumer(self) -> str:
        """The name of this version's consumer on the stream of parked calls."""
        return f"{self.owner}~{self.name}~{self.version.token}"

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}/{self.version}"


def check_name(text: str, within: str = "") -> str:
    """Return `text` if it is an owner or algorithm name. Raises BadName."""
    if not _NAME.fullmatch(text):
        where = f" in {within!r}" if within else ""
        raise BadName(f"{text!r}{where} is not a name; write {_FORM}")
    return text


def check_alias(text: str) -> str:
    """Return `text` if it may be an alias, such as `stable`. Raises BadName."""
    if not _ALIAS.fullmatch(text):
        raise BadName(f"{text!r} is not an alias; write a name like 'stable' (a-z, 0-9 and -, at most 32)")
    if text == LATEST:
        raise BadName(f"{LATEST!r} is always the newest version; take another name for an alias")
    return text


@lru_cache(4096)  # sessions and numbers come again and again
def is_token(text: str) -> bool:
    """Whether `text`, a session or a call's number that somebody else chose, may stand in a subject."""
    return _TOKEN.fullmatch(text) is not None


def check_caller(text: str) -> str:
    """Return `text` if it is a caller: `k~<id>` or `owner~name`. Raises BadName."""
    if _KEY_ID.fullmatch(text):
        return text
    owner, separator, name = text.partition("~")
    if not separator or not _NAME.fullmatch(owner) or not _NAME.fullmatch(name):
        raise BadName(f"{text!r} is not a caller; it is 'k~<id>' or 'owner~name'")
    return text


def nearest(text: str, known: list[str], count: int = 3) -> list[str]:
    """The `count` names of `known` that look most like `text`, best first; perhaps none."""
    exact_tail = [name for name in known if name.rpartition("/")[2] == text.rpartition("/")[2]]
    close = get_close_matches(text, known, n=count, cutoff=0.6)
    return list(dict.fromkeys(exact_tail[:count] + close))[:count]
