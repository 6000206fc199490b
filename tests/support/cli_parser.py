"""Parse documented `limbeck` commands with the real command-line parser, without running them."""

import re
from typing import Any

import typer

from server.cli import app

LAUNCHERS = ("torchrun", "srun")


def words_of_limbeck(words: list[str]) -> list[str]:
    """The words from `limbeck` on if a simple command runs it, directly or through a launcher; else []."""
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
    """Parse words with the real parser, without running anything; return the names of the commands."""
    command: Any = typer.main.get_command(app)
    names: list[str] = []
    context = None
    while True:
        with command.make_context(command.name, list(words), parent=context) as context:
            if not hasattr(command, "resolve_command"):
                return names
            name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
            names.append(name)
