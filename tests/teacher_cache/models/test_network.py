"""Networks, cards and teachers: saving, loading, and one-line errors for invalid ones."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from facts import assert_facts
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from teacher_cache.errors import LimbeckError, RecipeError, RunError
from teacher_cache.models.card import CARD_NAME, Card, load_card
from teacher_cache.models.network import create_network, normalize
from teacher_cache.models.run_folder import FINAL
from teacher_cache.models.spec import MEAN, STD, NetworkSpec, TeacherSpec
from teacher_cache.models.teacher import check_size, load_teacher, patch_size
from teacher_cache.models.weights import LABELS_NAME, WEIGHTS_NAME, load_network, save_network, weights_sha256

ARGS = {"stem_type": "", "channels": [8, 8, 16, 16]}


@pytest.fixture
def folder(teacher_run: Path, tmp_path: Path) -> Path:
    """A copy of the network's folder, for a test to damage."""
    return Path(shutil.copytree(teacher_run / FINAL, tmp_path / "network"))


def edit(folder: Path, **changes: object) -> None:
    card = json.loads((folder / CARD_NAME).read_text())
    (folder / CARD_NAME).write_text(json.dumps({**card, **changes}))


def test_saved_network_is_loaded_unchanged(teacher_run: Path, tmp_path: Path) -> None:
    card, network = load_network(teacher_run / FINAL)
    assert not network.training and weights_sha256(network.state_dict()) == card.sha256
    save_network(tmp_path / "again", card, network.state_dict())
    other, twin = load_network(tmp_path / "again")
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert other == card and (twin(pixels) == network(pixels)).all()
    assert (tmp_path / "again" / LABELS_NAME).read_text() == "hopper\nlogo\nparcel\n"
    assert (tmp_path / "again" / WEIGHTS_NAME).read_bytes() == (teacher_run / FINAL / WEIGHTS_NAME).read_bytes()


def test_existing_folder_is_never_overwritten(teacher_run: Path, folder: Path) -> None:
    card, network = load_network(teacher_run / FINAL)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RunError, match=re.escape(f"'{folder}'")):
        save_network(folder, card, network.state_dict())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["network"]


@pytest.mark.parametrize(
    ("spec", "facts"),
    [
        ({"name": "resnet10"}, ["model.name", "'resnet10'", "resnet10t"]),
        ({"name": "qqqqqq"}, ["model.name", "'qqqqqq'", "timm.list_models()"]),
        ({"name": ""}, ["model.name", "''"]),
        ({"name": "resnet10t", "args": {"chanels": [8, 8, 8, 8]}}, ["'resnet10t'", "'chanels'"]),
        ({"name": "resnet10t", "args": {"channels": 8}}, ["'resnet10t'", "{'channels': 8}"]),
        (
            {"name": "vit_tiny_patch16_224", "args": {"num_heads": 5}},
            ["'vit_tiny_patch16_224'", "{'num_heads': 5}"],
        ),
        ({"name": "resnet10t", "small_stem": True}, ["small_stem", "'resnet10t'"]),
        ({"name": "vit_tiny_patch16_224", "small_stem": True}, ["small_stem", "'vit_tiny_patch16_224'"]),
    ],
)
def test_network_that_cannot_be_created_is_one_line_error(spec: dict[str, object], facts: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        create_network(NetworkSpec(**spec), 3)
    assert_facts(caught.value, *facts)
    assert "\n" not in str(caught.value)


def test_a_small_stem_keeps_the_size_of_small_images() -> None:
    network = create_network(NetworkSpec(name="resnet10t", args=ARGS, small_stem=True), 3)
    seen = []
    network.layer1.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    assert seen == [(2, 8, 32, 32)]


def cut(folder: Path) -> None:
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder: Path) -> None:
    path = folder / WEIGHTS_NAME
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def swap(folder: Path) -> None:
    state = load_file(folder / WEIGHTS_NAME)
    state["fc.bias"] += 1
    save_file(state, folder / WEIGHTS_NAME)


def empty(folder: Path) -> None:
    (folder / WEIGHTS_NAME).write_bytes(b"")


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS_NAME).unlink()


def without_card(folder: Path) -> None:
    (folder / CARD_NAME).unlink()


