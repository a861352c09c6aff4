"""What can be published: projects, their archives and their descriptions."""

import os
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from algomesh.archive import pack
from algomesh.describe import describe
from algomesh.errors import BadProject
from algomesh.project import Project, read_project

pytestmark = pytest.mark.integration

ALGORITHM = '''
from algomesh import algorithm

@algorithm("me/shout", version="1.0.0")
def shout(text: str) -> str:
    """Capitals."""
    return text.upper()
'''


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_toml", ".toml").replace("_py", ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def test_a_folder_is_searched_for_algorithms(tmp_path: Path) -> None:
    write(tmp_path, shout_py=ALGORITHM, other_py="x = 1", pyproject_toml='[project]\ndependencies = ["msgspec"]')

    project = read_project(tmp_path)

    assert project.modules == ["shout"]
    assert project.requirements == ["msgspec"]
    assert [str(file) for file in project.files] == ["other.py", "pyproject.toml", "shout.py"]


def test_one_file_carries_its_dependencies(tmp_path: Path) -> None:
    script = '# /// script\n# dependencies = ["msgspec>=0.20", "algomesh"]\n# ///\n'
    write(tmp_path, shout_py=script + ALGORITHM)

    project = read_project(tmp_path / "shout.py")

    assert project.requirements == ["msgspec>=0.20"]
    assert [manifest.name for manifest in describe(project)] == ["shout"]


def test_a_description_says_what_the_code_says(tmp_path: Path) -> None:
    [manifest] = describe(read_project(write(tmp_path, shout_py=ALGORITHM)))

    assert (manifest.owner, manifest.name, manifest.version, manifest.entry) == ("me", "shout", "1.0.0", "shout:shout")
    assert manifest.description == "Capitals."


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"readme_md": "hello"}, "no algorithm in it"),
        ({"shout_py": ALGORITHM, "pyproject_toml": "[tool.algomesh]\nmodule = ['x']"}, "did you mean 'modules'"),
        (
            {"shout_py": ALGORITHM, "pyproject_toml": "[tool.algomesh]\nmodules = ['nothing']"},
            "nothing.py is not there",
        ),
        ({"shout_py": ALGORITHM, "pyproject_toml": "[tool.algomesh]\nmodules = 'shout'"}, "list of texts"),
        ({"shout_py": ALGORITHM, "pyproject_toml": "[project\n"}, "cannot be read"),
        ({"shout_py": ALGORITHM, "pyproject_toml": "[project]\ndependencies = 'numpy'"}, "list of texts"),
        ({"shout_py": "def broken(:\n"}, "is not Python"),
    ],
    ids=["empty", "typo", "no-module", "modules-text", "no-toml", "dependencies-text", "syntax"],
)
def test_a_project_that_is_none_is_refused_with_what_is_wrong(tmp_path: Path, files: dict[str, str], said: str) -> None:
    write(tmp_path, **files)

    with pytest.raises(BadProject, match=said):
        read_project(tmp_path)


def test_what_is_no_project_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")

    with pytest.raises(BadProject, match="neither a folder"):
        read_project(tmp_path / "missing")
    with pytest.raises(BadProject, match=r"not a \.py file"):
        read_project(tmp_path / "notes.txt")


def test_a_link_out_of_the_project_is_refused(tmp_path: Path) -> None:
    write(tmp_path, project__shout_py=ALGORITHM)
    (tmp_path / "project" / "secrets").symlink_to("/etc/passwd")

    with pytest.raises(BadProject, match="leads out"):
        read_project(tmp_path / "project")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('no luck')\n", "no luck"),
        ("import no_such_package\n", "no_such_package"),
        ("import os; os._exit(3)\n", "ended its process"),
        ("import sys; sys.exit(3)\n", "cannot be imported"),
    ],
)
def test_code_that_cannot_be_imported_is_told_as_such(tmp_path: Path, code: str, said: str) -> None:
    project = read_project(write(tmp_path, shout_py=ALGORITHM + code))

    with pytest.raises(BadProject, match=said):
        describe(project)


