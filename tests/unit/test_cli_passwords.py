"""Passwords in a DSN go into a passfile."""

import stat
from pathlib import Path

import pytest

from algomesh_services.local.foreign import hide_password


@pytest.mark.parametrize(
    ("dsn", "safe", "kept"),
    [
        ("postgresql://u:p%3Aw@h:5/d", "postgresql://u@h:5/d?passfile={0}", "*:*:*:*:p\\:w\n"),
        ("postgres://h/d?user=u&password=a+b", "postgres://h/d?user=u&passfile={0}", "*:*:*:*:a b\n"),
        ("postgresql://u:p@/d?host=%2Frun%2Fpg", "postgresql://u@/d?host=%2Frun%2Fpg&passfile={0}", "*:*:*:*:p\n"),
    ],
)
def test_the_password_moves_to_a_file_of_ours(tmp_path: Path, dsn: str, safe: str, kept: str) -> None:
    file = tmp_path / "passfile"

    assert hide_password(dsn, file) == safe.format(str(file).replace("/", "%2F"))
    assert file.read_text() == kept
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_dsn_without_one_stays_as_it_is(tmp_path: Path) -> None:
    dsn = "postgresql://u@h/d?passfile=/there"

    assert hide_password(dsn, tmp_path / "passfile") == dsn
    assert not (tmp_path / "passfile").exists()
    with pytest.raises(ValueError, match="not a DSN"):
        hide_password("host=db user=u", tmp_path / "passfile")