def half_a_card(folder: Path) -> None:
    text = (folder / CARD_NAME).read_text()
    (folder / CARD_NAME).write_text(text[: len(text) // 2])


def card_of_a_list(folder: Path) -> None:
    (folder / CARD_NAME).write_text("[]")


def card_without_classes(folder: Path) -> None:
    card = json.loads((folder / CARD_NAME).read_text())
    del card["classes"]
    (folder / CARD_NAME).write_text(json.dumps(card))


def card_with_more(folder: Path) -> None:
    edit(folder, colour="red")


def card_of_the_future(folder: Path) -> None:
    edit(folder, format=99)


def card_of_more_classes(folder: Path) -> None:
    edit(folder, classes=["a", "b", "c", "d"])


def card_of_another_network(folder: Path) -> None:
    edit(folder, network={"name": "resnet10t", "args": {**ARGS, "channels": [8, 8, 16, 32]}, "small_stem": True})


@pytest.mark.parametrize(
    ("spoil", "facts"),
    [
        (cut, [WEIGHTS_NAME]),
        (empty, [WEIGHTS_NAME]),
        (flip, [WEIGHTS_NAME, "sha256"]),
        (swap, [WEIGHTS_NAME, "sha256"]),
        (without_weights, [WEIGHTS_NAME]),
        (without_card, [CARD_NAME, "limbeck export"]),
        (half_a_card, [CARD_NAME]),
        (card_of_a_list, [CARD_NAME]),
        (card_without_classes, [CARD_NAME, "'classes'"]),
        (card_with_more, [CARD_NAME, "'colour'"]),
        (card_of_the_future, [CARD_NAME, "format 99", 1]),
        (card_of_more_classes, [WEIGHTS_NAME, "fc.weight"]),
        (card_of_another_network, [WEIGHTS_NAME, "layer4"]),
    ],
)
def test_damaged_folder_is_one_line_error(
    folder: Path, spoil: Callable[[Path], None], facts: list[object]
) -> None:
    spoil(folder)
    with pytest.raises(RunError) as caught:
        load_network(folder)
    assert_facts(caught.value, folder, *facts)
    assert "\n" not in str(caught.value)


@given(place=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_flipped_bit_never_gives_other_weights(
    teacher_run: Path, place: float, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    shutil.copytree(teacher_run / FINAL, folder, dirs_exist_ok=True)
    data = bytearray((folder / WEIGHTS_NAME).read_bytes())
    data[int(place * (len(data) - 1))] ^= 1 << bit
    (folder / WEIGHTS_NAME).write_bytes(data)
    try:
        _, network = load_network(folder)
    except RunError as error:
        assert "\n" not in str(error)
    else:
        assert weights_sha256(network.state_dict()) == load_card(folder).sha256


def test_the_hash_is_of_names_types_shapes_and_bytes() -> None:
    weights = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.int64)}
    same = {"b": weights["b"].clone(), "a": torch.arange(12.0)[::2] / 2}
    others = [
        {"a": weights["a"], "c": weights["b"]},
        {**weights, "a": weights["a"].view(2, 3)},
        {**weights, "a": weights["a"].double()},
        {**weights, "a": weights["a"] + torch.tensor([0, 0, 0, 0, 0, 1e-6])},
        {"a": weights["a"]},
    ]
    assert weights_sha256(same) == weights_sha256(weights)
    assert len({weights_sha256(state) for state in (weights, *others)}) == 6


def test_normalize_equals_torchvision() -> None:
    pixels = torch.arange(256.0).repeat(3, 1)[None, :, None]
    wanted = (pixels / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    assert normalize(pixels, MEAN, STD).numpy() == pytest.approx(wanted.numpy(), abs=2e-6)


def two_headed(folder: Path) -> TeacherSpec:
    edit(folder, heads=["class", "distill"])
    return TeacherSpec(run=str(folder))


@pytest.mark.parametrize(
    ("spec", "classes", "facts"),
    [
        (lambda folder: TeacherSpec(run=str(folder)), 4, ["'resnet10t'", "3 classes", 4]),
        (lambda folder: TeacherSpec(run=str(folder.parent)), 3, ["teacher.run", CARD_NAME, "train"]),
        (two_headed, 3, ["teacher.run", "head"]),
        (lambda folder: TeacherSpec(model="resnet10tt"), 3, ["teacher.model", "'resnet10tt'", "resnet10t,"]),
        (
            lambda folder: TeacherSpec(model="resnet10t", weights=str(folder / "w.pth")),
            3,
            ["teacher.weights", "w.pth"],
        ),
        (
            lambda folder: TeacherSpec(model="resnet10t", weights=str(folder / CARD_NAME)),
            3,
            ["'resnet10t'", f"/{CARD_NAME}"],
        ),
    ],
)
def test_unusable_teacher_is_one_line_error(
    folder: Path, spec: Callable[[Path], TeacherSpec], classes: int, facts: list[object]
) -> None:
    with pytest.raises(LimbeckError) as caught:
        load_teacher(spec(folder), (*load_card(folder).classes, "more")[:classes], 32)
    assert_facts(caught.value, *facts)
    assert "\n" not in str(caught.value)


def test_a_timm_model_with_local_weights_is_a_teacher(tmp_path: Path) -> None:
    network = create_network(NetworkSpec(name="resnet10t"), 3)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    teacher = load_teacher(
        TeacherSpec(model="resnet10t", weights=str(tmp_path / "w.safetensors")), ("a", "b", "c"), 64
    )
    assert teacher.identity()["sha256"] == weights_sha256(network.state_dict())
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = network.eval()(normalize(pixels.float(), teacher.mean, teacher.std))
    assert torch.allclose(teacher(pixels), wanted, atol=1e-5)  # its memory format differs: channels last
    assert teacher(pixels).dtype == torch.float32


@pytest.mark.parametrize("given", [{}, {"mean": (0.5, 0.4, 0.0)}, {"std": (1.0, 0.5, 1 / 255)}])
def test_local_weights_have_the_recipes_mean_and_std_or_timms(given: dict[str, Any], tmp_path: Path) -> None:
    network = create_network(NetworkSpec(name="resnet10t"), 3)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    spec = TeacherSpec(model="resnet10t", weights=str(tmp_path / "w.safetensors"), **given)
    teacher = load_teacher(spec, ("a", "b", "c"), 64)
    config = network.pretrained_cfg
    expected = {"mean": config["mean"], "std": config["std"]} | given
    assert {name: teacher.identity()[name] for name in ("mean", "std")} == {
        name: list(values) for name, values in expected.items()
    }
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        mean, std = (torch.tensor(expected[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        wanted = network.eval()((pixels / 255 - mean) / std)
    assert torch.allclose(teacher(pixels), wanted, atol=1e-3, rtol=1e-3)


def test_a_teacher_stays_in_evaluation_mode(teacher_run: Path) -> None:
    teacher = load_teacher(TeacherSpec(run=str(teacher_run)), load_card(teacher_run / FINAL).classes, 32)
    before = teacher.identity()
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert (
        teacher(pixels)[:1] - teacher(pixels[:1])
    ).abs().max() < 1e-4  # other images of the batch do not matter
    assert teacher.identity() == before and isinstance(load_card(teacher_run / FINAL), Card)


def test_a_teacher_of_the_same_classes_in_another_order_is_refused(teacher_run: Path) -> None:
    names = load_card(teacher_run / FINAL).classes
    with pytest.raises(LimbeckError) as caught:
        load_teacher(TeacherSpec(run=str(teacher_run)), (names[1], names[0], *names[2:]), 32)
    assert_facts(caught.value, "teacher.run", teacher_run, "class 0", f"'{names[0]}'", f"'{names[1]}'")


def test_teacher_for_another_image_size_is_refused(tmp_path: Path) -> None:
    network = create_network(NetworkSpec(name="deit_tiny_patch16_224"), 3)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    spec = TeacherSpec(model="deit_tiny_patch16_224", weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(LimbeckError) as caught:
        load_teacher(spec, ("a", "b", "c"), 32)
    assert_facts(caught.value, "'deit_tiny_patch16_224'", "views.size", 32)
    assert "\n" not in str(caught.value)


SMALL = {"embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "size", "args"),
    [
        ("deit_tiny_patch16_224", 30, {"img_size": 30, "patch_size": 8, **SMALL}),
        ("deit_tiny_patch16_224", 230, {"img_size": 230, **SMALL}),
        ("mixer_s32_224", 40, {"img_size": 40}),  # timm names its patches differently
    ],
)
def test_size_that_is_not_a_multiple_of_the_patch_is_refused(
    name: str, size: int, args: dict[str, object]
) -> None:
    network = create_network(NetworkSpec(name=name, args=args), 3)
    patch = patch_size(network)
    with pytest.raises(RecipeError) as caught:
        check_size(network, "model", name, "views.size", size)
    assert_facts(caught.value, f"model '{name}'", "views.size", size, patch)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet10t", {}),
        ("pvt_v2_b0", {}),
        ("xcit_nano_12_p16_224", {}),
        ("deit_tiny_patch16_224", {"img_size": 48, "dynamic_img_size": True, "dynamic_img_pad": True, **SMALL}),
    ],
)
def test_networks_that_pad_or_use_no_patches_take_any_size(name: str, args: dict[str, object]) -> None:
    network = create_network(NetworkSpec(name=name, args=args), 3)
    assert patch_size(network) == 1
    check_size(network, "model", name, "views.size", 46)


def test_a_padded_batch_has_the_logits_of_its_views(teacher_run: Path) -> None:
    """So that a compiled teacher sees one batch size."""
    teacher = load_teacher(TeacherSpec(run=str(teacher_run)), ("hopper", "logo", "parcel"), 32)
    pixels = torch.arange(5 * 3 * 32 * 32).reshape(5, 3, 32, 32).remainder(251).to(torch.uint8)
    plain, sizes = teacher(pixels), []
    teacher.pad_to = 8
    teacher.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    assert torch.allclose(teacher(pixels), plain, atol=1e-5)
    assert sizes == [8] and len(plain) == 5