def test_an_option_out_of_bounds_is_told_with_its_line(tmp_path: Path) -> None:
    project = read_project(write(tmp_path, shout_py=ALGORITHM.replace('"1.0.0"', '"1.0.0", gpu=1.5')))

    with pytest.raises(BadProject, match="share of one GPU"):
        describe(project)


def test_a_project_of_a_thousand_algorithms_is_described(tmp_path: Path) -> None:
    many = "".join(
        f"@algorithm('me/n{n}', version='1.0.0')\ndef n{n}(value: dict[str, list[int]]) -> int:\n    return 1\n"
        for n in range(1000)
    )

    assert len(describe(read_project(write(tmp_path, many_py=ALGORITHM + many)))) == 1001


def test_the_same_version_twice_is_refused(tmp_path: Path) -> None:
    again = ALGORITHM.replace("def shout", "def again")
    project = read_project(write(tmp_path, shout_py=ALGORITHM + again))

    with pytest.raises(BadProject, match="defined twice"):
        describe(project)


def test_an_import_that_does_not_end_is_ended(tmp_path: Path) -> None:
    project = read_project(write(tmp_path, shout_py=ALGORITHM + "while True: pass\n"))

    with pytest.raises(BadProject, match="took over"):
        describe(project, timeout_s=2.0)


def test_the_same_files_give_the_same_archive(tmp_path: Path) -> None:
    first = write(tmp_path / "a", shout_py=ALGORITHM, data__words_md="x")
    second = write(tmp_path / "b", data__words_md="x", shout_py=ALGORITHM)
    os.utime(second / "shout.py", (1, 1))
    (second / "shout.py").chmod(0o600)

    assert pack(read_project(first)) == pack(read_project(second))


def test_an_archive_holds_the_files_and_nothing_of_the_machine(tmp_path: Path) -> None:
    write(tmp_path, shout_py=ALGORITHM, __pycache____x_py="", venv__y_py="", _git__config_md="")
    (tmp_path / ".env").write_text("SECRET=1")

    with tarfile.open(fileobj=BytesIO(pack(read_project(tmp_path)).data)) as tar:
        members = tar.getmembers()

    assert "shout.py" in [member.name for member in members]
    assert not any(member.name.startswith((".env", "venv", "__pycache__")) for member in members)
    assert {(member.uid, member.gid, member.mtime, member.mode) for member in members} == {(0, 0, 0, 0o644)}


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    project = Project(tmp_path, [Path("gone.py")], ["gone"], [])

    with pytest.raises(BadProject, match=r"gone\.py"):
        pack(project)


PIPELINE = """
import algomesh
from shout import shout

LOUD = algomesh.named("me/loud", shout | "me/echo", version="1.0.0", description="Loud")
"""


def test_a_folder_has_pipelines_beside_its_algorithms_and_they_come_last(tmp_path: Path) -> None:
    project = read_project(write(tmp_path, a_loud_py=PIPELINE, shout_py=ALGORITHM, other_py="named = 1"))

    manifests = describe(project)

    assert project.modules == ["a_loud", "shout"]
    assert [(each.name, each.entry, bool(each.pipeline)) for each in manifests] == [
        ("shout", "shout:shout", False),
        ("loud", "", True),
    ]
    assert (manifests[1].description, manifests[1].requirements) == ("Loud", [])
    assert b"me/shout/1.0.0" in manifests[1].pipeline


def test_a_file_with_a_pipeline_publishes_nothing_that_it_only_imports(tmp_path: Path) -> None:
    write(tmp_path, loud_py=PIPELINE, shout_py=ALGORITHM)

    [manifest] = describe(read_project(tmp_path / "loud.py"))

    assert (manifest.name, bool(manifest.pipeline)) == ("loud", True)


def test_a_pipeline_of_two_kinds_under_one_version_is_refused(tmp_path: Path) -> None:
    twice = PIPELINE + 'OTHER = algomesh.named("me/loud", shout, version="1.0.0")\n'

    with pytest.raises(BadProject, match=r"me/loud/1\.0\.0 is defined twice"):
        describe(read_project(write(tmp_path, loud_py=twice, shout_py=ALGORITHM)))
