"""`alias set`, `alias rm` and `alias ls`."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import typer

from algomesh.nats_transport import translate
from algomesh.requests import ask
from algomesh_broker.connection import Connection
from algomesh_broker.directory import Directory
from algomesh_broker.errors import BadName, BrokerError
from algomesh_broker.messages import AlgorithmEntry
from algomesh_broker.names import Reference, Version, check_alias
from algomesh_broker.platform import AliasSet, Done
from algomesh_services.cli.output import Column, note, print_json, print_rows, write
from algomesh_services.cli.session import run

_LS: Final = (
    Column("algorithm", "algorithm"),
    Column("alias", "alias"),
    Column("means", "means"),
)


def set_(algorithm: str, alias: str, versions: Iterable[str], *, as_json: bool) -> None:
    """Let an alias mean these versions."""
    name, alias, weights = _named(algorithm), _checked(alias), weights_of(versions)
    _change(name, alias, weights, needs="alias set")
    if as_json:
        print_json([{"algorithm": name, "alias": alias, "weights": weights}])
        return
    write(f"{name}/{alias} is {said(weights)}")
    note(f"call it:  algomesh call {name}/{alias} 'some input'")


def remove(algorithm: str, alias: str, *, as_json: bool) -> None:
    """Forget an alias."""
    name, alias = _named(algorithm), _checked(alias)
    _change(name, alias, {}, needs="alias rm")
    if as_json:
        print_json([{"algorithm": name, "alias": alias, "weights": {}}])
    else:
        write(f"removed {name}/{alias}")


def ls(algorithm: str, *, as_json: bool) -> None:
    """List aliases."""
    name = _named(algorithm) if algorithm else ""

    async def work(connection: Connection) -> list[AlgorithmEntry]:
        try:
            async with await Directory.open(connection) as directory:
                if name:
                    directory.resolve(Reference.parse(name))  # says what is meant when there is none
                return [entry for entry in directory.entries() if name in ("", f"{entry.owner}/{entry.name}")]
        except BrokerError as error:
            raise translate(error) from error

    rows: list[dict[str, Any]] = [
        {"algorithm": f"{entry.owner}/{entry.name}", "alias": alias, "weights": weights, "means": said(weights)}
        for entry in run(work, needs_nats_for="alias ls")
        for alias, weights in sorted(entry.aliases.items())
    ]
    empty = "no aliases; make one with: algomesh alias set OWNER/NAME stable 1.0.0"
    print_rows(rows, _LS, as_json=as_json, empty=empty)


def weights_of(versions: Iterable[str]) -> dict[str, int]:
    """What `1.0.0` or `1.1.0=90 2.0.0=10` means. Raises typer.BadParameter."""
    weights: dict[str, int] = {}
    for word in versions:
        text, equals, weight = word.partition("=")
        try:
            version = str(Version.parse(text))
        except BadName as error:
            raise typer.BadParameter(str(error), param_hint="VERSION[=WEIGHT]") from error
        if equals and not (weight.isascii() and weight.isdigit()):
            raise typer.BadParameter(
                f"{word!r}: a weight is a whole number, like {version}=90", param_hint="VERSION[=WEIGHT]"
            )
        if version in weights:
            raise typer.BadParameter(f"{version} is given twice", param_hint="VERSION[=WEIGHT]")
        weights[version] = int(weight) if equals else 1
    return weights


def said(weights: Mapping[str, int]) -> str:
    """`1.0.0`, or `1.1.0 (90 %), 2.0.0 (10 %)`."""
    if len(weights) == 1:
        return next(iter(weights))
    total = sum(weights.values())
    return ", ".join(f"{version} ({100 * weight / total:.3g} %)" for version, weight in weights.items())


def _change(name: str, alias: str, weights: dict[str, int], *, needs: str) -> None:
    async def work(connection: Connection) -> Done:
        return await ask(connection, "registry", "alias-set", name, AliasSet(alias=alias, weights=weights), Done)

    run(work, needs_nats_for=needs)


def _named(algorithm: str) -> str:
    try:
        reference = Reference.parse(algorithm)
    except BadName as error:
        raise typer.BadParameter(str(error), param_hint="OWNER/NAME") from error
    if reference.version:
        raise typer.BadParameter(
            f"{algorithm!r} has a version in it; an alias is of {reference.algorithm}", param_hint="OWNER/NAME"
        )
    return reference.algorithm


def _checked(alias: str) -> str:
    try:
        return check_alias(alias.lower())
    except BadName as error:
        raise typer.BadParameter(str(error), param_hint="ALIAS") from error
