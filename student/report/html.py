"""One self-contained HTML page of titled parts, and its pictures as PNG files beside it."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from teacher_cache.storage.atomic import write_atomic

PAGE_NAME = "report.html"


@dataclass(frozen=True)
class Part:
    """A section: name (of its PNG too), title, a sentence, and a figure or a table (its first row the heading)."""

    name: str
    title: str
    text: str
    figure: Figure | None = None
    table: Sequence[Sequence[str]] = ()


def write_page(folder: Path, title: str, subtitle: str, parts: Sequence[Part]) -> Path:
    """Write report.html, whose pictures are inside it, and NAME.png for each; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for part in parts:
        image = ""
        if part.figure is not None:
            png = _png(part.figure)
            write_atomic(folder / f"{part.name}.png", png)
            image = b64encode(png).decode()
        sections.append({"part": part, "image": image})
    templates = Environment(loader=PackageLoader("student"), undefined=StrictUndefined, autoescape=True)
    page = templates.get_template("report.html.j2").render(title=title, subtitle=subtitle, parts=sections)
    write_atomic(folder / PAGE_NAME, page.encode())
    return folder / PAGE_NAME


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
