"""The page at `/`, in a real browser."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

import thalweg
from tests.serve.running import Running, running, until
from thalweg.serve.sessions import OwnedSessions
from thalweg.serve.settings import Settings

FLOOD = "The flood came in the night of 3 March: the water rose eleven feet, and the bridge was carried away. 🌊"
BREAD = "Bread wants flour, water, salt and patience; the baker of Trèves 🍞 lets it rest until the morning."
TREES = "Old oaks grow slowly. Their roots hold the soil of the hillside, and jays bury their acorns in it."
FILLER = "Naïve façades 🏠🏡 line the street, and nobody knows why number {} is painted blue 👩‍🚀.\n\n"
TEXT = "".join([FILLER.format(n) for n in range(200)] + [TREES])
for place, passage in ((60, BREAD), (150, FLOOD)):
    TEXT = TEXT.replace(FILLER.format(place), passage + "\n\n")
QUESTION = "When did the flood carry the bridge away?"

ARGUMENTS = (
    "--headless=new", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-gpu", "--no-first-run", "--window-size=1100,1000", "--force-device-scale-factor=1",
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]


@pytest.fixture(scope="module")
def shipped() -> thalweg.Embedder:
    return thalweg.load(special_tokens="text")


@pytest.fixture(scope="module")
def site(shipped: thalweg.Embedder) -> Iterator[Running]:
    with running({"small": shipped}) as server:
        yield server


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Chromium without a window; in CI it must be there."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        words = "Chromium and its driver are not installed: apt-get install chromium chromium-driver"
        assert not os.environ.get("CI"), words
        pytest.skip(words)
    options = ChromeOptions()
    options.binary_location = programs[0]
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    for argument in (*ARGUMENTS, *root, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    driver = Chrome(options, ChromeService(programs[1]))
    try:
        driver.set_script_timeout(20)
        yield driver
    finally:
        driver.quit()


class Page:
    """The page in a browser."""

    def __init__(self, chrome: Chrome, url: str) -> None:
        self.chrome, self.url = chrome, url
        for log in ("performance", "browser"):
            chrome.get_log(log)  # of another page
        chrome.get(url)

    def __getitem__(self, id: str) -> WebElement:
        return self.chrome.find_element(By.ID, id)

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something, and show what the page says if it does not happen."""
        try:
            until(lambda: bool(condition()), 15)
        except AssertionError:
            body = self.chrome.find_element(By.TAG_NAME, "body").text
            raise AssertionError(f"{body}\n{self.chrome.get_log('browser')}") from None

    def run(self, expression: str, *given: Any) -> Any:
        """Evaluate an expression that may use `state` and `Source` of the page, `given` and `await`."""
        return self.chrome.execute_async_script(
            "const done = arguments[arguments.length - 1], given = [...arguments]; (async () => {"
            "const { state } = await import('/page/page.js'), { Source } = await import('/page/source.js');"
            f"return {expression}; }})().then(done, (error) => done(String(error)))",
            *given,
        )

    def text(self, id: str) -> str:
        """All text of an element, white space included."""
        return str(self[id].get_attribute("textContent"))

    def similarities(self) -> list[float]:
        """Those of all sections."""
        return self.run("[...state.embedding.sections.similarities.slice(0, state.embedding.sections.count)]")

    def paste(self, text: str, by: str = "paragraph", every: int = 1) -> None:
        """Put a text in and start. Drivers cannot type emoji."""
        self.until(self["start"].is_enabled)
        self.chrome.execute_script("arguments[0].value = arguments[1]", self["text"], text)
        self.start(by, every)

    def choose(self, file: Path) -> None:
        self["file"].send_keys(str(file))
        self.until(self["chosen"].is_displayed)

    def start(self, by: str = "paragraph", every: int = 1) -> None:
        self["by"].send_keys({"paragraph": "p", "sentence": "s", "tokens": "t", "heading": "h"}[by])
        self["every"].clear()
        self["every"].send_keys(str(every))
        self.until(self["start"].is_enabled)
        self["start"].click()

    def ask(self, question: str) -> None:
        self["question"].clear()
        self["question"].send_keys(question, Keys.ENTER)
        self.until(lambda: "similarity of" in self["ask-status"].text)

    def ended(self) -> None:
        self.until(lambda: "The text is embedded" in self["status"].text)

    def rows(self) -> list[WebElement]:
        return self["best"].find_elements(By.TAG_NAME, "button")

    def errors(self) -> list[str]:
        """What the browser's console says."""
        return [entry["message"] for entry in self.chrome.get_log("browser")]

    def requests(self) -> list[str]:
        """The URLs that were asked for."""
        events = [json.loads(entry["message"])["message"] for entry in self.chrome.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


def test_a_text_and_questions(chrome: Chrome, site: Running) -> None:
    model = site.embedder
    expected = list(model.encode_sections(TEXT, by="paragraph"))
    vectors = np.stack([each.vector for each in expected])
    page = Page(chrome, site.url)
    page.paste(TEXT)
    page.ended()
    found = page.run("[state.embedding.sections.count, state.embedding.tokens, state.embedding.characters]")
    assert found == [len(expected), len(model.tokenize([TEXT])[0]), len(TEXT)]
    assert page["sections"].text == f"{len(expected):,}"
    assert re.fullmatch(r"[\d,]+ MiB", page["memory"].text)
    assert re.fullmatch(r"[\d,]+", page["rate"].text)
    assert float(page["progress"].get_attribute("value") or 0) == 1

    for question, passage in (("How is bread made?", BREAD), (QUESTION, FLOOD)):
        page.ask(question)
        page.until(lambda passage=passage: page.text("text-itself").strip() == passage)
        numbers = model.similarity(model.encode_query(question), vectors)[0]
        np.testing.assert_allclose(page.similarities(), numbers, atol=1e-5)
        assert page.rows()[0].find_element(By.CLASS_NAME, "snippet").get_attribute("textContent") == passage
        assert f"{numbers.max():.3f}" in page["ask-status"].text

    # A click on each row of the list leads to what Python finds there.
    for row in page.rows():
        row.click()
        page.until(lambda row=row: row.get_attribute("aria-current") == "true")
        each = expected[page.run("state.section")]
        assert page.text("text-itself") == TEXT[each.char_start : each.char_end]
        assert page.text("text-before") == TEXT[max(0, each.char_start - 1500) : each.char_start]
        assert page.text("text-after") == TEXT[each.char_end : each.char_end + 1500]

    # Keys on the river.
    page["river"].send_keys(Keys.END)
    page.until(lambda: page.text("text-itself") == TREES)
    page["river"].send_keys(Keys.ARROW_LEFT)
    page.until(lambda: page.text("text-itself").startswith("Naïve façades 🏠🏡"))
    page["river"].send_keys(Keys.ENTER)
    page.until(lambda: chrome.switch_to.active_element == page["reading"])
    assert page["river"].get_attribute("aria-valuenow") == str(len(expected) - 1)

    # A click on the river.
    chrome.execute_script(
        "const { left, top, width } = arguments[0].getBoundingClientRect(); arguments[0].dispatchEvent("
        "new MouseEvent('click', { bubbles: true, clientX: left + arguments[1] * width, clientY: top + 9 }))",
        page["river"],
        (TEXT.index(FLOOD) + 40) / len(TEXT),
    )
    page.until(lambda: page.text("text-itself").strip() == FLOOD)

    assert page.errors() == []
    urls = page.requests()
    assert len(urls) > 10
    assert [url for url in urls if not url.startswith(site.url + "/")] == []
    until(lambda: not site.server.sessions(site.server.models[0]).of(""))


def test_a_file_that_is_still_read(
    chrome: Chrome, site: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question is answered by what is there so far, and by what comes; a run can be stopped."""
    file = tmp_path / "flood.txt"
    file.write_text(TEXT, encoding="utf-8")
    go_on, append = threading.Event(), OwnedSessions.append

    async def held_up(self: OwnedSessions, held: Any, piece: str | bytes) -> Any:
        if (sent := getattr(held, "sent", 0)) and not go_on.is_set():
            await asyncio.get_running_loop().run_in_executor(None, go_on.wait, 20)
        held.sent = sent + 1
        return await append(self, held, piece)

    monkeypatch.setattr(OwnedSessions, "append", held_up)
    page = Page(chrome, site.url)
    page.choose(file)
    page.start("tokens", 64)
    page.until(lambda: page["tokens"].text != "0")
    page.ask("How is bread made?")
    assert "so far" in page["ask-status"].text
    page.until(lambda: "Bread wants flour" in page.text("text-itself"))
    so_far = len(page.similarities())
    page.ask(QUESTION)
    go_on.set()
    page.ended()
    expected = list(site.embedder.encode_sections(TEXT, every=64))
    numbers = site.embedder.similarity(
        site.embedder.encode_query(QUESTION), np.stack([each.vector for each in expected])
    )[0]
    np.testing.assert_allclose(page.similarities(), numbers, atol=1e-5)
    assert so_far < len(numbers)
    page.until(lambda: "so far" not in page["ask-status"].text)
    best = expected[int(numbers.argmax())]
    page.until(
        lambda: (
            page.rows()[0].find_element(By.CLASS_NAME, "snippet").get_attribute("textContent")
            == TEXT[best.char_start : best.char_start + 240][: best.char_end - best.char_start].strip()
        )
    )
    page["again"].click()
    go_on.clear()
    page.start("tokens", 64)
    page.until(lambda: page["tokens"].text != "0")
    page["stop"].click()
    page.until(lambda: "Stopped" in page["status"].text)
    go_on.set()
    page.ask(QUESTION)
    assert not page["error"].is_displayed()
    sessions = site.server.sessions(site.server.models[0])
    until(lambda: not sessions.of(""))
    assert page.errors() == []
    page["again"].click()
    go_on.clear()
    page.start("tokens", 64)
    page.until(lambda: page["tokens"].text != "0")
    assert sessions.of("")
    chrome.get("about:blank")
    until(lambda: not sessions.of(""))
    go_on.set()


def test_a_file_that_is_dropped(chrome: Chrome, site: Running) -> None:
    page = Page(chrome, site.url)
    page["sample"].click()
    page.until(lambda: page["chosen-name"].text.startswith("Life on the Mississippi, 7"))
    for event, overlay in (("dragover", True), ("drop", False)):
        chrome.execute_script(
            "const dataTransfer = new DataTransfer(); dataTransfer.items.add(new File(['The flood.'], 'flood.txt'));"
            "document.body.dispatchEvent(new DragEvent(arguments[0], {dataTransfer, bubbles: true, cancelable: true}))",
            event,
        )
        assert page["drop"].is_displayed() == overlay
    assert page["chosen-name"].text == "flood.txt, 10 bytes"
    page.start()
    page.ended()
    page["question"].send_keys("flood", Keys.ENTER)
    page.until(lambda: page.text("text-itself") == "The flood.")
    assert page.errors() == []


def test_a_server_that_is_full(chrome: Chrome, site: Running) -> None:
    page = Page(chrome, site.url)
    page.until(page["start"].is_enabled)
    with ExitStack() as full:
        for _ in range(site.server.settings.max_concurrent_requests):
            full.enter_context(site.server.slot())
        page.paste("The bridge.\n\nThe flood.")
        page.until(lambda: "Trying again in 1 s" in page["status"].text)
    page.ended()
    assert page["sections"].text == "2"
    assert not page["error"].is_displayed()


def test_models_and_their_prompts(chrome: Chrome, served: Running, last_model: thalweg.Embedder) -> None:
    """The first model has a prompt for questions; vectors of the second are not normalised."""
    page = Page(chrome, served.url)
    for name, model in (("tiny", served.embedder), ("last", last_model)):
        page.until(page["start"].is_enabled)
        page["model"].send_keys(name)
        page.paste(TEXT)
        page.ended()
        page.ask(QUESTION)
        vectors = np.stack([each.vector for each in model.encode_sections(TEXT, by="paragraph")])
        numbers = model.similarity(model.encode_query(QUESTION), vectors)[0]
        np.testing.assert_allclose(page.similarities(), numbers, atol=1e-5)
        page["again"].click()


@pytest.mark.parametrize("size", [4096, 5001, 1 << 20])
def test_characters_and_bytes(chrome: Chrome, site: Running, size: int) -> None:
    rng = random.Random(size)
    text = "".join(rng.choices("aé\n€🌊\ufeff", (5, 2, 1, 1, 1, 0.1), k=20000)) + rng.choice("a🌊")
    spans = [sorted(rng.choices(range(len(text) + 1), k=2)) for _ in range(60)]
    page = Page(chrome, site.url)
    found = page.run(
        "await (async ([text, size, spans]) => {"
        "const source = new Source(new Blob([text])), texts = [], decoder = new TextDecoder('utf-8', { fatal: true });"
        "for (let piece; (piece = await source.next(size)); ) decoder.decode(piece);"
        "for (const [start, end] of spans) texts.push(await source.text(start, end));"
        "return [source.characters, texts]; })(given)",
        text,
        size,
        spans,
    )
    assert found == [len(text), [text[start:end] for start, end in spans]]


def test_a_key(chrome: Chrome, shipped: thalweg.Embedder) -> None:
    with running({"small": shipped}, keys={"ada": "key-of-ada"}) as server:
        page = Page(chrome, server.url)
        page.until(page["key-form"].is_displayed)
        assert not page["start"].is_enabled()
        page["key"].send_keys("key-of-grace", Keys.ENTER)
        page.until(lambda: "The API key is not one of this server." in page["key-words"].text)
        page["key"].send_keys("key-of-ada", Keys.ENTER)
        page.until(page["start"].is_enabled)
        assert not page["key-form"].is_displayed()
        page.paste("The bridge.\n\nThe flood.")
        page.ended()
        page.ask("flood")
        page.until(lambda: page.text("text-itself") == "The flood.")
        assert page.run("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [
            ["key-of-ada"], 0, ""
        ]  # fmt: skip
        assert all("401" in error for error in page.errors())
        chrome.refresh()
        page.until(page["start"].is_enabled)
        assert not page["key-form"].is_displayed()
        assert page.errors() == []


def test_what_goes_wrong_is_said(chrome: Chrome, shipped: thalweg.Embedder, tmp_path: Path) -> None:
    def says(words: str) -> None:
        page.until(lambda: words in page["error"].text)

    file = tmp_path / "latin.txt"
    file.write_bytes("Der Fluß, die Brücke".encode("latin-1"))
    with running({"small": shipped}, Settings(payload_limit=1000)) as server:
        page = Page(chrome, server.url)
        page.paste("")
        says("There is no text yet")
        page.paste("The river. " * 200)
        says("more than the 1,000 bytes")
        assert page["again"].is_displayed()
        page["again"].click()
        page.choose(file)
        page.start()
        says("not valid UTF-8")
        page["again"].click()
        page["unchoose"].click()
        page.paste("The river.", every=0)
        assert not page["run"].is_displayed()
        page.paste("The river. The flood.", "sentence")
        page.ended()
        assert not page["error"].is_displayed()
        page["question"].send_keys("flood " * 300, Keys.ENTER)
        says("more than the 1,000 bytes")
    page["question"].clear()
    page["question"].send_keys("flood", Keys.ENTER)
    says("The server cannot be reached")


def test_how_it_looks(chrome: Chrome, site: Running, tmp_path: Path) -> None:
    """Pictures to be looked at are written to the test's folder."""
    page = Page(chrome, site.url)
    page.paste(TEXT)
    page.ended()
    page.ask(QUESTION)
    papers = set()
    for scheme in ("light", "dark"):
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for width in (1100, 360):
            chrome.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
            )
            assert page.run("document.documentElement.scrollWidth <= innerWidth")
            page.ask("How is bread made?" if width == 360 else QUESTION)
            png = chrome.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})["data"]
            (tmp_path / f"{scheme}-{width}.png").write_bytes(base64.b64decode(png))
        papers.add(page.run("getComputedStyle(document.body).backgroundColor"))
    chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(papers) == 2
    assert page.run("document.querySelectorAll('.pin').length") == len(page.rows()) == 6


