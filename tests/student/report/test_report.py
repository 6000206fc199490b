import json
import re
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from server.demo import accuracy_table
from student.bundle.bundle import open_bundle
from student.evaluation.predict import EvalOptions
from student.report import plots
from student.report.html_page import Part, isolate, write_page
from student.report.plots import curves
from student.report.report import Baselines, draw_curves, report
from student.report.tokens import token_statistics
from teacher_cache.data.index import ShardIndex
from teacher_cache.errors import RunError


def read_png(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def colored_pixels(picture: NDArray[np.uint8]) -> int:
    """Number of pixels that are not black, white or gray: those of the curves."""
    low, high = picture.min(axis=2).astype(int), picture.max(axis=2).astype(int)
    return int((high - low > 40).sum())


def journal(run: Path, heads: tuple[str, ...], epochs: int = 4) -> Path:
    """A run's folder with a journal in which every second epoch was evaluated."""
    run.mkdir()
    lines = [
        {
            "epoch": epoch,
            "loss": 3 / epoch,
            "loss_class": 2 / epoch,
            "accuracy": {head: 60 + 9 * epoch - 8 * n for n, head in enumerate(heads)} if epoch % 2 == 0 else {},
        }
        for epoch in range(1, epochs + 1)
    ]
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_a_loss_of_any_criterion_is_called_a_loss() -> None:
    left = curves({"bce": [{"epoch": 1, "loss_class": 0.1, "accuracy": {}}]}).axes[0]
    assert (left.get_xlabel(), left.get_ylabel()) == ("epoch", "loss on the true label")


def test_one_plot_has_the_curves_of_runs_with_one_and_two_heads(
    student_run: Path, alone_run: Path, tmp_path: Path
) -> None:
    draw_curves({"distilled": student_run, "alone": alone_run}, tmp_path / "curves.png")
    both = read_png(tmp_path / "curves.png")
    assert both.shape[0] > 300 and both.shape[1] > 800
    draw_curves({"alone": alone_run}, tmp_path / "alone.png")
    assert 0 < colored_pixels(read_png(tmp_path / "alone.png")) < colored_pixels(both)


def test_every_head_has_a_curve_of_its_own(tmp_path: Path) -> None:
    runs = {
        "one": journal(tmp_path / "one", ("class",)),
        "two": journal(tmp_path / "two", ("class", "distill", "joint")),
    }
    counts = []
    for name, run in runs.items():
        draw_curves({name: run}, tmp_path / f"{name}.png")
        counts.append(colored_pixels(read_png(tmp_path / f"{name}.png")))
    assert counts[1] > counts[0] * 1.3


def test_a_run_without_an_evaluation_has_a_loss_curve(tmp_path: Path) -> None:
    run = journal(tmp_path / "young", ("class",), epochs=1)
    draw_curves({"young": run, "old": journal(tmp_path / "old", ("class",))}, tmp_path / "both.png")
    draw_curves({"young": run}, tmp_path / "curves.png")
    assert read_png(tmp_path / "curves.png").shape == read_png(tmp_path / "both.png").shape


def test_a_run_without_a_journal_is_reported_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=str(tmp_path)):
        draw_curves({"none": tmp_path}, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_the_table_shows_a_dash_for_a_missing_head() -> None:
    rows = [
        ("teacher", {"class": 91.5}, 12.4),
        ("student", {"class": 80.0, "distill": 81.25, "joint": 82.126}, 100.0),
        ("pack", {}, 3.0),
    ]
    printed = StringIO()
    Console(file=printed, width=100).print(accuracy_table("top-1", rows))
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in printed.getvalue().splitlines() if "│" in line
    ]
    assert cells == [
        ["teacher", "91.50 %", "-", "-", "12"],
        ["student", "80.00 %", "81.25 %", "82.13 %", "100"],
        ["pack", "-", "-", "-", "3"],
    ]


SECTIONS = ["summary", "curves", "pace", "heads", "disagreement", "classes", "reliability", "cosine", "attention"]


