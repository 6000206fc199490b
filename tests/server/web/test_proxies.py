"""The server behind a reverse proxy: slashes, forwarded addresses and a path prefix."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from facts import assert_facts
from http_asserts import form, refused, untimed

from server.settings import Settings
from server.web.proxies import checked_root_path, trust_proxies
from teacher_cache.errors import LimbeckError

MODEL = "deit_tiny_distilled_patch16_224"
BEHIND_TLS = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9", "Host": "api.example.com"}


@pytest.fixture(scope="module")
def proxied(start: Callable[..., Any], bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that trusts proxies on loopback and in 10.0.0.0/8, and its access log."""
    log = tmp_path_factory.mktemp("logs") / "access.jsonl"
    options = ("--trusted-proxies", "127.0.0.1, 10.0.0.0/8", "--trusted-proxies", "fd00::/8")
    prefix = ("--root-path", "/limbeck/")
    return start(bundle_folder, "--workers", 1, "--access-log", log, *options, *prefix).url, log


@pytest.fixture(scope="module")
def untrusting(start: Callable[..., Any], bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that trusts only a proxy at another address, though uvicorn's variable says all; its access log."""
    log = tmp_path_factory.mktemp("logs") / "access.jsonl"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FORWARDED_ALLOW_IPS", "*")
        environment.setenv("LIMBECK_API_KEYS", "open-sesame")
        options = ("--trusted-proxies", "10.0.0.0/8")
        return start(bundle_folder, "--workers", 1, "--access-log", log, *options).url, log


def logged(log: Path, request_id: str) -> dict[str, Any]:
    """The access log's line of a request; waits for it."""
    while True:
        lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
        for line in lines:
            if line["id"] == request_id:
                return dict(line)


@pytest.mark.parametrize(
    "path",
    [
        *("/healthz/", "//healthz", "///healthz//", "/v1//models/", "//v1/model/?name=one", "/v2/", "//"),
        *("/v2//health/live", "/v2/health/ready/", f"/v2//models/{MODEL}/", f"/v2/models/{MODEL}//ready"),
        *("/openapi.json/", "//page/page.css", "/metrics/", "/readyz%2F"),
    ],
)
def test_last_and_repeated_slashes_are_ignored_without_a_redirect(client: httpx.Client, path: str) -> None:
    url = str(client.base_url).rstrip("/") + path  # base_url would merge the slashes
    answer = client.get(url, headers=BEHIND_TLS, follow_redirects=True)
    assert (answer.status_code, answer.history) == (200, [])


@pytest.mark.parametrize("path", ["/v1/classify/", "//v1/classify", "/v1//classify", "/v1/classify//?top_k=5"])
def test_an_image_sent_to_a_path_with_more_slashes_is_classified(
    client: httpx.Client, pictures: dict[str, bytes], path: str
) -> None:
    url, image = str(client.base_url).rstrip("/") + path, pictures["jpeg"]
    expected = untimed(client.post("/v1/classify", content=image).json()["images"][0])
    for body in ({"content": image}, {"files": form([image])}):
        answer = client.post(url, headers=BEHIND_TLS, follow_redirects=True, **body)  # type: ignore[arg-type]
        assert (answer.status_code, answer.history) == (200, [])
        assert untimed(answer.json()["images"][0]) == expected


@pytest.mark.parametrize(
    "path", ["/docs", "/docs/", "//docs", "/v1/", "/page/", "/v2/models//infer", "/v2/models//"]
)
def test_unknown_path_is_404_with_or_without_slashes(client: httpx.Client, path: str) -> None:
    for method in ("GET", "POST"):
        url = str(client.base_url).rstrip("/") + path
        answer = client.request(method, url, headers=BEHIND_TLS, follow_redirects=True)
        assert (answer.status_code, answer.history) == (404, [])
        (text,) = answer.json().values()
        assert_facts(text, "/openapi.json")


@pytest.mark.parametrize("path", ["/metrics/", "//metrics", "//v1/models", "/v1/classify/", "/v2/", "/page"])
def test_slashes_do_not_avoid_the_key(untrusting: tuple[str, Path], path: str) -> None:
    url, _ = untrusting
    assert httpx.get(url + path).status_code == 401
    assert httpx.get(url + path, headers={"X-API-Key": "open-sesame"}).status_code != 401
    assert httpx.get(url + "//healthz/").status_code == 200


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        (["203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9:4711"], "203.0.113.9"),
        (["192.0.2.1, 203.0.113.9, 10.1.2.3"], "203.0.113.9"),  # the first one is the client's own claim
        (["192.0.2.1", "203.0.113.9", "fd00::7"], "203.0.113.9"),
        (["[2001:db8::1]:443"], "2001:db8::1"),
        (["10.1.2.3, 127.0.0.1"], "10.1.2.3"),
        (["2001:DB8::1%eth0"], "2001:db8::1"),
        ([""], "127.0.0.1"),
        *(
            ([one], "127.0.0.1")
            for one in ("garbage", "unknown", "203.0.113.9:x", "<b>", "203.0.113.999", "1.2.3")
        ),
        (["203.0.113.9, garbage, 10.1.2.3"], "127.0.0.1"),  # the claim of an unknown hop is not trusted
        (["garbage, 203.0.113.9"], "203.0.113.9"),
        ([], "127.0.0.1"),
    ],
)
def test_access_log_has_the_address_that_a_trusted_proxy_forwards(
    proxied: tuple[str, Path], forwarded: list[str], address: str
) -> None:
    url, log = proxied
    headers = [("X-Forwarded-For", one) for one in forwarded] + [("X-Forwarded-Proto", "https")]
    answer = httpx.get(f"{url}/healthz/", headers=headers)
    line = logged(log, answer.headers["x-request-id"])
    assert (line["client"], line["path"], line["status"]) == (address, "/healthz/", 200)


