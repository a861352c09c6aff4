"""The commands and their help; what a command does is in the module it imports when it runs.

Nothing but typer is imported here, so that `--help` and completion answer at once.
"""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from algomesh_services.cli import prewarm_app
from algomesh_services.cli.hidden_argv import SECRETS_FD

# Boxes and colour for people at a terminal, plain text for pipes and files.
_STYLE: Final = "rich" if sys.stdout.isatty() else None
_MESH, _ALGORITHMS, _WATCH = "Run a mesh", "Publish and call", "See and steer"

app = typer.Typer(
    rich_markup_mode=_STYLE,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
keys = typer.Typer(rich_markup_mode=_STYLE, no_args_is_help=True, help="Make, list and revoke API keys.")
aliases = typer.Typer(
    rich_markup_mode=_STYLE, no_args_is_help=True, help="Give versions names of your own, such as stable and canary."
)
app.add_typer(aliases, name="alias", rich_help_panel=_ALGORITHMS)
app.add_typer(keys, name="key", rich_help_panel=_WATCH)
app.add_typer(prewarm_app.app, name="prewarm", rich_help_panel=_WATCH)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: a list of objects.")]
Reference = Annotated[str, typer.Argument(metavar="REF", help="owner/name, owner/name/1.2.0, or owner/name/alias")]
Algorithm = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The algorithm.")]
Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="A name of your own, like stable.")]
State = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", envvar="ALGOMESH_STATE", help="Where the mesh keeps everything."),
]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"algomesh {version('algomesh')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """A mesh of algorithms: publish a Python function, call it by name, pipe one into the next.

    \b
    algomesh up                                   run a mesh on this machine
    algomesh publish my_project/                  make its algorithms callable
    algomesh call text/clean 'Hello &amp; bye'    call one; it starts by itself
    algomesh ps                                   see what runs

    The mesh is found by ALGOMESH_URL and ALGOMESH_API_KEY; without them, it is the one that runs on this machine.
    """
    del version


@app.command(rich_help_panel=_MESH)
def up(
    port: Annotated[int, typer.Option(metavar="PORT", help="The gateway's port for HTTP; 0 for a free one.")] = 8080,
    state: State = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Take this text as the administrator's key.")] = None,
    nats: Annotated[
        str | None, typer.Option(metavar="URL", help="Use this nats-server; see `algomesh nats-config`.")
    ] = None,
    postgres: Annotated[str | None, typer.Option(metavar="DSN", help="Use this PostgreSQL database.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object when ready.")] = False,
    secrets_fd: Annotated[int | None, typer.Option(SECRETS_FD, hidden=True)] = None,
) -> None:
    """Run a mesh on this machine until Ctrl-C.

    It starts a nats-server, a PostgreSQL and the mesh's four programs, keeps them up, and prints how to reach them.
    Everything it knows is in the state directory; start it there again and nothing is lost.

    \b
    algomesh up
    algomesh up --port 9000 --state ./mesh
    algomesh up --nats nats://10.0.0.5:4222 --postgres postgresql://mesh@db/mesh
    """
    from algomesh_services.cli import mesh

    mesh.up(state=state, port=port, key=key, nats=nats, postgres=postgres, as_json=as_json, secrets_fd=secrets_fd)


@app.command(rich_help_panel=_MESH)
def serve(
    program: Annotated[
        str | None, typer.Argument(metavar="PROGRAM", help="registry, launcher, gateway, ledger or prewarmer.")
    ] = None,
    command: Annotated[
        str | None, typer.Option("--exec", metavar="'CMD…'", help="Serve this command: a line of JSON in, one out.")
    ] = None,
    http: Annotated[str | None, typer.Option(metavar="URL", help="Serve what answers here: a POST per call.")] = None,
    as_: Annotated[
        str | None, typer.Option("--as", metavar="OWNER/NAME/1.0.0", help="Under which name; published if it is new.")
    ] = None,
    per_call: Annotated[
        bool, typer.Option("--per-call", help="Run the command once per call: input on stdin, output on stdout.")
    ] = False,
    takes: Annotated[str, typer.Option(metavar="KIND", help="text, json or binary, if only that.")] = "",
    gives: Annotated[str, typer.Option(metavar="KIND", help="text, json or binary.")] = "",
    concurrency: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Calls at a time.")] = 1,
    timeout: Annotated[str, typer.Option(metavar="S", help="Longest run: seconds, '5m', or none.")] = "60",
    description: Annotated[str, typer.Option(metavar="TEXT", help="A line about it, for `algomesh ls`.")] = "",
) -> None:
    """Run one program of the mesh, or serve a program of your own as an algorithm.

    The programs of the mesh read ALGOMESH_NATS, ALGOMESH_POSTGRES, ALGOMESH_STATE, and the gateway
    ALGOMESH_GATEWAY_HOST and ALGOMESH_GATEWAY_PORT; `algomesh up` runs all of them.
    A program of your own is served from this terminal until Ctrl-C, unchanged, with a key that may publish the name.

    \b
    ALGOMESH_NATS=nats://10.0.0.5:4222 ALGOMESH_STATE=/srv/mesh algomesh serve launcher
    algomesh serve --exec 'python3 -u model.py' --as me/model/1.0.0      lines of JSON
    algomesh serve --exec 'wc -w' --per-call --as me/words/1.0.0         stdin and stdout
    algomesh serve --http http://127.0.0.1:8000/predict --as me/predict/1.0.0
    """
    if program is None and (command is not None or http is not None):
        from algomesh_services.cli import outside

        outside.serve(
            command=command, url=http, as_=as_, per_call=per_call, takes=takes, gives=gives,
            concurrency=concurrency, timeout=timeout, description=description,
        )  # fmt: skip
        return
    if program is None or command is not None or http is not None:
        raise typer.BadParameter("name a program of the mesh, or one of your own by --exec or --http")
    from algomesh_services.cli import serving

    serving.serve(program)


@app.command("nats-config", rich_help_panel=_MESH)
def nats_config(state: State = None) -> None:
    """Print what a nats-server of your own must have in its configuration to carry this mesh.

    It holds public keys only. Secrets that are not there yet are made in the state directory.

    \b
    algomesh nats-config --state ./mesh >> /etc/nats/nats.conf
    algomesh up --state ./mesh --nats nats://10.0.0.5:4222
    """
    from algomesh_services.cli import mesh

    mesh.print_nats_config(state)


@app.command(rich_help_panel=_ALGORITHMS)
def publish(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder, one .py file, or a pipeline's .json.")],
    as_json: AsJson = False,
) -> None:
    """Make the algorithms and the named pipelines of a folder or a file callable.

    What is published never changes: other code needs another version. A pipeline is a variable of the file:
    JUDGE = algomesh.named("me/judge", clean | sentiment, version="1.0.0"); or JSON: {"name", "version", "pipeline"}.

    \b
    algomesh publish .
    algomesh publish services/catalog/text_clean
    algomesh publish one_file.py
    algomesh publish judge.json
    """
    from algomesh_services.cli import algorithms

    algorithms.publish(path, as_json=as_json)


@app.command(rich_help_panel=_ALGORITHMS)
def call(
    reference: Reference,
    value: Annotated[str | None, typer.Argument(metavar="[INPUT|-]", help="The input; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", metavar="F", help="Read the input from a file.")] = None,
    kind: Annotated[
        str | None,
        typer.Option("--type", "-t", metavar="text|json|binary", help="What the input is; text if not said."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Longest wait in seconds, a cold start included; 300.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Call an algorithm and print its result.

    \b
    algomesh call text/clean 'Hello &amp; bye'
    algomesh call text/sentiment/1.0.0 'I LOVE it'
    algomesh call demo/slow --type json 2
    cat post.txt | algomesh call text/clean - | algomesh call text/lemmatize -
    algomesh call demo/echo --file photo.png > same.png
    """
    from algomesh_services.cli import calling

    calling.call(reference, value, file=file, kind=kind, timeout_s=timeout, as_json=as_json)