def test_a_report_is_one_self_contained_page_and_its_plots(
    student_run: Path, alone_run: Path, teacher_run: Path, tmp_path: Path
) -> None:
    runs, options = [student_run, alone_run], EvalOptions(torch.device("cpu"), workers=0)
    page = report(runs, "", Baselines(teacher_run, alone_run), tmp_path / "report", options)
    text = page.read_text()
    assert re.findall(r'<section id="(\w+)">', text) == [*SECTIONS, "throughput"]
    assert not re.search(r'(src|href)="(?!data:image/png;base64,)', text)
    pictures = {path.stem: read_png(path) for path in page.parent.glob("*.png")}
    assert pictures.keys() == {*SECTIONS, "throughput"} - {"summary"}
    assert all(colored_pixels(picture) > 20 for picture in pictures.values())
    accuracy = open_bundle(student_run, torch.device("cpu")).card.accuracy
    cells = re.findall(r"<td>(.*?)</td>", text)
    assert cells[:3] == ["student", "raw", "class"] and cells[3].startswith(f"{accuracy['class']:.2f} (")
    rows = {tuple(cells[place : place + 3]): cells[place + 3] for place in range(0, len(cells), 8)}
    alone = open_bundle(alone_run, torch.device("cpu")).card.accuracy["class"]
    assert rows["undistilled", "raw", "class"].startswith(f"{alone:.2f} (")
    assert re.match(r"[\d.]+ \(", rows["teacher", "raw", "class"])


def test_a_missing_run_is_reported_and_nothing_is_written(student_run: Path, tmp_path: Path) -> None:
    options = EvalOptions(torch.device("cpu"), workers=0)
    with pytest.raises(RunError, match=str(tmp_path / "none")):
        report([student_run, tmp_path / "none"], "", Baselines(), tmp_path / "report", options)
    with pytest.raises(RunError):
        report([student_run, student_run], "", Baselines(), tmp_path / "report", options)
    assert not (tmp_path / "report").exists()


def test_attention_of_the_tokens_equals_timms(student_run: Path, shards: ShardIndex) -> None:
    bundle = open_bundle(student_run, torch.device("cpu"))
    pixels = torch.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3).remainder(251).to(torch.uint8)
    tokens = token_statistics(bundle, pixels)
    assert tokens is not None and tokens.attention.shape == (2, 2, 4, 4)
    assert len(tokens.cosine) == 3 and all(-1 <= value <= 1 for value in tokens.cosine)
    attention = bundle.student.network.get_submodule("blocks.1.attn")
    seen = []
    fused, attention.fused_attn = attention.fused_attn, False
    hook = attention.get_submodule("attn_drop").register_forward_hook(
        lambda _of, inputs, _out: seen.append(inputs[0])
    )
    heads = bundle.heads(pixels)
    hook.remove()
    attention.fused_attn = fused
    attention_weights = seen[0].mean(dim=1)[:, :2, 2:]
    shares = (attention_weights / attention_weights.sum(dim=-1, keepdim=True)).reshape(2, 2, 4, 4)
    assert torch.allclose(shares, tokens.attention, atol=1e-6)
    assert torch.allclose(bundle.heads(pixels).class_logits, heads.class_logits, atol=1e-5)


def test_a_convnet_has_no_token_statistics(teacher_run: Path) -> None:
    bundle = open_bundle(teacher_run, torch.device("cpu"))
    assert token_statistics(bundle, torch.zeros(1, 32, 32, 3, dtype=torch.uint8)) is None


def test_names_on_the_page_are_escaped_and_do_not_reorder_the_text(tmp_path: Path) -> None:
    name = "<b>תפוח</b> \udcff"
    part = Part(
        "curves", "Training", f"Run {isolate(name)}: 1 < 2", plots.new_figure(2, 2)[0], [("run",), (name,)]
    )
    page = write_page(
        tmp_path, f"Report of {isolate(name)}, {isolate('plain')}", "寿司", [part], "limbeck report 0123"
    )
    text = page.read_text(encoding="utf-8")
    assert '<meta charset="utf-8">' in text and "limbeck report 0123" in text and "寿司" in text
    assert "<b>" not in text and "\u2068&lt;b&gt;תפוח&lt;/b&gt; &#56575;\u2069, plain" in text