def test_keyboard_and_names(chrome: Chrome, site: Running) -> None:
    """All of it can be done with keys alone, and everything that takes the focus has a name."""
    page = Page(chrome, site.url)
    page.until(page["start"].is_enabled)

    def tab() -> str:
        chrome.switch_to.active_element.send_keys(Keys.TAB)
        return str(chrome.switch_to.active_element.get_attribute("id"))

    chrome.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert chrome.switch_to.active_element == page["text"]
    page["text"].send_keys("The bridge stood.\n\nThe flood came.")
    assert [tab() for _ in range(5)] == ["choose", "sample", "every", "by", "start"]
    page["start"].send_keys(Keys.ENTER)
    page.ended()
    assert chrome.switch_to.active_element == page["question"]
    chrome.switch_to.active_element.send_keys("Did it stand?", Keys.ENTER)
    page.until(lambda: page.text("text-itself").strip() == "The bridge stood.")
    tab()
    assert tab() == "river"
    assert [tab() for _ in page.rows()] == ["", ""]
    chrome.switch_to.active_element.send_keys(Keys.SPACE)
    page.until(lambda: page.text("text-itself") == "The flood came.")
    nodes = chrome.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    focusable = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if any(each["name"] == "focusable" for each in node.get("properties", ()))
    ]
    assert len(focusable) >= 8
    assert all(name for _, name in focusable), focusable
    assert ("slider", "Place in the text") in focusable
