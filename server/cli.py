"""The command line: `limbeck`, with the commands of all three packages."""

import os
import select
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

import student.cli
import teacher_cache.cli
from server.startup import open_closed_streams, show_plain_warnings, use_utf8
from teacher_cache.console import log_line
from teacher_cache.distributed.machine import limit_threads
from teacher_cache.errors import (
    EXIT_TRANSIENT,
    EXIT_USER_ERROR,
    LimbeckError,
    is_transient,
    validation_reason,
)

EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 130, 141
"""Exit statuses that a shell reports for SIGINT (Ctrl-C) and SIGPIPE (`limbeck --help | true`)."""

BundlesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="BUNDLE",
        help="A bundle from limbeck export (folder or URL) or a finished run. To set its name, write "
        "NAME=FOLDER or NAME@VERSION=FOLDER.",
    ),
]

ApiKeysOption = Annotated[
    Path | None,
    typer.Option(
        help="File with one API key per line; lines that start with # are comments. By default the keys "
        "are read from the environment variable LIMBECK_API_KEYS.",
        show_default=False,
    ),
]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Distill a convnet into a vision transformer. The teacher runs only once.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"limbeck {version('limbeck')}")
        raise typer.Exit


@app.callback()
def limbeck(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


teacher_cache.cli.add_commands(app)
student.cli.add_commands(app)


@app.command()
def serve(
    bundles: BundlesArgument,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all interfaces.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8080,
    device: Annotated[str, typer.Option(help="Device: auto, cpu or cuda.")] = "auto",
    runtime: Annotated[
        str,
        typer.Option(help="torch, torch-bfloat16, torch-compile, openvino, openvino-bfloat16 or onnx."),
    ] = "torch",
    workers: Annotated[
        int, typer.Option(min=0, help="Worker processes per model; 0 for one per CPU core, and one on a GPU.")
    ] = 0,
    batch: Annotated[int, typer.Option(min=0, help="Maximum batch size; 0 for 1 on a CPU and 16 on a GPU.")] = 0,
    deadline: Annotated[
        float,
        typer.Option(min=0.001, help="Maximum seconds to an answer; an image that would wait longer is refused."),
    ] = 10.0,
    api_keys: ApiKeysOption = None,
    rate: Annotated[
        float, typer.Option(min=0, help="Maximum requests per second for each key; 0 for no limit.")
    ] = 0.0,
    cors: Annotated[
        list[str] | None, typer.Option(help="Origin whose web pages may send requests. May be repeated.")
    ] = None,
    trusted_proxies: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESSES",
            help="Addresses or networks, separated by commas, of the reverse proxies whose X-Forwarded-For and "
            "X-Forwarded-Proto are used. By default these headers are ignored. May be repeated.",
        ),
    ] = None,
    root_path: Annotated[
        str, typer.Option(help="Path prefix under which a reverse proxy offers the server, e.g. /limbeck.")
    ] = "",
    access_log: Annotated[
        str, typer.Option(help='File for the access log, one JSON line per request; "-" for standard output.')
    ] = "",
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change another setting, e.g. max_body_bytes=1000000; server/settings.py lists them. "
            "May be repeated.",
        ),
    ] = None,
) -> None:
    """Serve models over HTTP. SIGTERM or Ctrl-C stops the server, SIGHUP reloads the bundles."""
    from server.serving.supervisor import Supervisor
    from server.settings import read_settings

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # before there is a model to reload
    settings = read_settings(
        limits or [],
        host=host,
        port=port,
        device=device,
        runtime=runtime,
        workers=workers,
        batch=batch,
        deadline=deadline,
        api_keys=api_keys,
        rate=rate,
        cors=tuple(cors or ()),
        trusted_proxies=tuple(one for given in trusted_proxies or () for one in given.split(",")),
        root_path=root_path,
        access_log=access_log,
    )
    with Supervisor() as supervisor:  # its process imports torch while this one imports the other modules
        import server.serve

        server.serve.serve(supervisor, bundles, settings)


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the four IDX files of Fashion-MNIST. If omitted, the ones of Debian's "
            "package dataset-fashion-mnist are used, or they are downloaded.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("demo"),
) -> None:
    """Run the whole pipeline on Fashion-MNIST: pack, train a teacher, cache, train a student, export, serve.

    It takes about ten minutes on two CPU cores. Finished stages are skipped when the command is rerun.
    """
    import server.demo

    server.demo.run_demo(data, out)


def _usage_error(error: typer.TyperException) -> str:
    """One line for arguments that a command does not accept: the command, what was found, how to get help.

    "" if typer has printed the help instead.
    """
    message = validation_reason(" ".join(error.format_message().split())).rstrip(".")
    if isinstance(error.__cause__, ValidationError):
        message += f", not {error.__cause__.errors()[0]['input']!r}"
    context = getattr(error, "ctx", None)  # an option without its value has no context
    command = context.command_path if context else " ".join(["limbeck", *sys.argv[1:2]])
    return message and f"{command.replace(' ', ': ', 1)}: {message}; see {command} --help"


def main() -> None:
    """Run the command line and exit; README, "Exit statuses", lists them."""
    open_closed_streams()
    use_utf8()
    show_plain_warnings()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its idle threads would slow down decoding
    limit_threads()
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    """Run a command and return its exit status. Errors that are bugs in Limbeck are raised.

    typer's own main is not used because it exits with 1 for a broken pipe.
    """
    try:
        status = _invoke(arguments)
        print(end="", flush=True)  # Python would flush at exit, when a broken pipe is no longer handled
        return status
    except typer.TyperException as error:  # its message is empty if typer has printed the help
        if message := _usage_error(error):
            log_line(message)
        return EXIT_USER_ERROR
    except LimbeckError as error:
        log_line(f"limbeck: {error}")
        return error.status
    except KeyboardInterrupt:
        log_line("limbeck: interrupted; to continue, run the same command again")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if not _is_stdout_broken():
            raise
        return _silence_stdout()
    except OSError as error:  # a full disk, or a folder without write permission
        file_name = f"'{error.filename}': " if error.filename else ""
        log_line(f"limbeck: {file_name}{error.strerror or error}; fix this and run the command again")
        return EXIT_TRANSIENT if is_transient(error) else EXIT_USER_ERROR
    except EOFError as error:
        log_line(f"limbeck: input ended too early ({error}); check for incomplete files and killed processes")
        return EXIT_USER_ERROR
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich exits when its output stream is closed
            return _silence_stdout()
        raise


def _invoke(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("limbeck", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:  # --help, --version
        return end.exit_code
    return 0


def _is_stdout_broken() -> bool:
    pipe = select.poll()
    pipe.register(1, 0)
    return any(found & select.POLLERR for _, found in pipe.poll(0))


def _silence_stdout() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout once more at exit
    return EXIT_BROKEN_PIPE


if __name__ == "__main__":
    main()
