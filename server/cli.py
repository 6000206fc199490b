"""The front door: `limbeck`."""

import os
import select
import signal
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

import student.cli
import teacher_cache.cli
from teacher_cache.console import log_line
from teacher_cache.errors import (
    EXIT_TRANSIENT,
    EXIT_USER_ERROR,
    LimbeckError,
    is_lost_worker,
    is_transient,
    validation_reason,
)

INTERRUPTED, UNHEARD = 130, 141
"""Exit statuses as a shell gives them: of Ctrl-C, and of output that nobody reads (`limbeck --help | true`)."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Distil a convnet into a vision transformer, running the teacher only once.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"limbeck {version('limbeck')}")
        raise typer.Exit


@app.callback()
def front_door(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


teacher_cache.cli.add_commands(app)
student.cli.add_commands(app)


@app.command()
def serve(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE...",
            help="A bundle (limbeck export), its URL, or a finished run; NAME=FOLDER or NAME@VERSION=FOLDER.",
        ),
    ],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8080,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    runtime: Annotated[
        str, typer.Option(help="torch, torch-bfloat16, torch-compile, openvino, ... or onnx.")
    ] = "torch",
    workers: Annotated[int, typer.Option(min=0, help="Processes for each model; 0 is one a core.")] = 0,
    batch: Annotated[int, typer.Option(min=0, help="Images at once, at most; 0 is 1 on a CPU, 16 on a GPU.")] = 0,
    deadline: Annotated[
        float, typer.Option(min=0.001, help="Seconds; an image that would wait past it is refused.")
    ] = 10.0,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="A file with one key a line (# begins a comment); or set LIMBECK_API_KEYS.", show_default=False
        ),
    ] = None,
    rate: Annotated[float, typer.Option(min=0, help="Requests a second for each key; 0 is no limit.")] = 0.0,
    cors: Annotated[
        list[str] | None, typer.Option(help="An origin whose pages may ask; several by several.")
    ] = None,
    access_log: Annotated[
        str, typer.Option(help='A file for one JSON line a request; "-" is standard output.')
    ] = "",
    limits: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another limit, as max_body_bytes=1000000 (server/settings.py)."),
    ] = None,
) -> None:
    """Serve the fused classifier over HTTP, until SIGTERM or Ctrl-C; SIGHUP reads the bundles again."""
    from server.serving.supervisor import Supervisor
    from server.settings import read_settings

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again
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
        access_log=access_log,
    )
    with Supervisor() as crew:  # its process imports torch while this one imports the rest
        import server.serve

        server.serve.serve(crew, bundles, settings)


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="A folder with Fashion-MNIST's four IDX files; found or downloaded if not given."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder that all of it goes into.")] = Path("demo"),
) -> None:
    """Go the whole way on a small data set: pack, teacher, cache, student, bundle."""
    import server.demo

    server.demo.run_demo(data, out)


def _misuse(error: typer.TyperException) -> str:
    """One line for words that a command cannot take: which command, what was found, where to read on."""
    told = validation_reason(" ".join(error.format_message().split())).rstrip(".")
    if isinstance(error.__cause__, ValidationError):
        told += f", not {error.__cause__.errors()[0]['input']!r}"
    context = getattr(error, "ctx", None)  # an option without its value has none
    command = context.command_path if context else " ".join(["limbeck", *sys.argv[1:2]])
    return told and f"{command.replace(' ', ': ', 1)}: {told}; see {command} --help"


def _hold_streams() -> None:
    """Where a standard stream is closed, a socket would take its number, and what is printed would go there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def main() -> None:
    """Run the command line and exit with its status, as README, "How a command ends", lists them."""
    _hold_streams()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its idle threads would starve decoding
    warnings.filterwarnings("ignore", module="PIL")  # remarks on images with odd metadata
    sys.exit(_status(sys.argv[1:]))


def _status(words: list[str]) -> int:
    """Run a command; returns its exit status. Raises what is a mistake in Limbeck.

    Called by typer's own main, an error would come as typer's exit status: broken pipe as 1, Ctrl-C as 130.
    """
    try:
        status = _invoke(words)
        print(end="", flush=True)  # else Python flushes later, where nothing handles a broken pipe
        return status
    except typer.TyperException as error:  # its message is empty where it has shown the help
        if told := _misuse(error):
            log_line(told)
        return EXIT_USER_ERROR
    except LimbeckError as error:
        log_line(f"limbeck: {error}")
        return error.status
    except KeyboardInterrupt:
        log_line("limbeck: interrupted; the same command again goes on where it stood")
        return INTERRUPTED
    except BrokenPipeError:
        if not _is_stdout_broken():
            raise
        return _unheard()
    except OSError as error:  # a full disk, a folder that may not be written
        where = f"'{error.filename}': " if error.filename else ""
        log_line(f"limbeck: {where}{error.strerror or error}; mend that and run again")
        return EXIT_TRANSIENT if is_transient(error) else EXIT_USER_ERROR
    except EOFError as error:
        log_line(f"limbeck: what it read ended too early ({error}); see that files and processes are whole")
        return EXIT_USER_ERROR
    except RuntimeError as error:
        if not is_lost_worker(error):
            raise
        log_line(f"limbeck: {str(error).partition(chr(10))[0]}; if memory ran out, lower workers; then run again")
        return EXIT_USER_ERROR
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich's, of the stream that it prints to
            return _unheard()
        raise


def _invoke(words: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("limbeck", words) as context:
            command.invoke(context)
    except typer.Exit as end:  # --help, --version
        return end.exit_code
    return 0


def _is_stdout_broken() -> bool:
    pipe = select.poll()
    pipe.register(1, 0)
    return any(found & select.POLLERR for _, found in pipe.poll(0))


def _unheard() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for Python's own last flush
    return UNHEARD


if __name__ == "__main__":
    main()
