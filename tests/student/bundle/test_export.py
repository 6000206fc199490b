import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from facts import assert_facts
from safetensors.torch import load_file
from torch import Tensor

import student.bundle.onnx
from student.bundle.bundle import open_bundle
from student.bundle.check_images import load_check, make_check
from student.bundle.export import ExportOptions, export
from student.bundle.onnx import compare_with_torch
from student.model.student import Heads
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import RunError, ShardError
from teacher_cache.models.network import normalize
from teacher_cache.rng import generator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(student_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two heads and an ONNX file."""
    out = tmp_path_factory.mktemp("bundles") / "two"
    result = export(student_run, out, ExportOptions(licence="cc-by-4.0", onnx=True))
    assert result.difference is not None and 0 <= result.difference < 1e-5
    return out


@pytest.fixture(scope="module")
def one_headed(alone_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "one"
    export(alone_run, out, ExportOptions(onnx=True))
    return out


def pictures(count: int) -> Tensor:
    return torch.from_numpy(generator("pictures").integers(0, 256, (count, 32, 32, 3), dtype="uint8"))


def test_timm_opens_a_bundle_without_limbeck_and_averages_its_heads(folder: Path) -> None:
    bundle, pixels = open_bundle(folder, CPU), pictures(3)
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    found = timm.data.resolve_data_config(network.pretrained_cfg)
    spec, network_card = bundle.card.eval, bundle.card.network
    assert (found["input_size"], found["crop_pct"], found["interpolation"]) == ((3, 32, 32), spec.crop, "bicubic")
    assert (tuple(found["mean"]), tuple(found["std"])) == (network_card.mean, network_card.std)
    assert network.pretrained_cfg["label_names"] == ["hopper", "logo", "parcel"]
    images = normalize(pixels.permute(0, 3, 1, 2).float(), found["mean"], found["std"])
    with torch.inference_mode():
        probabilities = network(images).softmax(dim=1)
    assert torch.allclose(probabilities, bundle.predict(pixels, "logit-mean").fused, atol=1e-6)


@pytest.mark.parametrize("images", [1, 2, 7])
def test_onnx_outputs_equal_torchs_for_any_batch(folder: Path, images: int) -> None:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = pictures(images)
    outputs = session.run(["class_logits", "distill_logits"], {"pixels": pixels.numpy()})
    heads = open_bundle(folder, CPU).heads(pixels)
    for logits, torch_logits in zip(outputs, heads, strict=True):
        assert logits.shape == (images, 3) and np.abs(logits - torch_logits.numpy()).max() < 1e-5
    assert not np.allclose(outputs[0], outputs[1])


def test_an_onnx_file_states_its_weights_and_its_difference_from_torch(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["sha256"] == json.loads((folder / "card.json").read_text())["sha256"]
    readme = (folder / "README.md").read_text()
    assert f"{float(metadata['difference']):.1e}" in readme
    onnx.checker.check_model(model, full_check=True)


def test_an_onnx_file_has_no_paths_of_the_exporting_machine(folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    for module in (student.bundle.onnx, torch, timm):
        assert str(Path(module.__file__).parent).encode() not in data
    assert b"stack_trace" not in data
    model = onnx.load(folder / "model.onnx")
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    assert {entry.key for entry in model.metadata_props} == {"sha256", "difference"}


def test_a_one_headed_onnx_file_has_the_class_logits(one_headed: Path) -> None:
    session = onnxruntime.InferenceSession(one_headed / "model.onnx", providers=["CPUExecutionProvider"])
    outputs = session.run(["class_logits"], {"pixels": pictures(2).numpy()})[0]
    assert np.abs(outputs - open_bundle(one_headed, CPU).heads(pictures(2)).class_logits.numpy()).max() < 1e-5


def test_an_export_that_differs_from_torch_is_refused(folder: Path) -> None:
    check = load_check(folder)
    wrong = replace(check, heads=Heads(check.heads.class_logits + 0.01, check.heads.distill_logits))
    with pytest.raises(RunError) as raised:
        compare_with_torch(folder / "model.onnx", wrong)
    assert_facts(raised.value, "model.onnx", "1.0e-02", "--onnx")


def test_check_images_come_from_the_data_set_with_logits_of_single_images(
    folder: Path, shards: ShardIndex
) -> None:
    bundle, check = open_bundle(folder, CPU), load_check(folder)
    records = [record for shard in range(3) for record in read_shard(shards, shard)]
    chosen = [records[number * 5] for number in range(8)]  # evenly spaced over 40
    assert check.keys == [record.key for record in chosen]
    assert (check.pixels.dtype, check.pixels.shape) == (torch.uint8, (8, 32, 32, 3))
    for place, record in enumerate(chosen):
        assert np.array_equal(check.pixels[place], bundle.prepare(record.image))
        heads = bundle.heads(check.pixels[place : place + 1])
        assert torch.equal(heads.class_logits[0], check.heads.class_logits[place])
        assert torch.equal(heads.distill_logits[0], check.heads.distill_logits[place])
    assert {name: part.dtype for name, part in load_file(folder / "check.safetensors").items()} == {
        "pixels": torch.uint8,
        "class_logits": torch.float32,
        "distill_logits": torch.float32,
    }


def test_a_small_data_set_gives_all_its_images_to_the_check(folder: Path, shards: ShardIndex) -> None:
    few = replace(shards, shards=shards.shards[2:])
    bundle = open_bundle(folder, CPU)
    assert len(make_check(bundle, few).keys) == 8
    assert make_check(bundle, few).keys == [record.key for record in read_shard(few, 0)]


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_a_damaged_check_file_is_reported_with_its_path(folder: Path, tmp_path: Path, cut: int) -> None:
    (tmp_path / "check.safetensors").write_bytes((folder / "check.safetensors").read_bytes()[:cut])
    with pytest.raises(RunError, match=str(tmp_path / "check.safetensors")):
        load_check(tmp_path)
    with pytest.raises(RunError, match=str(tmp_path / "nowhere" / "check.safetensors")):
        load_check(tmp_path / "nowhere")


def test_the_readme_states_the_facts_of_the_model_card(folder: Path, one_headed: Path, shards: ShardIndex) -> None:
    two, one = ((path / "README.md").read_text() for path in (folder, one_headed))
    card = open_bundle(folder, CPU).card
    assert two.startswith("---\nlibrary_name: timm\n") and "\nlicense: cc-by-4.0\n" in two
    assert_facts(two, "# deit_tiny_distilled_patch16_224", "3 classes", "hopper, logo, parcel")
    assert_facts(two, "| fusion | softmax-sum |", "| cc-by-4.0 |", f"| joint | {card.accuracy['joint']:.2f} |")
    assert_facts(two, shards.folder, "36 px", "bicubic", "32 x 32", '"smoothing": 0.1', "`model.onnx`")
    assert "| heads | class |" in one and "joint" not in one and "logit-mean" not in one
    assert "\nlicense: other\n" in one and "cc-by-4.0" not in one
    assert "{{" not in two + one and "{%" not in two + one


def test_a_missing_package_is_reported_before_anything_is_written(
    student_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = student.bundle.onnx.find_spec
    missing = "onnxruntime"
    monkeypatch.setattr(student.bundle.onnx, "find_spec", lambda name: None if name == missing else real(name))
    with pytest.raises(RunError) as raised:
        export(student_run, tmp_path / "bundle", ExportOptions(onnx=True))
    assert_facts(raised.value, "--onnx", "onnxruntime", "pip install 'limbeck[onnx]'")
    assert not list(tmp_path.iterdir())


def test_missing_check_images_are_reported_with_their_option(student_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError) as raised:
        export(student_run, tmp_path / "bundle", ExportOptions(images=str(tmp_path / "none")))
    assert_facts(raised.value, f"'{tmp_path}/none'", "--images")
