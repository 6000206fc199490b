"""Plots with names in any script. Warnings are errors in tests, so a missing glyph fails them."""

import subprocess
import sys
from io import BytesIO

import pytest
from facts import assert_facts
from matplotlib.figure import Figure
from PIL import Image

from teacher_cache.figure import render_png

NO_FONT = "\ufdd0"
"""A code point that is not a character, so that no font has it."""
NAMES = ["寿司", "हिन्दी", "🍣", "تفاح", "Müll", "a\tb", f"x{NO_FONT}y", "\udcff", "$5 & $x^{2$"]
NAMES += ["❤\ufe0f", "👩\u200d🚒"]  # with characters that only control their neighbors


def draw(names: list[str]) -> Figure:
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.plot(range(len(names)), range(len(names)), label=names[0])
    axes.set_yticks(range(len(names)), names)
    axes.set_title(names[-1])
    axes.text(0, 0, "\n".join(names), wrap=True)
    axes.legend()
    return figure


def test_names_of_every_script_are_drawn_without_a_warning() -> None:
    figure = draw(NAMES)
    with Image.open(BytesIO(render_png(figure))) as image:
        assert image.format == "PNG"
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert r"x\ufdd0y" in shown and r"\udcff" in shown and "Müll" in shown and "$5 & $x^{2$" in shown
    assert NO_FONT not in figure.axes[0].texts[0].get_text()


def test_escapes_are_reported_with_the_character(capsys: pytest.CaptureFixture[str]) -> None:
    render_png(draw(["\ufdd1"]))
    assert_facts(capsys.readouterr().err, "U+FDD1", r"\ufdd1", "font")


def test_plain_latin_names_read_no_other_font() -> None:
    script = "from test_figure import *; import teacher_cache.figure as f; render_png(draw(['Müll', 'a'])); "
    script += "assert f._is_scalable.cache_info().currsize == 0"
    folder = __file__.rpartition("/")[0]
    environment = f"import sys; sys.path[:0] = ['{folder}', '{folder}/../support']; "
    subprocess.run([sys.executable, "-c", environment + script], check=True)


def test_the_numbers_at_a_logarithmic_axis_stay_powers() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.loglog([1, 10, 1e6], [1, 2, 3], label="寿司")
    render_png(figure)
    assert axes.xaxis.get_ticklabels()[2].get_parse_math()


def test_the_origin_is_in_the_file() -> None:
    assert b"limbeck report 0123" in render_png(draw(["a"]), "limbeck report 0123")
