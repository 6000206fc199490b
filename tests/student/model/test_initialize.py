"""Tests of networks that start from another's weights: at another size, for other classes, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
import torch.nn.functional as F
from facts import assert_facts
from safetensors.torch import save_file
from torch import nn

from student.bundle.bundle import open_bundle
from student.bundle.export import export
from student.model.initialize import initialize_from
from student.model.student import create_student
from student.recipe import ModelSpec, TrainRecipe
from student.training.loop import train
from teacher_cache.config import parse_recipe
from teacher_cache.errors import RecipeError, RunError

Recipes = Callable[..., TrainRecipe]

NAME = "deit_tiny_distilled_patch16_224"
ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "drop_path_rate": 0.1}
CLASSES = ("hopper", "logo", "parcel")
HEADS = {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def spec_of(start: object, name: str = NAME, **fields: Any) -> ModelSpec:
    tables = {"name": name, "args": ARGS, "init_from": str(start), **fields}
    return parse_recipe(json.loads(json.dumps(tables)), ModelSpec, "it")


def initialized(spec: ModelSpec, classes: tuple[str, ...] = CLASSES) -> nn.Module:
    network = create_student(spec, len(classes), distill_head=False).network
    initialize_from(network, spec, classes)
    return network


def refusal(spec: ModelSpec, classes: tuple[str, ...] = CLASSES) -> str:
    with pytest.raises((RecipeError, RunError)) as raised:
        initialized(spec, classes)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture(scope="session")
def trained(student_run: Path) -> dict[str, torch.Tensor]:
    return open_bundle(student_run, torch.device("cpu")).student.network.state_dict()


@pytest.mark.parametrize("bundled", [False, True], ids=["run", "bundle"])
def test_a_network_starts_from_the_weights_of_a_run_or_bundle(
    student_run: Path, trained: dict[str, torch.Tensor], tmp_path: Path, bundled: bool
) -> None:
    if bundled:
        export(student_run, tmp_path / "bundle")
    state = initialized(spec_of(tmp_path / "bundle" if bundled else student_run)).state_dict()
    assert state.keys() == trained.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.items())


@pytest.mark.parametrize("size", [16, 64])
def test_at_another_size_only_the_position_embedding_is_resized_as_in_deits_code(
    student_run: Path, trained: dict[str, torch.Tensor], size: int
) -> None:
    network = initialized(spec_of(student_run, args={**ARGS, "img_size": size}))
    state = network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.items() if name != "pos_embed")
    tokens, grid = trained["pos_embed"][:, :2], trained["pos_embed"][:, 2:]
    planes = grid.reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    expected = F.interpolate(planes, size=(size // 8, size // 8), mode="bicubic", align_corners=False)
    assert torch.equal(state["pos_embed"][:, :2], tokens)
    assert torch.equal(state["pos_embed"][:, 2:], expected.flatten(2).transpose(1, 2))
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 3)


def test_for_other_classes_only_the_heads_are_new(student_run: Path, trained: dict[str, torch.Tensor]) -> None:
    spec, classes = spec_of(student_run, new_classes=True), ("a", "b", "c", "d", "e")
    state = initialized(spec, classes).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.items() if name not in HEADS)
    assert {name for name in HEADS if len(state[name]) == 5} == HEADS
    same_number = initialized(spec, ("a", "b", "c")).state_dict()
    assert not any(torch.equal(same_number[name], trained[name]) for name in HEADS if name.endswith("weight"))


def test_a_convnet_starts_from_the_weights_of_a_run(teacher_run: Path) -> None:
    spec = spec_of(teacher_run, "resnet10t", args={"stem_type": "", "channels": [8, 8, 16, 16]}, small_stem=True)
    trained = open_bundle(teacher_run, torch.device("cpu")).student.network.state_dict()
    state = initialized(spec).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.items())
    transferred = initialized(spec.model_copy(update={"new_classes": True}), ("a", "b")).state_dict()
    changed = {name for name, tensor in trained.items() if not torch.equal(transferred[name], tensor)}
    assert changed == {"fc.weight", "fc.bias"}


def test_a_run_starts_from_another_at_twice_the_size(
    student_recipe: Recipes, student_run: Path, tmp_path: Path
) -> None:
    views = json.loads((student_run / "recipe.json").read_text())["views"]
    assert views is None, "the cache's manifest has them"
    larger = student_recipe(
        f'model.init_from="{student_run}"', "model.args.img_size=64", "eval.size=64", "loss.distillation=truth"
    )
    plain = {"size": 64, "hflip": 0.5, "auto_augment": "", "re_prob": 0.0, "mixup": 0.8, "cutmix": 1.0}
    tables = json.loads(larger.model_dump_json()) | {"cache": None, "views": plain}
    run = tmp_path / "run"
    assert set(train(parse_recipe(tables, TrainRecipe, "it"), run)) == {"class", "distill", "joint"}
    card = open_bundle(run, torch.device("cpu")).card
    assert card.eval.size == 64 and card.recipe["model"]["init_from"] == str(student_run)
    assert "init_from" not in json.loads((run / "final" / "card.json").read_text())["network"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A local cache of the Hugging Face Hub with the weights of a DeiT-Ti; the hub itself is offline."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = timm.create_model(NAME).state_dict()
    repository = tmp_path / f"models--timm--{NAME}.fb_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(state, repository / "snapshots" / ("0" * 40) / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return state


def test_a_network_starts_from_timms_weights_by_name(hub: dict[str, torch.Tensor]) -> None:
    spec = spec_of(NAME, args={"img_size": 96}, new_classes=True)
    state = initialized(spec).state_dict()
    assert all(torch.equal(state[name], hub[name]) for name in hub if name not in HEADS | {"pos_embed"})
    assert state["pos_embed"].shape == (1, 2 + 36, 192) and state["head.weight"].shape == (3, 192)
    assert torch.equal(state["pos_embed"][:, :2], hub["pos_embed"][:, :2])
    assert_facts(refusal(spec_of(NAME, args={})), "model.init_from", NAME, 1000, 3, "model.new_classes")


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"args": {**ARGS, "patch_size": 4}}, ("8 x 8", "4 x 4", "model.args.patch_size")),
        ({"args": {**ARGS, "embed_dim": 48}}, (NAME, "24)", "48)", "model.args")),
        ({"args": {**ARGS, "depth": 3}}, ("blocks.2.", "(24,)", "model.name", "model.args")),
        ({"args": {**ARGS, "depth": 1}}, ("blocks.1.", "(24,)", "model.name", "model.args")),
        ({"name": "deit_tiny_patch16_224"}, ("'deit_tiny_patch16_224'", "model.name")),
        ({"mean": (0.5, 0.5, 0.5)}, ("(0.485, 0.456, 0.406)", "(0.5, 0.5, 0.5)", "model.mean", "model.std")),
    ],
)
def test_a_network_that_does_not_match_its_start_is_refused_in_one_line(
    student_run: Path, fields: dict[str, Any], facts: tuple[str, ...]
) -> None:
    assert_facts(refusal(spec_of(student_run, **fields)), "model.init_from", student_run, *facts)


def test_other_classes_than_the_starts_are_refused_in_one_line(student_run: Path) -> None:
    spec = spec_of(student_run)
    assert_facts(refusal(spec, ("a", "b")), student_run, "3 classes", 2, "model.new_classes")
    renamed = refusal(spec, ("hopper", "brand", "parcel"))
    assert_facts(renamed, student_run, "class 1", "'logo'", "'brand'", "model.new_classes")


def test_an_unknown_start_is_refused_in_one_line(student_run: Path, tmp_path: Path) -> None:
    assert_facts(refusal(spec_of("runs/none")), "model.init_from", "runs/none")
    (tmp_path / "recipe.json").write_text("{}")
    assert_facts(refusal(spec_of(tmp_path)), tmp_path, "limbeck train")
