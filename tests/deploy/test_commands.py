"""Every `limbeck` command in docs, scripts, recipes and manifests is valid."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_parser import parse, words_of_limbeck
from torch.distributed.run import get_args_parser
from typer.exceptions import TyperException

ROOT = Path(__file__).parents[2]
TEXTS = ("README.md", "deploy/README.md")
SCRIPTS = ("deploy/slurm/teacher.sbatch", "deploy/slurm/student.sbatch")
MARGIN = re.compile(r"^\s*(?:#+|\$|>)?\s*(?:Commands?:)?\s*")
VARIABLE = re.compile(r"\$\{?\w+\}?")


@dataclass(frozen=True)
class Command:
    """The words after `limbeck`."""

    where: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: limbeck {' '.join(self.words)}"


def all_commands() -> list[Command]:
    """All commands in docs, scripts, recipes, manifests and the Dockerfile."""
    return [*in_texts(), *in_scripts(), *in_recipes(), *in_compose(), *in_manifests(), *in_dockerfile()]


def in_texts() -> Iterator[Command]:
    for name in TEXTS:
        for fence in re.findall(r"```sh\n(.*?)```", (ROOT / name).read_text(), re.DOTALL):
            for line in joined(fence):
                yield from in_line(name, line)


def in_scripts() -> Iterator[Command]:
    for name in SCRIPTS:
        code = "\n".join(line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#"))
        for line in joined(code):
            yield from in_line(name, line)


def in_recipes() -> Iterator[Command]:
    for path in sorted([*ROOT.glob("*/recipes/*.toml"), *ROOT.glob("deploy/**/*.toml")]):
        for line in path.read_text().splitlines():
            text = re.split(r"\s{3,}", MARGIN.sub("", line))[0]
            if line.startswith("#") and text.startswith("limbeck "):
                yield from in_line(str(path.relative_to(ROOT)), text)


def in_compose() -> Iterator[Command]:
    plain = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    for name, service in plain["services"].items():
        if not str(service["image"]).startswith("limbeck-"):
            continue
        if "entrypoint" in service:
            yield from in_line(f"compose.yaml, {name}", service["command"][0])
        else:
            yield Command(f"compose.yaml, {name}", tuple(service["command"]))


def in_manifests() -> Iterator[Command]:
    for path in sorted(ROOT.glob("deploy/kubernetes/**/*.yaml")):
        for plain in yaml.safe_load_all(path.read_text()):
            for found in dictionaries(plain):
                where = str(path.relative_to(ROOT))
                if isinstance(found.get("entrypoint"), str):
                    yield from in_line(where, found["entrypoint"])
                if isinstance(found.get("args"), list):
                    words = [*found.get("command", []), *found["args"]]
                    if "command" not in found:
                        yield Command(where, tuple(words))
                    else:
                        yield from in_line(where, shlex.join(words))


def in_dockerfile() -> Iterator[Command]:
    for line in (ROOT / "deploy/Dockerfile").read_text().splitlines():
        if line.startswith("CMD ["):
            yield Command("Dockerfile", tuple(yaml.safe_load(line.removeprefix("CMD "))))


def dictionaries(plain: Any) -> Iterator[dict[str, Any]]:
    """Yield every dictionary in nested plain values."""
    if isinstance(plain, dict):
        yield plain
    for part in plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else ():
        yield from dictionaries(part)


def joined(text: str) -> list[str]:
    """Split into lines; a line that ends with a backslash is joined with the next."""
    return text.replace("\\\n", " ").splitlines()


def in_line(where: str, line: str) -> Iterator[Command]:
    """Yield each limbeck command of a shell line."""
    if "limbeck" not in line:
        return
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if not set(token) <= set("();<>|&"):
            words.append(token)
            continue
        if called := words_of_limbeck(words):
            yield Command(where, tuple(called[1:]))
        words = []


COMMANDS = sorted({str(command): command for command in all_commands()}.items())


@pytest.mark.parametrize("command", [command for _, command in COMMANDS], ids=[name for name, _ in COMMANDS])
def test_every_written_command_can_be_parsed(command: Command) -> None:
    words = [VARIABLE.sub("1", word) for word in command.words if word != "--help"]
    if "--help" in command.words and len(words) <= 2:  # `--help` of a command without its arguments
        words.append("x.toml")
    assert parse(words)


def test_commands_are_found_in_each_kind_of_file() -> None:
    """Without this, a search that finds nothing would pass."""
    found = [str(one) for one in all_commands()]
    for command in (
        "README.md: limbeck cache build photos_cache.toml",
        "deploy/slurm/teacher.sbatch: limbeck cache build $recipe",
        "deploy/slurm/student.sbatch: limbeck train $recipe --out $run",
        "compose.yaml, export: limbeck export demo/student demo/bundle",
        "deploy/kubernetes/base/student.yaml: limbeck train /recipes/student.toml --out /limbeck/runs/student",
        "deploy/kubernetes/overlays/ray/rayjob.yaml: limbeck cache build /recipes/cache.toml --on ray",
        "Dockerfile: limbeck serve /limbeck/bundle --host 0.0.0.0",
    ):
        assert command in found
    assert {one.where for one in all_commands()} >= {*TEXTS, *SCRIPTS}


def test_torchrun_accepts_its_arguments() -> None:
    (script,) = (line for line in joined((ROOT / SCRIPTS[1]).read_text()) if line.startswith("srun"))
    manifest = yaml.safe_load((ROOT / "deploy/kubernetes/base/student.yaml").read_text())
    (container,) = (found for found in dictionaries(manifest) if found.get("command") == ["torchrun"])
    words = shlex.split(VARIABLE.sub("1", script))
    for given in (words[words.index("torchrun") + 1 : words.index("&")], container["args"]):
        parsed = get_args_parser().parse_args(given)
        assert parsed.training_script == "limbeck" and parsed.no_python and parsed.rdzv_backend == "c10d"
        assert parsed.rdzv_endpoint.endswith(":29500") and int(parsed.max_restarts) == 3


def test_an_invalid_command_is_refused() -> None:
    assert parse(["cache", "status", "a.zarr"]) == ["cache", "status"]
    for wrong in ("cache biuld a.toml", "train a.toml --epochs 3", "serve b --port many", "pack one"):
        with pytest.raises(TyperException):
            parse(wrong.split())
