"""Requests to /v1/classify and checks of their answers."""

import re
from typing import Any

import httpx
from facts import assert_facts


def by_one(client: httpx.Client, image: bytes, **query: object) -> dict[str, Any]:
    return answer(client, image, model="one", **query)


def answer(client: httpx.Client, image: bytes, **query: object) -> dict[str, Any]:
    """Classify one image that must succeed; return its entry."""
    response = client.post("/v1/classify", content=image, params=query)
    assert response.status_code == 200, response.text
    (entry,) = response.json()["images"]
    return entry


def untimed(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if not name.endswith("_ms")}


def form(images: list[bytes], field: str = "image") -> list[tuple[str, tuple[str, bytes]]]:
    return [(field, ("picture", image)) for image in images]


def by_class(verdict: dict[str, Any]) -> list[float]:
    return [score["probability"] for score in sorted(verdict["top_k"], key=lambda score: score["index"])]


def refused(response: httpx.Response, status: int, *facts: object) -> None:
    """Assert a one-line error with this status that contains the facts and no internals."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["detail"]
    detail = response.json()["detail"]
    assert_facts(detail, *facts)
    assert "\n" not in detail
    assert not re.search(r"Traceback|\.py|/\w+/|0x[0-9a-f]+", detail)
