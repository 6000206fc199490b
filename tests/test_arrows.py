"""Package order of imports, and no use of global random generators, checked in the source code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
PACKAGES = ("teacher_cache", "student", "server")
FILES = sorted(path for package in PACKAGES for path in (HERE / package).rglob("*.py"))

FORBIDDEN = {"teacher_cache": {"student", "server"}, "student": {"server"}, "server": set()}
NUMPY_WITHOUT_STATE = {"Generator", "Philox", "bit_generator"}
TORCH_FROM_THE_GLOBAL_GENERATOR = {
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"),
    *("rand_like", "randn_like", "randint_like", "seed", "manual_seed", "set_rng_state", "random"),
}
SEEDS_TORCH = {("student/train.py", "torch.manual_seed")}
"""Initial weights and stochastic depth use torch's generator; only the training loop seeds it."""


def names_of(path: Path) -> Iterator[str]:
    """All dotted names that a file imports or reads, with import aliases resolved: np.x is numpy.x."""
    tree = ast.parse(path.read_text())
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                yield one.name
                known[one.asname or one.name.partition(".")[0]] = (
                    one.name if one.asname else one.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for one in node.names:
                yield f"{module}.{one.name}"
                known[one.asname or one.name] = f"{module}.{one.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and (dotted := _dotted(node)):
            first, _, rest = dotted.partition(".")
            if first in known:
                yield f"{known[first]}.{rest}".rstrip(".")


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (above := _dotted(node.value)):
        return f"{above}.{node.attr}"
    return ""


def global_dice(name: str) -> bool:
    """Whether a dotted name is a global random generator, or one seeded by the clock."""
    first, *rest = name.split(".")
    if first == "random":
        return True
    if first == "numpy" and rest[:1] == ["random"]:
        return len(rest) > 1 and rest[1] not in NUMPY_WITHOUT_STATE
    if first == "torch":
        return bool(rest) and rest[-1] in TORCH_FROM_THE_GLOBAL_GENERATOR
    return False


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_follow_the_package_order(package: str) -> None:
    files = [path for path in FILES if path.is_relative_to(HERE / package)]
    assert len(files) > 5
    wrong = [
        f"{path.relative_to(HERE)} imports {name}"
        for path in files
        for name in names_of(path)
        if name.partition(".")[0] in FORBIDDEN[package] or name.startswith(".")
    ]
    assert not wrong


def test_no_module_reads_a_global_random_generator() -> None:
    found = {(str(path.relative_to(HERE)), name) for path in FILES for name in names_of(path) if global_dice(name)}
    assert found == SEEDS_TORCH


def test_check_detects_every_global_generator(tmp_path: Path) -> None:
    for line in (
        "import random",
        "from random import shuffle",
        "import numpy as np; np.random.seed(1)",
        "import numpy; numpy.random.default_rng()",
        "from numpy.random import rand",
        "from numpy import random as dice; dice.shuffle([])",
        "import torch; torch.rand(3)",
        "from torch import randperm as order",
        "import torch; torch.cuda.manual_seed(1)",
    ):
        (tmp_path / "it.py").write_text(line)
        assert any(map(global_dice, names_of(tmp_path / "it.py"))), line
    (tmp_path / "it.py").write_text("import numpy as np\nnp.random.Generator(np.random.Philox(key=1)).random(3)")
    assert not any(map(global_dice, names_of(tmp_path / "it.py")))
