"""A folder with `algomesh.toml`: what is read of it, and what is said where it is wrong."""

import json
from pathlib import Path

import pytest

from algomesh.archive import pack
from algomesh.errors import BadProject
from algomesh.foreign import is_foreign, read_foreign

TOML = """
name = "me/shout"
version = "1.2.0"
command = ["./shout", "--loud"]
description = "Capitals"
takes = "text"
gives = "text"
{more}

[options]
concurrency = 4
timeout = "30s"
{options}
"""


def write(folder: Path, more: str = "", options: str = "", toml: str = TOML) -> Path:
    (folder / "algomesh.toml").write_text(toml.format(more=more, options=options))
    (folder / "shout").write_text("#!/bin/sh\ncat\n")
    (folder / "shout").chmod(0o755)
    return folder


def add_package(folder: Path, name: str, version: str, **lock: object) -> None:
    """A package of Node that is locked, and installed."""
    place = folder / "node_modules" / name
    place.mkdir(parents=True)
    (place / "package.json").write_text(json.dumps({"name": name, "version": version}))
    (place / "index.js").write_text("")
    (place / "index.d.ts").write_text("")
    (folder / "package.json").write_text(json.dumps({"dependencies": {name: version}}))
    file = folder / "package-lock.json"
    packages = json.loads(file.read_text())["packages"] if file.exists() else {"": {}}
    packages[f"node_modules/{name}"] = {"version": version, **lock}
    file.write_text(json.dumps({"packages": packages}))


def test_a_folder_that_describes_itself_becomes_a_manifest(tmp_path: Path) -> None:
    folder = write(tmp_path)

    project, manifest = read_foreign(folder)

    assert is_foreign(folder)
    assert (manifest.owner, manifest.name, manifest.version) == ("me", "shout", "1.2.0")
    assert manifest.command == ["./shout", "--loud"]
    assert (manifest.entry, manifest.takes, manifest.gives, manifest.description) == ("", "text", "text", "Capitals")
    assert (manifest.options.concurrency, manifest.options.timeout_s) == (4, 30.0)
    assert [str(file) for file in project.files] == ["algomesh.toml", "shout"]


def test_what_is_a_program_stays_one_in_the_archive(tmp_path: Path) -> None:
    import io
    import tarfile

    project, _ = read_foreign(write(tmp_path))

    with tarfile.open(fileobj=io.BytesIO(pack(project).data)) as tar:
        assert {member.name: member.mode for member in tar} == {"algomesh.toml": 0o644, "shout": 0o755}


def test_the_same_folder_gives_the_same_archive(tmp_path: Path) -> None:
    folder = write(tmp_path)
    first = pack(read_foreign(folder)[0]).digest
    (folder / "shout").touch()

    assert pack(read_foreign(folder)[0]).digest == first


def test_a_run_may_have_no_time_limit(tmp_path: Path) -> None:
    _, manifest = read_foreign(write(tmp_path, toml=TOML.replace('"30s"', '"none"')))

    assert manifest.options.timeout_s is None


def test_what_is_excluded_and_hidden_stays_at_home(tmp_path: Path) -> None:
    folder = write(tmp_path, more='exclude = ["*.md"]')
    for name in ("README.md", ".env", "kept.txt"):
        (folder / name).write_text("")

    project, _ = read_foreign(folder)

    assert [str(file) for file in project.files] == ["algomesh.toml", "kept.txt", "shout"]


def test_packages_that_run_travel_along_and_tools_do_not(tmp_path: Path) -> None:
    folder = write(tmp_path)
    add_package(folder, "@scope/left", "1.0.0")
    add_package(folder, "tool", "2.0.0", dev=True)

    project, _ = read_foreign(folder)

    packed = [str(file) for file in project.files if "node_modules" in str(file)]
    assert packed == ["node_modules/@scope/left/index.js", "node_modules/@scope/left/package.json"]


def test_a_package_that_is_not_installed_is_named_with_the_remedy(tmp_path: Path) -> None:
    folder = write(tmp_path)
    add_package(folder, "left", "1.0.0")
    (folder / "node_modules" / "left" / "package.json").unlink()

    with pytest.raises(BadProject, match=r"node_modules/left is not installed.*npm ci --omit=dev"):
        read_foreign(folder)


def test_a_package_of_another_version_than_locked_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    add_package(folder, "left", "1.0.0")
    (folder / "node_modules" / "left" / "package.json").write_text('{"version": "1.0.1"}')

    with pytest.raises(BadProject, match=r"is installed as 1\.0\.1, and package-lock\.json says 1\.0\.0"):
        read_foreign(folder)


def test_dependencies_without_a_lock_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "package.json").write_text('{"dependencies": {"left": "^1"}}')

    with pytest.raises(BadProject, match="npm install"):
        read_foreign(folder)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('name = "me/shout"', "", "`name` is missing; write name = "),
        ('name = "me/shout"', 'name = "shout"', "owner/name"),
        ('name = "me/shout"', "name = 3", "should be a text"),
        ('version = "1.2.0"', "", "`version` is missing"),
        ('version = "1.2.0"', 'version = "one"', "three numbers"),
        ('command = ["./shout", "--loud"]', "", r'command = \["node"'),
        ('command = ["./shout", "--loud"]', 'command = "node slugify.js"', "should be a list of texts"),
        ('["./shout", "--loud"]', '["./whisper"]', "'./whisper', which is not in this folder"),
        ('["./shout", "--loud"]', '["node", "index.js"]', "'index.js', which is not in this folder"),
        ('["./shout", "--loud"]', '["/usr/bin/shout"]', "a program of the PATH"),
        ('["./shout", "--loud"]', '["./algomesh.toml"]', r"run `chmod \+x algomesh.toml`"),
        ('takes = "text"', 'takes = "texts"', "no kind; write text, json"),
        ('description = "Capitals"', 'descriptoin = "Capitals"', "did you mean 'description'"),
        ("concurrency = 4", "concurency = 4", "did you mean 'concurrency'"),
        ("concurrency = 4", "concurrency = 0", "not a whole number from 1"),
        ("concurrency = 4", 'preload = ["torch"]', "no setting 'preload'"),
        ('description = "Capitals"', "timeout = 3", r"belongs below \[options\]"),
        ("[options]", "[options", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_with_its_remedy(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in TOML
    folder = write(tmp_path, toml=TOML.replace(before, after))

    with pytest.raises(BadProject, match=said):
        read_foreign(folder)
