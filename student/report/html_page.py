"""Write a report: one self-contained HTML page, and its plots as PNG files next to it."""

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
    """A section of the page. name: also of its PNG. table: the first row is the header."""

    name: str
    title: str
    text: str
    figure: Figure | None = None
    table: Sequence[Sequence[str]] = ()


def write_page(folder: Path, title: str, subtitle: str, parts: Sequence[Part]) -> Path:
    """Write report.html with embedded plots, and NAME.png for each plot. Returns the path of the page."""
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
    write_atomic(folder / PAGE_NAME, page.encode(errors="xmlcharrefreplace"))
    return folder / PAGE_NAME


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
