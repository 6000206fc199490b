"""The web page: choose an image, see each head's prediction and each token's attention. It uses no other host."""

from pathlib import Path
from string import Template

from fastapi import FastAPI, HTTPException, Response

from server.settings import Settings
from server.web.proxies import checked_root_path

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}
_MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}


def add_page(app: FastAPI, settings: Settings) -> None:
    """Add the routes of the page, `/` and `/page/...`. The files are read once, here."""
    files = {path.name: path for path in Path(__file__).parent.iterdir() if path.suffix in _MEDIA_TYPES}
    contents = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    prefix = checked_root_path(settings.root_path)
    home = Template(contents.pop("index.html")).substitute(
        root=f"{prefix}/" if prefix else "",  # relative if the prefix is unknown
        max_bytes=settings.max_body_bytes,
        max_megabytes=f"{settings.max_body_bytes / 1e6:g}",
    )

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return Response(home, media_type=_MEDIA_TYPES[".html"], headers=HEADERS)

    @app.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in contents:
            raise HTTPException(404, "Not Found")
        return Response(contents[name], media_type=_MEDIA_TYPES[Path(name).suffix], headers=HEADERS)
