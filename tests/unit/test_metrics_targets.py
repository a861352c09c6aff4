"""Where `algomesh up` has its programs show their metrics."""

import json
import socket
from pathlib import Path

from algomesh_services.local.metrics_targets import FILE, choose_metrics

PROGRAMS = ("registry", "gateway")


def test_each_program_gets_a_port_of_its_own_on_loopback_and_prometheus_is_told(tmp_path: Path) -> None:
    chosen = choose_metrics(tmp_path, PROGRAMS, {})

    assert list(chosen) == list(PROGRAMS)
    assert len({*chosen.values()}) == 2
    assert all(address.startswith("127.0.0.1:") for address in chosen.values())
    assert json.loads((tmp_path / FILE).read_text()) == [
        {"targets": [chosen[program]], "labels": {"program": program}} for program in PROGRAMS
    ]


def test_the_ports_stay_where_they_are_free(tmp_path: Path) -> None:
    before = choose_metrics(tmp_path, PROGRAMS, {})

    assert choose_metrics(tmp_path, PROGRAMS, {}) == before


def test_a_taken_port_is_given_up(tmp_path: Path) -> None:
    before = choose_metrics(tmp_path, PROGRAMS, {})
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", int(before["gateway"].rpartition(":")[2])))
        somebody.listen()

        after = choose_metrics(tmp_path, PROGRAMS, {})

    assert after["registry"] == before["registry"]
    assert after["gateway"] != before["gateway"]


def test_a_damaged_file_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('[{"targets": 1}]')

    assert set(choose_metrics(tmp_path, PROGRAMS, {})) == set(PROGRAMS)


def test_they_can_be_turned_off(tmp_path: Path) -> None:
    choose_metrics(tmp_path, PROGRAMS, {})

    assert choose_metrics(tmp_path, PROGRAMS, {"ALGOMESH_METRICS": "off"}) == {}
    assert not (tmp_path / FILE).exists()
