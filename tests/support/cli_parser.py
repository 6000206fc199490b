"""Words that somebody is told to run, given to the real command line, which runs nothing."""

import re
from typing import Any

import typer

from server.cli import app

LAUNCHERS = ("torchrun", "srun")


def words_of_limbeck(words: list[str]) -> list[str]:
    """From `limbeck` on, where it is what a simple command runs, by itself or through a launcher; else []."""
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    if not words:
        return []
    if words[0].rpartition("/")[2] == "limbeck":
        return words
    if words[0] == "kubectl" and "--" in words:
        return words_of_limbeck(words[words.index("--") + 1 :])
    return words[words.index("limbeck") :] if words[0] in LAUNCHERS and "limbeck" in words else []


def parse(words: list[str]) -> list[str]:
    """Let the real command line parse words, without running anything; returns the commands' names."""
    command: Any = typer.main.get_command(app)
    names: list[str] = []
    context = None
    while True:
        with command.make_context(command.name, list(words), parent=context) as context:
            if not hasattr(command, "resolve_command"):
                return names
            name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
            names.append(name)
