"""What `deploy/compose` promises on paper; tests/compose runs it for real."""

import re
from pathlib import Path

COMPOSE = Path(__file__).resolve().parents[2] / "deploy" / "compose"
VARIABLE = re.compile(r"\$\{([A-Z_]+):-([^}]*)\}")


def variables_of(file: str) -> dict[str, str]:
    return dict(VARIABLE.findall((COMPOSE / file).read_text()))


def examples() -> dict[str, str]:
    lines = (COMPOSE / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_every_variable_is_explained_with_its_default() -> None:
    told = examples()

    assert variables_of("compose.yaml") == told


def test_every_variable_has_one_default() -> None:
    found = set(VARIABLE.findall((COMPOSE / "compose.yaml").read_text()))

    assert len(found) == len({name for name, _ in found})


def test_the_images_of_others_are_the_official_ones_unless_somebody_says_otherwise() -> None:
    defaults = variables_of("compose.yaml")

    assert (defaults["NATS_IMAGE"], defaults["POSTGRES_IMAGE"], defaults["PYTHON_IMAGE"]) == (
        "nats:2.15",
        "postgres:18",
        "python:3.11-slim",
    )


def test_no_image_of_others_is_whatever_is_the_latest() -> None:
    images = {name: image for name, image in variables_of("compose.yaml").items() if name.endswith("_IMAGE")}
    del images["ALGOMESH_IMAGE"]  # a name, whose tag is another variable

    assert len(images) == 7
    for name, image in images.items():
        assert re.fullmatch(r"[a-z/-]+:v?\d+(\.\d+)*(-\w+)?", image), name


def test_no_variable_stands_where_docker_compose_1_29_wants_a_number() -> None:
    text = (COMPOSE / "compose.yaml").read_text()

    assert not re.findall(r"pids_limit: \$", text)