@app.command(rich_help_panel=_ALGORITHMS)
def ls(as_json: AsJson = False) -> None:
    """List the published algorithms and pipelines, their versions, and the aliases of each."""
    from algomesh_services.cli import algorithms

    algorithms.ls(as_json=as_json)


@app.command(rich_help_panel=_WATCH)
def ps(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep it up to date until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the instances that run: algorithms nobody calls are not among them.

    \b
    algomesh ps
    algomesh ps --watch
    """
    from algomesh_services.cli import fleet

    fleet.ps(watch=watch, as_json=as_json)


@app.command(rich_help_panel=_WATCH)
def stop(reference: Reference, as_json: AsJson = False) -> None:
    """Retire the instances of an algorithm, or of one version; the next call starts one again."""
    from algomesh_services.cli import fleet

    fleet.stop(reference, as_json=as_json)


@app.command(rich_help_panel=_WATCH)
def runs(
    algorithm: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Only runs of this algorithm.")] = "",
    root: Annotated[str, typer.Option(metavar="RUN", help="Only this run and all that it caused.")] = "",
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the latest runs, newest first.

    \b
    algomesh runs
    algomesh runs --algorithm text/sentiment --limit 100
    """
    from algomesh_services.cli import fleet

    fleet.runs(algorithm=algorithm, root=root, limit=limit, as_json=as_json)


@app.command(rich_help_panel=_WATCH)
def logs(
    reference: Reference,
    run: Annotated[str, typer.Option("--run", metavar="ID", help="Only what this run printed.")] = "",
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", min=1, max=100_000, help="How many.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Print what an algorithm's instances have printed, oldest first.

    \b
    algomesh logs text/clean
    algomesh logs text/clean/1.0.0 --lines 20
    """
    from algomesh_services.cli import fleet

    fleet.logs(reference, run_id=run, lines=lines, as_json=as_json)


@app.command(rich_help_panel=_WATCH)
def graph(
    algorithm: Annotated[str, typer.Argument(metavar="[OWNER/NAME]", help="Only what it has to do with.")] = "",
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it into this file as SVG.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it into this file as PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which algorithm follows which, as the mesh has learned it from its calls.

    With each comes how likely it follows, after how long (the median, both warm), the share of its cold starts that
    were begun ahead in time, and how often that was seen lately.

    \b
    algomesh graph
    algomesh graph text/clean
    algomesh graph --svg calls.svg
    algomesh graph --json | jq '.[] | select(.probability > 0.5)'
    """
    from algomesh_services.cli import graph as graph_command

    graph_command.graph(algorithm, svg=svg, png=png, as_json=as_json)


@aliases.command("set")
def alias_set(
    algorithm: Algorithm,
    alias: Alias,
    versions: Annotated[
        list[str], typer.Argument(metavar="VERSION[=WEIGHT]…", help="What it means; several share the calls by weight.")
    ],
    as_json: AsJson = False,
) -> None:
    """Let an alias mean a version, or split the calls between several; at once, and for every caller.

    Call it as owner/name/ALIAS. Who names a version keeps that version.

    \b
    algomesh alias set text/sentiment stable 1.1.0
    algomesh alias set text/sentiment canary 1.1.0=90 2.0.0=10
    algomesh call text/sentiment/canary 'I LOVE it'
    """
    from algomesh_services.cli import aliases as alias_commands

    alias_commands.set_(algorithm, alias, versions, as_json=as_json)


@aliases.command("rm")
def alias_rm(algorithm: Algorithm, alias: Alias, as_json: AsJson = False) -> None:
    """Forget an alias: calls by it are refused from now on.

    \b
    algomesh alias rm text/sentiment canary
    """
    from algomesh_services.cli import aliases as alias_commands

    alias_commands.remove(algorithm, alias, as_json=as_json)


@aliases.command("ls")
def alias_ls(
    algorithm: Annotated[str, typer.Argument(metavar="[OWNER/NAME]", help="Only those of this algorithm.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the aliases and what they mean.

    \b
    algomesh alias ls
    algomesh alias ls text/sentiment
    """
    from algomesh_services.cli import aliases as alias_commands

    alias_commands.ls(algorithm, as_json=as_json)


@keys.command("create")
def key_create(
    words: Annotated[list[str], typer.Argument(metavar="NAME", help="A name for people to know it by.")],
    may: Annotated[
        list[str] | None, typer.Option("--may", metavar="SCOPE…", help="What it may do: one scope or several.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown this once.

    Scopes: call:PATTERN, publish:PATTERN (also stop and logs), observe (ps, logs, runs, graph), admin (everything).
    A PATTERN is owner/name, owner/* or *.

    \b
    algomesh key create ann --may 'call:text/*' 'publish:ann/*'
    algomesh key create dashboard --may observe
    """
    from algomesh_services.cli import keys as key_commands

    key_commands.create(words, may or [], as_json=as_json)


@keys.command("list")
def key_list(as_json: AsJson = False) -> None:
    """List all keys, without the keys themselves."""
    from algomesh_services.cli import keys as key_commands

    key_commands.show(as_json=as_json)


@keys.command("revoke")
def key_revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key's id or its name.")], as_json: AsJson = False
) -> None:
    """End a key at once; its connections are closed."""
    from algomesh_services.cli import keys as key_commands

    key_commands.revoke(key, as_json=as_json)
