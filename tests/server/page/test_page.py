"""The page in a real browser with real servers."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from facts import assert_facts
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright
from prefix_proxy import prefix_proxy

from server.page import HEADERS

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
KEY = "open-sesame"
WAIT_MS = 60_000
ANY_TEXT = re.compile(r"\S")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium; on Debian: apt-get install chromium")
expect.set_options(timeout=WAIT_MS)

PASTE_OR_DROP = """
([kind, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], "picture", { type: "image/png" }));
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true });
  document.getElementById("drop").dispatchEvent(event);
}
"""
LUMINANCE_RATIOS = """
() => {
  const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (color) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb(color).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" && element.parentElement ? ground(element.parentElement) : color;
  };
  const holdsText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const texts = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() && holdsText(one));
  return texts.map((element) => {
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))].sort((x, y) => y - x);
    return [element.textContent.trim(), (a + 0.05) / (b + 0.05)];
  });
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options: Any = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
    with sync_playwright() as playwright, playwright.chromium.launch(**options) as browser:
        yield browser


@pytest.fixture(scope="module")
def locked(start: Callable[..., Any], one_headed_folder: Path) -> str:
    """URL of a server that has a one-headed model and requires a key."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LIMBECK_API_KEYS", KEY)
        url: str = start(one_headed_folder).url
        return url


def opened(browser: Browser, url: str, **options: Any) -> Page:
    context = browser.new_context(**options)
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    page.goto(url)
    return page


@pytest.fixture
def page(browser: Browser, client: httpx.Client) -> Iterator[Page]:
    """The page of the two-headed model; a script error or a blocked resource fails the test."""
    page = opened(browser, str(client.base_url))
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if "Content Security" in line.text else None)
    yield page
    page.context.close()
    assert problems == []


def choose(page: Page, image: bytes) -> None:
    page.set_input_files("#file", {"name": "picture", "mimeType": "image/jpeg", "buffer": image})


def verdicts(client: httpx.Client, image: bytes) -> dict[str, Any]:
    answer = client.post("/v1/classify", content=image, params={"head": "all"}).json()
    heads: dict[str, Any] = answer["images"][0]["heads"]
    return heads


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_page_shows_the_answer_of_the_server(
    page: Page, client: httpx.Client, pictures: dict[str, bytes], way: str
) -> None:
    if way == "choose":
        choose(page, pictures["png"])
    else:
        page.evaluate(PASTE_OR_DROP, [way, list(pictures["png"])])
    expect(page.locator("#maps img")).to_have_count(3)
    heads = verdicts(client, pictures["png"])
    expect(page.locator("#verdict")).to_contain_text(heads["joint"]["label"])
    for name in ("joint", "class", "distill"):
        rows = page.locator(f".head.{name} li")
        for row, score in zip(rows.all(), heads[name]["top_k"], strict=True):
            expect(row.locator(".label")).to_contain_text(score["label"])
            bar, track = row.locator(".bar").bounding_box(), row.locator(".track").bounding_box()
            assert bar and track
            assert bar["width"] == pytest.approx(max(2, score["probability"] * track["width"]), abs=1)
    labels = {heads["class"]["label"], heads["distill"]["label"]}
    expect(page.locator("#agreement")).to_have_text(ANY_TEXT)
    named = set(re.findall(r"\w+", page.locator("#agreement").inner_text())) & {"cat", "dog", "owl"}
    assert named == labels if len(labels) == 2 else named <= labels
    differences = {
        score["label"]: abs(score["probability"] - other["probability"])
        for score in heads["class"]["top_k"]
        for other in heads["distill"]["top_k"]
        if score["label"] == other["label"]
    }
    shown = [text.strip() for text in page.locator(".gaps .label").all_inner_texts()]
    assert shown == sorted(differences, key=lambda label: -differences[label])[:3]


def test_maps_match_the_chosen_method(page: Page, client: httpx.Client, pictures: dict[str, bytes]) -> None:
    choose(page, pictures["jpeg"])
    for method in ("last-layer", "rollout"):
        query = {"format": "json", "method": method}
        answer = client.post("/v1/explain", content=pictures["jpeg"], params=query).json()
        page.locator(f"input[name=method][value={method}]").check()
        for place, png in enumerate([answer["seen"], *(one["png"] for one in answer["tokens"].values())]):
            expect(page.locator("#maps img").nth(place)).to_have_attribute("src", f"data:image/png;base64,{png}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_has_enough_contrast_in_both_color_schemes(
    browser: Browser, client: httpx.Client, pictures: dict[str, bytes], scheme: Any
) -> None:
    phone = {"width": 360, "height": 740}
    page = opened(browser, str(client.base_url), viewport=phone, color_scheme=scheme, has_touch=True)
    choose(page, pictures["jpeg"])
    expect(page.locator("#maps img")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    read = page.evaluate(LUMINANCE_RATIOS)
    choose(page, b"no image")
    expect(page.get_by_role("alert")).to_be_visible()
    read += page.evaluate(LUMINANCE_RATIOS)
    assert len(read) > 20
    assert [(text, ratio) for text, ratio in read if ratio < 4.5] == []  # WCAG 2.2, AA
    page.context.close()


def test_page_can_be_used_with_the_keyboard_alone(page: Page, pictures: dict[str, bytes], tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(pictures["png"])
    page.on("filechooser", lambda chooser: chooser.set_files(picture))  # registered before the key is pressed
    page.keyboard.press("Tab")
    expect(page.locator("#file")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#maps img")).to_have_count(3)
    before = page.locator("#maps img").nth(1).get_attribute("src")
    page.keyboard.press("Tab")
    expect(page.locator("input[name=method][value=last-layer]")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator("input[name=method][value=rollout]")).to_be_checked()
    expect(page.locator("#maps img").nth(1)).not_to_have_attribute("src", before or "")


def test_accessibility_tree_contains_everything_visible(
    page: Page, client: httpx.Client, pictures: dict[str, bytes]
) -> None:
    choose(page, pictures["jpeg"])
    expect(page.locator("#maps img")).to_have_count(3)
    heads = verdicts(client, pictures["jpeg"])
    expect(page.locator("[role=status]#spoken")).to_contain_text(heads["joint"]["label"])
    tree = page.locator("body").aria_snapshot()
    titles = {page.locator(f".head.{name}").get_attribute("aria-label") for name in ("joint", "class", "distill")}
    assert len(titles) == 3 and all(titles)
    for part in ("main", 'heading "Limbeck"', *(f'region "{title}"' for title in titles)):
        assert part in tree, tree
    assert len(re.findall(r'radio "[^"]+"', tree)) == 2 and len(re.findall(r'group "[^"]+"', tree)) == 1
    query = {"format": "json", "method": "last-layer"}
    tokens = client.post("/v1/explain", content=pictures["jpeg"], params=query).json()["tokens"]
    for name in ("class", "distill"):
        assert_facts(tree, f"{100 * heads[name]['probability']:.1f} %")
    for name, token in tokens.items():
        alt = page.locator(f"#maps .{name} img").get_attribute("alt")
        assert_facts(alt, f"{100 * token['half']:.1f} %")
    assert all(image.get_attribute("alt") for image in page.locator("img:visible").all())


def test_each_problem_is_shown_and_temporary_ones_can_be_retried(
    page: Page, client: httpx.Client, pictures: dict[str, bytes], tmp_path: Path
) -> None:
    alert, again = page.get_by_role("alert"), page.locator("#again")
    titles = [""]

    def wait_for_title() -> None:
        expect(page.locator("#title")).not_to_have_text(titles[-1])
        expect(alert).to_be_visible()
        titles.append(page.locator("#title").inner_text())

    for image in (b"", b"no image", b"<svg xmlns='http://www.w3.org/2000/svg'/>"):
        choose(page, image)
        wait_for_title()
        if image:
            detail = client.post("/v1/classify", content=image).json()["detail"]
            expect(alert).to_contain_text(detail[1:])  # the page writes the first letter as a capital
        expect(again).to_be_hidden()
        expect(page.locator("#result")).to_be_hidden()
    large = tmp_path / "large.png"
    large.write_bytes(bytes(20_500_000))
    page.set_input_files("#file", large)
    wait_for_title()
    expect(alert).to_contain_text("20.5 MB")
    expect(alert).to_contain_text("20.0 MB")
    expect(again).to_be_hidden()
    page.context.set_offline(True)
    choose(page, pictures["jpeg"])
    wait_for_title()
    expect(again).to_be_visible()
    expect(again).to_have_accessible_name(ANY_TEXT)
    assert len(set(titles)) == 6  # no title, and one for each problem
    page.context.set_offline(False)
    again.click()
    expect(alert).to_be_hidden()
    expect(page.locator("#maps img")).to_have_count(3)


def test_page_asks_for_a_key_and_shows_a_one_headed_model(
    browser: Browser, locked: str, pictures: dict[str, bytes]
) -> None:
    page = opened(browser, locked)
    alert, title, key = page.get_by_role("alert"), page.locator("#title"), page.locator("#key")
    expect(alert).to_be_visible()
    expect(key).to_have_accessible_name(ANY_TEXT)
    asked = title.inner_text()
    assert asked
    key.fill("wrong")
    page.keyboard.press("Enter")
    expect(title).not_to_have_text(asked)
    expect(alert).to_be_visible()
    key.fill(KEY)
    page.locator("#entry").get_by_role("button").click()
    expect(alert).to_be_hidden()
    expect(key).to_be_hidden()
    choose(page, pictures["jpeg"])
    expect(page.locator("#maps img")).to_have_count(2)
    expect(page.locator(".head")).to_have_count(1)
    expect(page.locator("#agreement")).to_have_text(ANY_TEXT)
    expect(page.locator("#gaps-section")).to_be_hidden()
    page.context.close()


def test_page_sends_no_request_to_another_host(
    page: Page, client: httpx.Client, pictures: dict[str, bytes]
) -> None:
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    page.on("request", note)
    page.reload()
    choose(page, pictures["jpeg"])
    expect(page.locator("#maps img")).to_have_count(3)
    origin = str(client.base_url)
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith((origin, f"blob:{origin}", "data:image/png;"))] == []


def test_label_with_html_is_shown_as_text(page: Page) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    made = page.evaluate(
        """async (label) => {
          const { headCards, gapLines } = await import("/page/draw.js");
          const head = { top_k: [{ label, index: 0, probability: 0.5 }] };
          const heads = { class: head, distill: head };
          const parts = [...headCards(heads, 5), ...gapLines(heads)];
          return parts.map((part) => [part.querySelectorAll("img").length, part.textContent.includes(label)]);
        }""",
        hostile,
    )
    assert made == [[0, True]] * 3


def test_inline_scripts_are_blocked(page: Page) -> None:
    run = """() => {
      const script = document.createElement("script");
      try { script.textContent = "window.mine = 1"; document.body.append(script); } catch { return "refused"; }
      return window.mine ?? "refused";
    }"""
    assert page.evaluate(run) == "refused"


def test_every_page_file_has_its_content_type_and_the_security_headers(client: httpx.Client) -> None:
    home = client.get("/")
    parts = re.findall(r'(?:href|src)="(page/[^"]+)"', home.text)
    assert len(parts) == 3
    kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for name in [*parts, "page/ask.js", "page/draw.js"]:
        part = client.get(f"/{name}")
        assert part.status_code == 200 and part.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])
    for response in (home, part):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert {name: response.headers[name] for name in HEADERS} == HEADERS
    for name in ("page/none.js", "page/__init__.py", "page/..%2fapp.py", "page/index.html"):
        assert client.get(f"/{name}").status_code == 404


@pytest.fixture(scope="module")
def prefixed(start: Callable[..., Any], bundle_folder: Path) -> str:
    """URL of a server with --root-path."""
    url: str = start(bundle_folder, "--workers", 1, "--root-path", "/limbeck").url
    return url


@pytest.mark.parametrize(
    ("strips", "has_root_path", "path"),
    [(True, False, "/limbeck/"), (True, True, "/limbeck"), (False, True, "/limbeck")],
)
def test_page_works_behind_a_path_prefix(
    browser: Browser,
    client: httpx.Client,
    prefixed: str,
    pictures: dict[str, bytes],
    strips: bool,
    has_root_path: bool,
    path: str,
) -> None:
    url = prefixed if has_root_path else str(client.base_url)
    with prefix_proxy(url, "/limbeck", strips) as address:
        page = opened(browser, address + path)
        failed: list[str] = []
        page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
        choose(page, pictures["jpeg"])
        expect(page.locator("#maps img")).to_have_count(3)
        with page.expect_response(f"{address}/limbeck/openapi.json") as described:
            page.get_by_role("link").click()
        assert described.value.status == 200 and failed == []
        page.context.close()
