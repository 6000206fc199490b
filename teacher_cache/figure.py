"""Figures as PNG images: names in any script are drawn with a font that has their glyphs, or as escapes."""

import unicodedata
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, findSystemFonts, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter

from teacher_cache.console import log_line

NO_GLYPHS = "Last Resort"
"""Start of the names of fonts whose glyphs are boxes."""


def render_png(figure: Figure, origin: str = "") -> bytes:
    """The figure as a PNG. origin: a comment in the file, by `origin_of`.

    All text is plain: a dollar sign does not start a formula. Characters without a font become escapes, such as
    \\u5bff; one line reports it.
    """
    texts = list(_plain_texts(figure))
    for text in texts:
        text.set_parse_math(False)
    characters = frozenset("".join(text.get_text() for text in texts))
    families, missing = _fonts_for(frozenset(filter(_needs_font, characters)))
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *families])
        text.set_text(_escape(text.get_text(), missing))
    for axis in _named_axes(figure):
        labels = [text.get_text() for text in axis.get_ticklabels()]
        axis.set_ticks(axis.get_ticklocs(), labels=[_escape(label, missing) for label in labels])
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Comment": origin} if origin else None)
    return buffer.getvalue()


def _plain_texts(figure: Figure) -> Iterator[Text]:
    """All text of a figure but the numbers at the ticks, which matplotlib may write as formulas."""
    named = {id(axis) for axis in _named_axes(figure)}
    numbers = {
        id(text)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        if id(axis) not in named
        for text in axis.get_ticklabels(which="both")
    }
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in numbers:
            yield text


def _named_axes(figure: Figure) -> list[Any]:
    """The axes whose ticks have names."""
    axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    return [axis for axis in axes if isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter)]


def _needs_font(character: str) -> bool:
    return character not in _characters_of(findfont(FontProperties())) and character != "\n"


@cache
def _fonts_for(wanted: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Font families that have the wanted characters, and the characters that no installed font has."""
    families: list[str] = []
    missing = {character for character in wanted if not _is_invisible(character)}
    if missing:
        for family, path in _installed_fonts():
            if found := missing & _characters_of(path):
                families.append(family)
                missing -= found
            if not missing:
                break
    if missing:
        example = min(missing)
        log_line(
            f"no installed font has '{example}' (U+{ord(example):04X}); the plots show {_escape_one(example)}; "
            "to see it, install a font, e.g. Debian's fonts-noto-cjk or fonts-noto-core"
        )
    return tuple(families), frozenset(missing | {character for character in wanted if _is_invisible(character)})


def _installed_fonts() -> Iterator[tuple[str, str]]:
    """Family and path of one upright font of normal weight of each installed family."""
    known = {entry.fname for entry in fontManager.ttflist}
    for path in findSystemFonts():
        if path not in known and _is_scalable(path):  # installed after matplotlib listed the fonts
            fontManager.addfont(path)
    seen: set[str] = set()
    for entry in sorted(fontManager.ttflist, key=_preference):
        if entry.name not in seen and not entry.name.startswith(NO_GLYPHS) and _is_scalable(entry.fname):
            seen.add(entry.name)
            yield entry.name, entry.fname


def _preference(entry: FontEntry) -> tuple[bool, bool, bool, str]:
    upright, normal = entry.style == "normal", entry.weight in (400, "normal", "regular")
    return not upright, not normal, "Sans" not in entry.name, entry.name


@cache
def _is_scalable(path: str) -> bool:
    """Whether matplotlib can draw a font: not one of bitmaps, such as color emoji, and not a damaged file."""
    try:
        return bool(get_font(path).scalable)
    except (OSError, RuntimeError):
        return False


@cache
def _characters_of(path: str) -> frozenset[str]:
    return frozenset(map(chr, get_font(path).get_charmap()))


def _is_invisible(character: str) -> bool:
    """Whether a character only controls how its neighbors are shown: joiners, directions, variation selectors."""
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


def _escape(text: str, missing: frozenset[str]) -> str:
    return "".join(_escape_one(character) if character in missing else character for character in text)


def _escape_one(character: str) -> str:
    return "" if _is_invisible(character) else character.encode("ascii", "backslashreplace").decode()
