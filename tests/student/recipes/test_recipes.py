"""Tests of every shipped recipe against the papers' tables, which were copied by hand."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from student.model.student import create_student
from student.recipe import TrainRecipe
from student.training.optim import create_optimizer, create_schedule
from teacher_cache.config import load_recipe
from teacher_cache.data.plan import PlanSpec, epoch_seeds
from teacher_cache.recipe import CacheRecipe
from teacher_cache.views.augment import parse_augment
from teacher_cache.views.policy import ViewPolicy

ROOT = Path(str(files("student"))).parent
RECIPES = sorted(
    path for folder in ("student", "teacher_cache") for path in (ROOT / folder / "recipes").glob("*.toml")
)
CACHE_RECIPES = {
    "imagenet_224.zarr": "imagenet_224",
    "imagenet_384.zarr": "imagenet_384",
    "cifar10.zarr": "cifar10_cache",
}
CACHE_RECIPES |= {"demo/cache.zarr": "demo_cache", "photos.zarr": "photos_cache"}

DEIT_VIEWS = {
    "interpolation": "bicubic",
    "hflip": 0.5,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.0,
    "re_prob": 0.25,
    "re_mode": "pixel",
    "re_count": 1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "mixup_prob": 1.0,
    "mixup_switch_prob": 0.5,
    "aug_repeats": 3,
}
DEIT = {
    "optim": {
        "name": "adamw",
        "lr": 5e-4 * 1024 / 512,
        "weight_decay": 0.05,
        "clip_grad": 0,
        "args": {"eps": 1e-8},
    },
    "schedule": {"epochs": 300, "warmup_epochs": 5, "warmup_lr": 1e-6, "min_lr": 1e-5},
    "eval": {"size": 224, "crop": 0.875},
    "train": {"batch": 1024, "ema": 0},
}
ALONE = {"distillation": "none", "smoothing": 0.1, "criterion": "cross-entropy"}
HARD = ALONE | {"distillation": "hard", "head": "distill"}
SIZES = {  # name in timm, width, heads, parameters in millions
    "ti": ("tiny", 192, 3, 5.7),
    "s": ("small", 384, 6, 22),
    "b": ("base", 768, 12, 86),
}
ACCURACY = {
    "deit_ti": 72.2,
    "deit_s": 79.8,
    "deit_b": 81.8,
    "deit_ti_distilled": 74.5,
    "deit_s_distilled": 81.2,
    "deit_b_distilled": 83.4,
    "deit_b_distilled_384": 84.5,
    "transfer_cifar10": 99.1,
    "rsb_a1": 80.4,
    "rsb_a2": 79.8,
    "rsb_a3": 78.1,
}
REAL_AND_V2 = {  # RSB, table 2: ImageNet-ReaL and ImageNet-V2
    "rsb_a1": (85.7, 68.5),
    "rsb_a2": (85.4, 67.8),
    "rsb_a3": (84.5, 65.7),
}
HOURS = {  # RSB, table 2, from memory: hours on four V100, GB of memory of each
    "rsb_a1": (110, 32),
    "rsb_a2": (55, 32),
    "rsb_a3": (15, 16),
}
IMAGES_PER_SECOND = {  # DeiT, table 5: on a V100
    "deit_ti_distilled": 2529.5,
    "deit_s_distilled": 936.2,
    "deit_b_distilled": 290.9,
    "deit_b_distilled_384": 85.8,
    "imagenet_224": 334.7,  # RegNetY-16GF, at 224 px
    "imagenet_384": 334.7,
}
RSB_ALL = {
    "hflip": 0.5,
    "cutmix": 1.0,
    "re_prob": 0.0,
    "color_jitter": 0.0,
    "mixup_prob": 1.0,
}
RSB = {  # epochs, size, lr, decay, smoothing, depth, repeats, RandAugment, mixup
    "rsb_a1": (600, 224, 5e-3, 0.01, 0.1, 0.05, 3, 7, 0.2),
    "rsb_a2": (300, 224, 5e-3, 0.02, 0.0, 0.05, 3, 7, 0.1),
    "rsb_a3": (100, 160, 8e-3, 0.02, 0.0, 0.0, 1, 6, 0.1),
}


def rsb(name: str) -> dict[str, dict[str, Any]]:
    epochs, size, lr, decay, smoothing, depth, repeats, magnitude, mixup = RSB[name]
    augment = f"rand-m{magnitude}-mstd0.5-inc1"
    return {
        "views": RSB_ALL | {"size": size, "auto_augment": augment, "mixup": mixup, "aug_repeats": repeats},
        "model": {"name": "resnet50", "args": {"drop_path_rate": depth} if depth else {}},
        "loss": {"distillation": "none", "criterion": "bce", "bce_targets": "multi-label", "smoothing": smoothing},
        "optim": {"name": "lamb", "lr": lr, "weight_decay": decay, "clip_grad": 0, "layer_decay": 1},
        "schedule": {"epochs": epochs, "warmup_epochs": 5},
        "train": {"batch": 2048, "ema": 0},
        "eval": {"size": 224, "crop": 0.95},
    }


PAPERS: dict[str, dict[str, dict[str, Any]]] = {name: rsb(name) for name in RSB}
for short, (size, *_) in SIZES.items():
    plain, distilled = f"deit_{size}_patch16_224", f"deit_{size}_distilled_patch16_224"
    depth = {"args": {"drop_path_rate": 0.1}}
    PAPERS[f"deit_{short}"] = DEIT | {
        "views": DEIT_VIEWS | {"size": 224},
        "model": {"name": plain, **depth},
        "loss": ALONE,
    }
    PAPERS[f"deit_{short}_distilled"] = DEIT | {
        "cache": {"path": "imagenet_224.zarr", "teacher": "regnety_160.deit_in1k"},
        "model": {"name": distilled, **depth},
        "loss": HARD,
    }
PAPERS["deit_b_distilled_384"] = {
    "cache": {"path": "imagenet_384.zarr", "teacher": "regnety_160.deit_in1k"},
    "model": {
        "name": "deit_base_distilled_patch16_384",
        "init_from": "runs/deit_b_distilled",
        "new_classes": False,
    },
    "loss": HARD,
    "optim": {"name": "adamw", "lr": 5e-6 * 512 / 512, "weight_decay": 1e-8},
    "schedule": {"epochs": 30, "min_lr": 5e-6},
    "train": {"batch": 512},
    "eval": {"size": 384, "crop": 0.875},
}
PAPERS["transfer_cifar10"] = {
    "views": DEIT_VIEWS | {"size": 224, "re_prob": 0.0},
    "model": {"args": {"drop_path_rate": 0.0}, "init_from": "runs/deit_b_distilled", "new_classes": True},
    "loss": {"distillation": "truth"},
    "optim": {"name": "sgd", "lr": 0.01, "weight_decay": 1e-4},
    "schedule": {"epochs": 1000},
    "train": {"batch": 768},
}
for size in (224, 384):
    PAPERS[f"imagenet_{size}"] = {
        "views": DEIT_VIEWS | {"size": size},
        "teacher": {"model": "regnety_160.deit_in1k"},
        "cache": {"encoding": "hard", "seeds": {224: 300, 384: 30}[size]},
    }


def open_recipe(path: Path) -> TrainRecipe | CacheRecipe:
    return load_recipe(path, TrainRecipe if path.parent.parent.name == "student" else CacheRecipe)


def path_of(name: str) -> Path:
    return next(path for path in RECIPES if path.stem == name)


def views_of(recipe: TrainRecipe) -> tuple[ViewPolicy, int]:
    """The view policy that a recipe trains on, and its number of seeds."""
    if recipe.cache is None:
        assert recipe.views is not None
        epochs, repeats = recipe.schedule.epochs, recipe.views.aug_repeats
        return recipe.views, -(-epochs // repeats) * repeats
    cache_recipe = load_recipe(path_of(CACHE_RECIPES[recipe.cache.path]), CacheRecipe)
    return cache_recipe.views, cache_recipe.cache.seeds


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_a_recipe_has_the_papers_numbers(name: str) -> None:
    recipe = open_recipe(path_of(name)).model_dump()
    for table, fields in PAPERS[name].items():
        found = {key: recipe[table][key] for key in fields}
        if table == "train" and (repeats := 1 if name == "rsb_a3" else 3) > 1:
            found["batch"] = nearest(fields["batch"], recipe["train"]["streams"] * repeats, found["batch"])
        if table == "optim":
            assert found.pop("lr") == pytest.approx(fields["lr"], rel=1e-12)
            fields = {key: value for key, value in fields.items() if key != "lr"}
        assert found == fields, (name, table)


def nearest(papers: int, step: int, batch_size: int) -> int:
    """The paper's batch size if `batch_size` is the nearest multiple of streams x repeats, else `batch_size`."""
    return papers if batch_size % step == 0 and abs(batch_size - papers) <= step / 2 else batch_size


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_title_command_and_cost(path: Path) -> None:
    head = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in head), "comment lines, then the tables"
    text = " ".join(line.removeprefix("# ") for line in head)
    assert f"{path.stem}.toml" in text and "Command: limbeck " in text and "Cost: " in text
    assert "Paper: " in text or "ours" in text.lower()
    assert max(len(line) for line in path.read_text(encoding="utf-8").splitlines()) <= 119
    if path.stem in ACCURACY:
        assert f"Expected: {ACCURACY[path.stem]} %" in text


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_a_recipe_states_the_papers_accuracy_on_other_sets_and_its_cost(name: str) -> None:
    recipe, head = open_recipe(path_of(name)), path_of(name).read_text().split("\n\n")[0].replace("\n# ", " ")
    cost = head.partition("Cost: ")[2]
    if name in REAL_AND_V2:
        real, v2 = REAL_AND_V2[name]
        assert re.search(rf"Expected: {ACCURACY[name]} %.*\bReaL\D*{real}\b.*\bV2\D*{v2}\b", head)
    if name in HOURS:
        hours, memory = HOURS[name]
        assert re.match(rf"\D*{hours} hours\b.*\bV100\b.*\b{memory} GB\b", cost)
    if name in IMAGES_PER_SECOND:
        assert f"{IMAGES_PER_SECOND[name]} images/s" in cost
    if views := re.search(r"\b(\d+) x 1\.28 million\D+(\d+) px", cost):
        assert isinstance(recipe, TrainRecipe)
        assert (int(views[1]), int(views[2])) == (recipe.schedule.epochs, recipe.eval.size)
    if name.startswith("imagenet"):
        assert isinstance(recipe, CacheRecipe)
        assert f"{recipe.cache.seeds * 1.28e6:.1e} views".replace("e+0", "e") in cost
    has_cost = name in HOURS.keys() | IMAGES_PER_SECOND.keys() or views
    assert has_cost or (name == "transfer_cifar10" and re.search(r"\b1000 x 50,000\D+224 px", cost))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_its_numbers_are_consistent(path: Path) -> None:
    recipe = open_recipe(path)
    if isinstance(recipe, CacheRecipe):
        parse_augment(recipe.views.auto_augment)
        assert recipe.cache.path in CACHE_RECIPES and CACHE_RECIPES[recipe.cache.path] == path.stem
        return
    optimizer = create_optimizer(recipe.optim, torch.nn.Linear(2, 2))
    create_schedule(recipe.schedule, optimizer, steps_per_epoch=10)
    policy, seeds = views_of(recipe)
    spec = PlanSpec(policy, seeds, recipe.train.batch, recipe.train.streams)
    last = epoch_seeds(spec, min(recipe.schedule.epochs, seeds) - 1)
    assert max(last) < seeds
    if recipe.cache and recipe.cache.path.startswith("imagenet"):
        assert seeds == recipe.schedule.epochs, "no view is shown twice"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_sets_every_key_that_its_paper_states(path: Path) -> None:
    if path.stem not in PAPERS:
        return
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    off = {"clip_grad", "layer_decay", "ema", "head", "criterion", "color_jitter", "new_classes"}
    for table, fields in PAPERS[path.stem].items():
        given = {key for key, value in fields.items() if value != {}}
        assert given - written.get(table, {}).keys() <= off


