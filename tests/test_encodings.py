"""Every text file and pipe has an explicit encoding. Ruff's PLW1514 finds some of them, this all of them."""

import ast
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parents[1]
FOLDERS = ("teacher_cache", "student", "server", "benchmarks", "deploy")
FILES = sorted(path for folder in FOLDERS for path in (HERE / folder).rglob("*.py"))
ALWAYS_TEXT = {"read_text", "write_text", "TextIOWrapper", "FileHandler", "WatchedFileHandler"}
OPENERS = {"open": "r", "fdopen": "r", "NamedTemporaryFile": "w+b", "TemporaryFile": "w+b"}
"""Functions that open a file, and their default mode."""
NOT_FILES = {
    "Image",
    "StrictTar",
    "_archive",
    "TargetCache",
    "Pool",
    "tarfile",
    "os",
    "cls",
    "self",
    "models",
    "_supervisor",
}
"""Objects whose `open` opens something else, or whose mode is never text."""


def calls_without_encoding(source: str) -> Iterator[int]:
    """The line of every call that uses the locale's encoding."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _is_text(node) and not _has_encoding(node):
            yield node.lineno


def _is_text(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if any(getattr(keywords.get(key), "value", False) is True for key in ("text", "universal_newlines")):
        return True
    if name in ALWAYS_TEXT:
        return True
    if name not in OPENERS or _owner(call.func) in NOT_FILES:
        return False
    candidates = [keywords["mode"]] if "mode" in keywords else call.args
    modes = [arg.value for arg in candidates if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    default = "rb" if _owner(call.func) in ("gzip", "bz2", "lzma") else OPENERS[name]
    mode = next((mode for mode in modes if set(mode) <= set("rwxab+t")), default)
    return "b" not in mode


def _owner(function: ast.expr) -> str:
    value = getattr(function, "value", None)
    return getattr(value, "id", getattr(value, "attr", ""))


def _has_encoding(call: ast.Call) -> bool:
    position = {"read_text": 0, "write_text": 1}.get(getattr(call.func, "attr", ""), 9)
    return len(call.args) > position or any(keyword.arg == "encoding" for keyword in call.keywords)


def test_every_text_file_and_pipe_has_an_encoding() -> None:
    found = {str(path.relative_to(HERE)): [*calls_without_encoding(path.read_text("utf-8"))] for path in FILES}
    assert len(found) > 200 and not {name: lines for name, lines in found.items() if lines}


def test_the_check_itself_finds_every_way_to_the_encoding_of_the_locale() -> None:
    for line in (
        "path.read_text()",
        "path.write_text('x')",
        "open(path)",
        "open(path, 'w')",
        "path.open('a')",
        "path.open(mode='w', buffering=1)",
        "gzip.open(path, 'rt')",
        "os.path.x.open('w')",
        "tempfile.NamedTemporaryFile('w')",
        "io.TextIOWrapper(file)",
        "logging.FileHandler(path)",
        "subprocess.run(command, text=True)",
    ):
        assert list(calls_without_encoding(line)) == [1], line
    for line in ("path.open('rb')", "path.read_text('utf-8')", "open(path, encoding='utf-8')", "Image.open(path)"):
        assert not list(calls_without_encoding(line)), line


def test_bundled_recipes_are_ascii() -> None:
    """`limbeck recipes NAME > FILE` then writes UTF-8 in any locale."""
    recipes = [*(HERE / "teacher_cache/recipes").glob("*.toml"), *(HERE / "student/recipes").glob("*.toml")]
    assert recipes and all(path.read_bytes().isascii() for path in recipes)
