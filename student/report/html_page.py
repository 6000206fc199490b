"""Write a report: one self-contained HTML page, and its plots as PNG files next to it."""

import unicodedata
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from teacher_cache.figure import render_png
from teacher_cache.storage.atomic import write_atomic

PAGE_NAME = "report.html"


@dataclass(frozen=True)
class Part:
    """A section of the page. name: also of its PNG. table: the first row is the header."""

    name: str
    title: str
    text: str
    figure: Figure | None = None
    table: Sequence[Sequence[str]] = ()


def isolate(name: str) -> str:
    """The name for use in a sentence: a right-to-left name does not change the order of the text around it."""
    is_right_to_left = any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in name)
    return f"\u2068{name}\u2069" if is_right_to_left else name


def write_page(folder: Path, title: str, subtitle: str, parts: Sequence[Part], origin: str = "") -> Path:
    """Write report.html with embedded plots, and NAME.png for each plot. Returns the path of the page.

    origin: identifies the command and its inputs, by `origin_of`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for part in parts:
        image = ""
        if part.figure is not None:
            png = render_png(part.figure, origin)
            write_atomic(folder / f"{part.name}.png", png)
            image = b64encode(png).decode()
        sections.append({"part": part, "image": image})
    templates = Environment(loader=PackageLoader("student"), undefined=StrictUndefined, autoescape=True)
    page = templates.get_template("report.html.j2").render(
        title=title, subtitle=subtitle, parts=sections, origin=origin
    )
    write_atomic(folder / PAGE_NAME, page.encode(errors="xmlcharrefreplace"))
    return folder / PAGE_NAME
