"""Lists the tests that were skipped, by reason, and fails on a reason nobody has agreed to.

Reads pytest's junit files. A skip, or an expected failure, passes when a pattern of the checked-in list is
found in its reason. Fails too when no test ran at all, or when a report is missing.

Usage: skipped.py LIST REPORTS_FOLDER
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


class Allowed(NamedTuple):
    """One line of the list: what a reason must contain, and why that skip is fine."""

    pattern: re.Pattern[str]
    why: str


class Skip(NamedTuple):
    """A test that did not run, or that was expected to fail and did."""

    test: str
    reason: str


def main(allowed_path: Path, reports: Path) -> int:
    """Print the skips; 0 when every one is on the list and some test ran."""
    allowed = list(read_allowed(allowed_path))
    files = sorted(reports.glob("*.xml"))
    cases = [case for file in files for case in cases_of(file)]
    skips = [skip for case in cases for skip in skips_of(case)]

    by_reason: dict[str, list[str]] = {}
    for skip in skips:
        by_reason.setdefault(skip.reason, []).append(skip.test)
    unlisted = 0
    for reason, tests in sorted(by_reason.items()):
        why = next((entry.why for entry in allowed if entry.pattern.search(reason)), None)
        unlisted += why is None
        say(f"{len(tests)} skipped: {reason}")
        say(f"    {'listed: ' + why if why else 'NOT on the list ' + str(allowed_path)}")
        for test in tests:
            say(f"    {test}")

    ran = len(cases) - len(skips)
    say(f"{len(files)} reports, {ran} tests ran, {len(skips)} skipped, {unlisted} reasons not on the list")
    return int(unlisted > 0 or ran == 0)


def read_allowed(path: Path) -> Iterator[Allowed]:
    """The entries of the list: `PATTERN -- WHY`, a line each; `#` starts a comment line.

    Raises SystemExit on a line that says no why.
    """
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        pattern, separator, why = line.partition(" -- ")
        if not separator or not why.strip():
            sys.exit(f"{path}:{number}: write PATTERN -- WHY")
        yield Allowed(re.compile(pattern.strip()), why.strip())


def cases_of(report: Path) -> Iterator[ElementTree.Element]:
    """The test cases of one junit file."""
    yield from ElementTree.parse(report).iter("testcase")  # noqa: S314 (pytest wrote it, just now)


def skips_of(case: ElementTree.Element) -> Iterator[Skip]:
    """The skip of one test case, if it has one; a module skipped as a whole counts once."""
    name = "::".join(part for part in (case.get("classname"), case.get("name")) if part)
    for skipped in case.iter("skipped"):
        reason = " ".join((skipped.get("message") or "").split())
        if reason == "collection skipped":
            reason = (skipped.text or "").rpartition("Skipped: ")[2].strip("\"')")
        yield Skip(name, reason or "(no reason given)")


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