def test_forwarded_address_of_an_unknown_proxy_is_ignored(untrusting: tuple[str, Path]) -> None:
    url, log = untrusting
    answer = httpx.get(f"{url}/healthz", headers=BEHIND_TLS | {"Forwarded": "for=203.0.113.9"})
    assert logged(log, answer.headers["x-request-id"])["client"] == "127.0.0.1"
    assert Settings().trusted_proxies == ()


@pytest.mark.parametrize(
    ("proxy", "fact"),
    [
        ("10.0.0.1/8", "host bits"),
        ("10.0.0.0/33", "10.0.0.0/8"),
        *((name, "10.0.0.0/8") for name in ("*", "localhost", "proxy.example", "", "10.0.0.7:80", "::1%lo/64")),
    ],
)
def test_invalid_proxy_is_refused(proxy: str, fact: str) -> None:
    async def app(*_: object) -> None: ...

    with pytest.raises(LimbeckError) as raised:
        trust_proxies(app, ["127.0.0.1", proxy])
    assert_facts(raised.value, f"--trusted-proxies '{proxy}'", fact)
    assert trust_proxies(app, []) is app


@pytest.mark.parametrize("prefix", ["limbeck", "https://example.com/limbeck", "/a//b", "/a?b", "/<b>", "/ä"])
def test_invalid_root_path_is_refused(prefix: str) -> None:
    with pytest.raises(LimbeckError) as raised:
        checked_root_path(prefix)
    assert_facts(raised.value, f"--root-path '{prefix}'", "/limbeck")
    assert [checked_root_path(one) for one in ("", "/", "/a/b/")] == ["", "", "/a/b"]


def test_invalid_proxy_ends_serve_with_one_line_and_status_2(
    command: Callable[..., subprocess.Popen[str]], bundle_folder: Path
) -> None:
    process = command("serve", bundle_folder, "--port", 0, "--trusted-proxies", "10.0.0.1,10.0.0.0/64")
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("\n")) == (2, 1)
    assert_facts(errors, "limbeck: ", "--trusted-proxies '10.0.0.0/64'")


@pytest.mark.parametrize("prefix", ["", "/limbeck", "//limbeck/"])
def test_server_answers_with_and_without_its_prefix(
    proxied: tuple[str, Path], pictures: dict[str, bytes], prefix: str
) -> None:
    url = proxied[0] + prefix
    assert httpx.post(f"{url}/v1/classify", content=pictures["jpeg"]).status_code == 200
    assert httpx.get(f"{url}/v2/models/{MODEL}").json()["name"] == MODEL
    assert httpx.get(url).text == httpx.get(f"{url}/").text == httpx.get(proxied[0]).text
    assert httpx.get(f"{url}/openapi.json").json()["servers"] == [{"url": "/limbeck"}]
    assert httpx.get(f"{url}/limbecks").status_code == 404
    assert httpx.get(f"{proxied[0]}/limbecks/healthz").status_code == 404


def test_other_methods_get_405_with_the_allowed_ones(client: httpx.Client) -> None:
    for path, allowed in (("/healthz/", "GET, HEAD"), ("/", "GET, HEAD"), ("/v1/explain", "POST")):
        for method in ("PUT", "OPTIONS", "TRACE"):
            answer = client.request(method, path)
            refused(answer, 405, method, allowed)
            assert answer.headers["allow"] == allowed
