"""The arrows between packages, and the rule that randomness is an argument: read from the code itself."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parents[1]
PACKAGES = ("teacher_cache", "student", "server")
FILES = sorted(path for package in PACKAGES for path in (HERE / package).rglob("*.py"))

ORDER = {
    "teacher_cache": (
        "errors rng timing console text config storage class_file disk_cache figure loading distributed models "
        "kernels views data recipe packing cache labeling recipes shards_cli cli"
    ),
    "student": ("recipe recipe_catalog recipes model bundle data evaluation training report estimate study cli"),
    "server": (
        "errors startup settings metrics tracing ipc schema web workers serving api page app serve demo cli"
    ),
}
"""Folders and top-level modules of each package; each imports only names to its left."""
MOST_MODULES = 12
"""Modules in one folder."""
WITHOUT_TORCH = (
    *("teacher_cache", "student", "server", "server.cli", "student.cli", "teacher_cache.cli"),
    *(f"teacher_cache.{name}" for name in ("errors", "rng", "console", "config", "recipe")),
    *("teacher_cache.storage.*", "teacher_cache.distributed.world"),
    *("teacher_cache.models.spec", "teacher_cache.models.card", "teacher_cache.data.index"),
    *("teacher_cache.views.policy", "teacher_cache.views.augment", "teacher_cache.views.view"),
    "teacher_cache.disk_cache.*",
    *(f"teacher_cache.cache.{name}" for name in ("encoding", "manifest", "layout", "target_cache")),
    *("teacher_cache.cache.teacher_score", "teacher_cache.cache.status"),
    *("student.recipe", "student.recipe_catalog"),
    *("server.errors", "server.settings", "server.metrics", "server.tracing", "server.app", "server.serve"),
    *(f"server.{folder}.*" for folder in ("ipc", "schema", "web", "serving", "api", "page")),
)
"""Modules (`.*`: all of a folder) that commands import which do not compute, so that they start fast."""
NUMPY_WITHOUT_STATE = {"Generator", "Philox", "bit_generator"}
TORCH_FROM_THE_GLOBAL_GENERATOR = {
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"),
    *("rand_like", "randn_like", "randint_like", "seed", "manual_seed", "set_rng_state", "random"),
}
SEEDS_TORCH = {("student/training/loop.py", "torch.manual_seed")}
"""Initial weights and stochastic depth are drawn by torch itself; the one loop that causes it names their seed."""


def names_of(path: Path) -> Iterator[str]:
    """Every dotted name a file imports or reads, with its imports' own names put in: np.x is numpy.x."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
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


def is_global_generator(name: str) -> bool:
    """Whether a dotted name is a random generator that the whole process shares, or one seeded by the clock."""
    first, *rest = name.split(".")
    if first == "random":
        return True
    if first == "numpy" and rest[:1] == ["random"]:
        return len(rest) > 1 and rest[1] not in NUMPY_WITHOUT_STATE
    if first == "torch":
        return bool(rest) and rest[-1] in TORCH_FROM_THE_GLOBAL_GENERATOR
    return False


def module_of(path: Path) -> str:
    """The dotted name of a file of the packages."""
    return ".".join(path.relative_to(HERE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports_of(path: Path) -> set[str]:
    """The modules of the packages that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{one.name}" for one in node.names} & MODULES.keys()
            found |= inside or {"." * node.level + (node.module or "")}
    return {name for name in found if name in MODULES or name.startswith(".")}


def rank(module: str) -> tuple[int, int]:
    """Position of a module in ORDER; a module may import those of a lower rank, and those of its own folder."""
    package, _, rest = module.partition(".")
    return PACKAGES.index(package), ORDER[package].split().index(rest.partition(".")[0]) if rest else -1


def cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The groups of nodes that reach each other."""
    reached = {node: set(targets) for node, targets in graph.items()}
    for middle in graph:
        for node in graph:
            if middle in reached[node]:
                reached[node] |= reached[middle]
    return [
        {node, *(other for other in reached[node] if node in reached[other])}
        for node in graph
        if node in reached[node]
    ]


def test_imports_point_from_a_higher_folder_to_a_lower_one() -> None:
    assert len(FILES) > 150
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        if module not in PACKAGES  # their public names are imported on first use, from any module
        for name in imports_of(path)
        if name.startswith(".") or (rank(name) > rank(module))
    ]
    assert not wrong


def test_no_files_and_no_folders_import_each_other() -> None:
    files = {module: imports_of(path) - {module} for module, path in MODULES.items()}
    assert not cycles(files)
    folders: dict[str, set[str]] = {}
    for module, targets in files.items():
        folder = module.rpartition(".")[0] if MODULES[module].name != "__init__.py" else module
        folders.setdefault(folder, set()).update(target.rpartition(".")[0] for target in targets)
    assert not cycles(
        {folder: targets - {folder, ""} for folder, targets in folders.items() if folder.count(".") == 1}
    )


def test_the_check_for_cycles_finds_one() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert not cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_no_folder_has_more_modules_than_one_can_survey() -> None:
    names = [path.parent for path in FILES if path.name != "__init__.py"]
    assert max(names.count(folder) for folder in set(names)) <= MOST_MODULES


def test_no_module_has_the_name_of_one_of_the_standard_library() -> None:
    assert not [path for path in FILES if path.stem in sys.stdlib_module_names and path.stem != "__init__"]


def test_no_class_name_is_defined_twice() -> None:
    places: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_modules_of_commands_that_do_not_compute_do_not_import_torch() -> None:
    names = [
        module
        for pattern in WITHOUT_TORCH
        for module in MODULES
        if module == pattern or (pattern.endswith(".*") and module.startswith(pattern[:-1]))
    ]
    assert len(names) > 50 and set(WITHOUT_TORCH) <= {*names, *(one for one in WITHOUT_TORCH if one.endswith("*"))}
    script = "import importlib, sys; importlib.import_module(sys.argv[1]); sys.exit('torch' in sys.modules)"
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda name: subprocess.run([sys.executable, "-c", script, name], check=False), names)
        assert not [name for name, run in zip(names, runs, strict=True) if run.returncode]


def test_no_module_reads_a_global_random_generator() -> None:
    found = {
        (str(path.relative_to(HERE)), name)
        for path in FILES
        for name in names_of(path)
        if is_global_generator(name)
    }
    assert found == SEEDS_TORCH


def test_the_check_itself_sees_every_way_to_a_global_generator(tmp_path: Path) -> None:
    for line in (
        "import random",
        "from random import shuffle",
        "import numpy as np; np.random.seed(1)",
        "import numpy; numpy.random.default_rng()",
        "from numpy.random import rand",
        "from numpy import random as rng; rng.shuffle([])",
        "import torch; torch.rand(3)",
        "from torch import randperm as order",
        "import torch; torch.cuda.manual_seed(1)",
    ):
        (tmp_path / "it.py").write_text(line)
        assert any(map(is_global_generator, names_of(tmp_path / "it.py"))), line
    (tmp_path / "it.py").write_text("import numpy as np\nnp.random.Generator(np.random.Philox(key=1)).random(3)")
    assert not any(map(is_global_generator, names_of(tmp_path / "it.py")))