@pytest.mark.parametrize("name", [f"deit_{short}{kind}" for short in SIZES for kind in ("", "_distilled")])
def test_a_deit_has_the_papers_width_heads_and_parameters(name: str) -> None:
    recipe = load_recipe(path_of(name), TrainRecipe)
    _, width, heads, millions = SIZES[name.split("_")[1]]
    with torch.device("meta"):
        student = create_student(recipe.model, 1000, "distill" in recipe.loss.heads)
    network: Any = student.network
    assert (network.embed_dim, network.blocks[0].attn.num_heads, len(network.blocks)) == (width, heads, 12)
    assert network.patch_embed.patch_size == (16, 16)
    assert network.blocks[0].mlp.fc1.out_features == 4 * width
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.04)
    assert student.two_headed == name.endswith("distilled")


@pytest.mark.parametrize(
    ("name", "changes"), [("rsb_a1", ["model.args={}"]), ("rsb_a2", ["model.args={}"]), ("rsb_a3", [])]
)
def test_a_convnet_without_stochastic_depth_trains_by_rsb_with_the_documented_override(
    name: str, changes: list[str]
) -> None:
    assert not changes or f"--set '{changes[0]}'" in path_of(name).read_text().split("\n\n")[0]
    recipe = load_recipe(path_of(name), TrainRecipe, ["model.name=densenet121", *changes])
    with torch.device("meta"):
        student = create_student(recipe.model, 1000, False)
    assert sum(p.numel() for p in student.parameters()) / 1e6 == pytest.approx(8.0, rel=0.01)


def test_every_paper_recipe_ships() -> None:
    assert {*PAPERS, "rsb_small"} <= {path.stem for path in RECIPES}
    assert ACCURACY.keys() <= PAPERS.keys()
