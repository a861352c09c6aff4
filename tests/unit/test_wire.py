"""The wire format: bytes that were agreed on stay what they are, and still say the same."""

import inspect
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from algomesh_broker import codec, messages, platform
from algomesh_broker.errors import BadMessage
from tests.wire.examples import EXAMPLES, FOLDER, read

NAMES = sorted(EXAMPLES)
ARRAYS = [name for name in NAMES if EXAMPLES[name].__struct_config__.array_like]
DECODERS: dict[str, Callable[[bytes], Any]] = {
    "call": codec.decode_call,
    "sights": codec.decode_sights,
    "machine": codec.decode_machine,
    "instance-lease": codec.decode_lease,
    "holds": codec.decode_holds,
    **dict.fromkeys(("running", "parked", "handed-over", "part", "result", "failure"), codec.decode_reply),
    **dict.fromkeys(("cancel", "credit", "forget"), codec.decode_control),
    "demand": codec.decode_demand,
    **dict.fromkeys(("starting", "ready", "death", "unable"), codec.decode_fleet),
    "host": codec.decode_host_beat,
    "events": codec.decode_events,
    "ask": codec.decode_ask,
    "answer": codec.decode_answer,
    "algorithm": codec.decode_entry,
}


def decode(name: str, data: bytes) -> object:
    decoder = DECODERS.get(name)
    return decoder(data) if decoder else msgspec.msgpack.decode(data, type=type(EXAMPLES[name]))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_the_bytes_that_were_agreed_on(name: str) -> None:
    assert codec.encode(EXAMPLES[name]) == read(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_that_were_agreed_on_say_what_they_said(name: str) -> None:
    assert decode(name, read(name)) == EXAMPLES[name]


@pytest.mark.parametrize("name", ARRAYS)
def test_fields_that_a_newer_sender_appended_are_ignored(name: str) -> None:
    fields: list[object] = msgspec.msgpack.decode(read(name))

    assert decode(name, msgspec.msgpack.encode([*fields, "new", {"field": 1}])) == EXAMPLES[name]


@pytest.mark.parametrize("name", ARRAYS)
def test_fields_that_an_older_sender_did_not_know_have_defaults(name: str) -> None:
    fields: list[object] = msgspec.msgpack.decode(read(name))
    struct = EXAMPLES[name]
    must_be_there = [field.required for field in msgspec.structs.fields(struct)]
    tagged = int(struct.__struct_config__.tag is not None)
    shortest = tagged + max((index + 1 for index, is_required in enumerate(must_be_there) if is_required), default=0)

    decode(name, msgspec.msgpack.encode(fields[:shortest]))
    if shortest > tagged:
        with pytest.raises((BadMessage, msgspec.ValidationError)):
            decode(name, msgspec.msgpack.encode(fields[: shortest - 1]))


@pytest.mark.parametrize("name", sorted(DECODERS))
@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"{}", b"\x90", b"\x80", b"\x91\xa3zzz", b"\x91" * 5_000, b"\x92\xa4call\xa2\xff\xfe",
     b'{"stream":"parked","seq":1}'],
)  # fmt: skip
def test_foreign_bytes_are_a_bad_message(name: str, data: bytes) -> None:
    with pytest.raises(BadMessage):
        DECODERS[name](data)


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_no_message_is_taken_for_another(name: str) -> None:
    others = [other for other in DECODERS if DECODERS[other] is not DECODERS[name]]

    for other in others:
        with pytest.raises(BadMessage):
            DECODERS[name](read(other))


def test_everything_that_crosses_a_process_has_an_example() -> None:
    shown = {type(example).__name__ for example in EXAMPLES.values()}
    inside = {"RunEvent", "VersionEntry", "Options", "Manifest", "KeyRow", "InstanceRow", "LogLine", "RunRow", "Sight"}
    inside |= {"Hold", "MachineInstance", "Edge", "StartRow", "SparedRow"}

    for module in (messages, platform):
        structs = {
            member.__name__
            for _, member in inspect.getmembers(module, inspect.isclass)
            if issubclass(member, msgspec.Struct) and member.__module__ == module.__name__
        }
        assert structs - shown - inside == set()


def test_every_file_has_an_example() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.hex")) == NAMES


def test_a_result_is_read_without_copying_its_payload() -> None:
    data = read("result")

    result = codec.decode_reply(data)

    assert isinstance(result, messages.Result)
    assert result.payload.obj is data
