"""What is said of a command or an address before anything runs."""

import pytest

from algomesh import errors
from algomesh.adapter.posting import check_url
from algomesh.adapter.program import said_of_end, shown, split_command


def test_a_command_is_read_as_a_shell_reads_it() -> None:
    assert split_command("tr 'a b' \"c d\"") == ["tr", "a b", "c d"]


@pytest.mark.parametrize("command", ["", "  ", "echo 'open", []])
def test_what_is_no_command_is_refused(command: str) -> None:
    with pytest.raises(errors.BadInput):
        split_command(command)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://x/", "http://", "http:///p", "http://a:99999/", "http://[::1"]
)
def test_what_cannot_be_posted_to_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(errors.BadInput, match=r"http://127\.0\.0\.1:8000/predict"):
        check_url(url)


@pytest.mark.parametrize(
    ("code", "said"), [(None, "closed its output"), (3, "ended with exit code 3"), (-9, "was ended by SIGKILL")]
)
def test_an_end_is_a_sentence(code: int | None, said: str) -> None:
    assert said_of_end(code) == said


def test_what_a_program_wrote_is_shown_in_part() -> None:
    assert shown(b"hello\n") == "'hello'"
    assert shown(b"x" * 500) == f"'{'x' * 200}…'"
