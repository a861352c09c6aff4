"""docs/protocol.md says what the wire says: every table of it is held to the golden files, every name to the code."""

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from algomesh import errors
from algomesh.foreign import OPTIONS
from algomesh_broker import permissions
from algomesh_broker.grants import GrantBook
from algomesh_broker.messages import LeasePhase
from algomesh_broker.names import VersionId
from algomesh_broker.platform import Manifest
from tests.wire.examples import EXAMPLES, read

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
TABLE = re.compile(r"<!-- wire: (\S+) -->\n\|.*\n\|.*\n((?:\|.*\n)+)")
ROW = re.compile(r"\| (\d*) ?\| [*`](\w+)[*`] \| `([0-9a-f ]+)` \| (.*) \|")
TABLES: dict[str, str] = dict(TABLE.findall(PAGE))
SPOKEN = [
    *("call", "running", "result", "failure", "parked", "demand", "cancel", "handed-over", "instance-lease"),
    *("events", "events/runs/0", "sights", "sights/runs/0", "claim"),
]


def find(path: str) -> tuple[msgspec.Struct, bytes]:
    """An example, or a row inside one, with its bytes."""
    name, *inside = path.split("/")
    example: Any = EXAMPLES[name]
    data = read(name)
    while inside:
        example = getattr(example, inside[0])[int(inside[1])]
        inside = inside[2:]
        data = msgspec.msgpack.encode(example)
        assert data in read(name)
    return example, data


def test_the_page_shows_everything_that_an_instance_hears_and_says() -> None:
    assert sorted(TABLES) == sorted(SPOKEN)


@pytest.mark.parametrize("path", SPOKEN)
def test_a_table_has_the_fields_and_the_bytes_of_the_golden_file(path: str) -> None:
    example, data = find(path)
    lines = TABLES[path].splitlines()
    rows = [match.groups() for line in lines if (match := ROW.fullmatch(line))]

    assert len(rows) == len(lines)
    assert b"".join(bytes.fromhex(shown) for _, _, shown, _ in rows) == data
    tag = example.__struct_config__.tag is not None
    names = ["array", *(["tag"] if tag else []), *(field.name for field in msgspec.structs.fields(example))]
    assert [name for _, name, _, _ in rows] == names
    assert [number for number, _, _, _ in rows] == ["", *map(str, range(len(names) - 1))]
    decoded = [msgspec.msgpack.decode(bytes.fromhex(shown)) for _, _, shown, _ in rows[1:]]
    assert decoded == msgspec.msgpack.decode(data)


def test_the_route_token_on_the_page_is_good_for_the_key_on_the_page() -> None:
    key = re.search(r"route_key  (U[A-Z2-7]{55})\n", PAGE)
    shown = re.search(r"<!-- token -->\n\n((?:    [0-9a-f ]+\n)+)", PAGE)
    assert key is not None
    assert shown is not None

    granted = GrantBook(key[1]).check(bytes.fromhex(shown[1]), now=1.9e9)

    assert (granted.sender, granted.expires) == ("k~x", 2e9)
    assert [str(version) for version in granted.route.versions] == [
        "text/clean/1.0.0", "text/slugify/1.0.0", "text/count/1.0.0",
    ]  # fmt: skip


def test_every_code_on_the_page_is_one_that_callers_know() -> None:
    section = PAGE.partition("## Failures")[2].partition("\n## ")[0]
    codes = re.findall(r"^\| `(\w+)` \| (?!say it when)", section, re.MULTILINE)

    assert len(codes) >= 10
    assert set(codes) <= set(errors.BY_CODE)


def test_what_the_page_lets_an_instance_do_the_broker_allows() -> None:
    allowed = permissions.of_instance(VersionId.parse("text/slugify/1.0.0"), "h7x2k9-42", [])
    section = PAGE.partition("## Connecting")[2].partition("\n## ")[0]
    blocks = [
        block.replace("<instance>", "h7x2k9-42") for block in re.findall(r"(?:^    \S.*\n)+", section, re.MULTILINE)
    ]
    heard = [line.split()[0] for line in blocks[0].splitlines()]
    said = [word for line in blocks[1].splitlines() for word in line.split() if re.match(r"[$A-Za-z]+\.\S", word)]

    queued = {subject.split()[0] for subject in allowed.subscribe}
    assert [subject for subject in heard if subject not in queued] == []
    assert [subject for subject in said if subject not in allowed.publish] == []
    assert len(heard) == 5
    assert len(said) == 12


def test_options_phases_and_fields_on_the_page_are_those_of_the_code() -> None:
    section = PAGE.partition("## Publishing")[2].partition("\n## ")[0]
    for option in OPTIONS:
        assert f"`{option}`" in section
    for phase in get_args(LeasePhase):
        assert f"`{phase}`" in TABLES["instance-lease"]
    assert {"command", "image"} <= {field.name for field in msgspec.structs.fields(Manifest)}


def test_every_link_on_the_page_leads_somewhere() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^## (.*)$", PAGE, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("http"):
            assert (Path(__file__).parents[2] / "docs" / target).exists()
