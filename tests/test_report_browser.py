"""The report in Chromium: `python -m pytest -m browser -n 1`. It needs selenium, and Chromium with its driver.

No error, nothing requested but the file itself, and everything that one can do on the page.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from report_pages import EXAMPLES, HOSTILE, data_of, page_of

from blockc import driver
from blockc.inspector.report import Request, report_page
from blockc.inspector.report_page import page
from blockc.inspector.report_rules import rule_json
from blockc.inspector.report_steps import Stop, drawn
from blockc.ir.decisions import Match
from blockc.language import parse, parse_all
from blockc.machines.loading import load_machine
from blockc.passes.lower import lower
from blockc.passes.rules.fuse_consecutive_maps import RULE

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

SMALL = (("b", 1), ("h", 2), ("m", 256), ("n", 256))
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
OFFLINE = ("--disable-background-networking", "--disable-component-update", "--hide-scrollbars")


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    """One browser, offline."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver_path = shutil.which("chromedriver")
    assert found and driver_path, "Chromium and its driver have to be installed"
    with tempfile.TemporaryDirectory() as profile:
        options = Options()
        options.binary_location = found
        for argument in (*QUIET, *OFFLINE, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = webdriver.Chrome(options=options, service=Service(driver_path))
        try:
            yield browser
        finally:
            browser.quit()


@pytest.fixture
def opened(chrome: Chrome, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page that has been opened; there are no errors and no requests in the end."""
    source, *targets = request.param
    dims = SMALL if source in ("attention.blk", "layernorm_matmul.blk") else ()
    path = tmp_path / "report.html"
    path.write_text(page_of(source, *targets, dims=tuple(pair for pair in dims if pair[0] in used(source))))
    logged(chrome, "performance")
    chrome.set_window_size(1500, 1000)
    chrome.get(path.as_uri())
    page = Page(chrome)
    page.wait()
    yield page
    assert logged(chrome, "browser") == []
    requested = [str(entry["message"]) for entry in logged(chrome, "performance")]
    sent = [message for message in requested if '"Network.requestWillBeSent"' in message]
    assert sent and all(path.as_uri() in message for message in sent)
    assert page.run("return performance.getEntriesByType('resource').length") == 0


def logged(chrome: Chrome, kind: str) -> list[dict[str, Any]]:
    """What a browser has logged since it was last asked."""
    untyped: Any = chrome
    found: list[dict[str, Any]] = untyped.get_log(kind)
    return found


def used(source: str) -> set[str]:
    """The names of dimensions of an example."""
    return {dim.name for dim in driver.load_program(EXAMPLES / source).dims if dim.size is None}


class Page:
    """What a test does on a page."""

    def __init__(self, chrome: Chrome) -> None:
        self.chrome = chrome

    def run(self, script: str, *arguments: object) -> Any:
        """The value of a script."""
        return self.chrome.execute_script(script, *arguments)

    def wait(self) -> None:
        """Wait until everything is shown: data that are packed take a moment."""
        for _ in range(100):
            if self.count("#steps li"):
                return
            time.sleep(0.05)

    def press(self, *keys: str) -> None:
        """Press keys, on whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.chrome).send_keys(*keys).perform()

    def click(self, selector: str) -> None:
        """Click an element, scrolled into view."""
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        self.run("document.querySelector(arguments[0]).click()", selector)

    def count(self, selector: str) -> int:
        """How many elements there are."""
        return int(self.run("return document.querySelectorAll(arguments[0]).length", selector))

    def text(self, selector: str) -> str:
        """The text of an element."""
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def step(self) -> int:
        """The step that is shown."""
        return int(self.run("return Number(document.getElementById('slider').value)"))

    def slide(self, step: int) -> None:
        """Move the slider."""
        slider = "const slider = document.getElementById('slider'); slider.value = arguments[0];"
        self.run(f"{slider} slider.dispatchEvent(new Event('input'))", step)

    def picture(self) -> set[str]:
        """The texts of the picture."""
        return set(self.run("return [...document.querySelectorAll('#canvas text')].map((one) => one.textContent)"))


PAGES = {
    "attention": ("attention.blk", "h200", "toy"),
    "layernorm": ("layernorm_matmul.blk", "cpu"),
    "hostile": (HOSTILE, "toy"),
    "scalar": ("program scalar(X: f32[]) -> Y: f32[] { Y = X * 2 + 1 }", "toy"),
    "transformer layer": ("large/transformer_layer.blk", "h200"),
}
every_page = pytest.mark.parametrize("opened", PAGES.values(), ids=PAGES.keys(), indirect=True)
attention = pytest.mark.parametrize("opened", [PAGES["attention"]], ids=["attention"], indirect=True)


@every_page
def test_a_page_is_whole(opened: Page) -> None:
    assert opened.count("#canvas svg .part") > 2
    assert opened.count("#steps li button") >= 2
    for chapter in ("summary", "source-body", "detail", "cost-body", "timeline-body", "kernel-body", "refused-body"):
        assert opened.text(f"#{chapter}").strip()
    assert "undefined" not in opened.text("main") and "NaN" not in opened.text("main")
    different = "return new Set([...document.querySelectorAll('[id]')].map((one) => one.id)).size"
    assert opened.count("[id]") == opened.run(different)
    broken = "return [...document.querySelectorAll('a[href]')].filter((a) => !document.querySelector(a.hash)).length"
    assert opened.run(broken) == 0
    assert opened.run("return document.title").endswith("fusion report")


@every_page
def test_the_slider_moves_and_the_picture_with_it(opened: Page) -> None:
    last = int(opened.run("return Number(document.getElementById('slider').max)"))
    final = opened.picture()
    for step in range(last + 1):
        opened.slide(step)
        assert opened.step() == step
        assert opened.count("#steps [aria-current='step']") == 1
        assert opened.count("#canvas svg") == 1
    assert opened.picture() == final
    opened.slide(0)
    assert opened.picture() != final
    assert "Unfused" in opened.text("#detail") or "unfused" in opened.text("#detail")


@attention
def test_keys_lead_through_the_steps(opened: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    last = opened.step()
    opened.press("k")
    assert opened.step() == last - 1
    opened.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, "j")
    assert opened.step() == last - 2
    opened.press(Keys.HOME)
    assert opened.step() == 0
    opened.press(Keys.END)
    assert opened.step() == last
    opened.press("b")
    assert opened.count("#canvas .removed") > 0 and opened.count("#canvas .added") == 0
    opened.press("b")
    assert opened.count("#canvas .added") > 0 and opened.count("#canvas .removed") == 0
    opened.press("?")
    assert opened.run("return document.getElementById('help').open")
    opened.press(Keys.ESCAPE)
    assert not opened.run("return document.getElementById('help').open")
    width = opened.run("return document.querySelector('#canvas svg').clientWidth")
    opened.press("+")
    assert opened.run("return document.querySelector('#canvas svg').clientWidth") > width


@attention
def test_search_finds(opened: Page) -> None:
    every = opened.count("#refused-body li")
    assert every > 0
    opened.press("/")
    assert opened.run("return document.activeElement.id") == "search"
    opened.press("no such thing")
    assert opened.count("#refused-body li") == 0
    opened.run("document.getElementById('search').value = ''")
    opened.press("R", "E", "A", "S", "S")
    assert 0 < opened.count("#refused-body li") <= every
    assert "reassociate_contraction" in opened.text("#refused-body")
    assert opened.step() > 0  # letters are typed, not keys


@attention
def test_links_jump(opened: Page) -> None:
    product = (
        "[...document.querySelectorAll('#emitted a.n')].find((one) => /tl.dot/.test(one.parentElement.textContent))"
    )
    opened.run(f"{product}.click()")
    chosen = opened.run("return [...document.querySelectorAll('#ir .on')].map((one) => one.textContent)")
    assert len(chosen) == 1 and "contract" in chosen[0]
    visible = """const row = document.querySelector(arguments[0]).getBoundingClientRect();
        const pane = document.querySelector(arguments[1]).getBoundingClientRect();
        return row.top >= pane.top - 1 && row.bottom <= pane.bottom + 1"""
    assert opened.run(visible, "#ir .on", "#ir")
    opened.run("document.querySelector('#ir .on a.n').click()")
    assert opened.count("#emitted .on") >= 1
    assert opened.run(visible, "#emitted .on", "#emitted")
    for chapter in ("source", "derivation", "cost", "timeline", "kernel", "refused"):
        opened.run("document.querySelector(arguments[0]).click()", f".top a[href='#{chapter}']")
        top = opened.run(f"return document.getElementById('{chapter}').getBoundingClientRect().top")
        at_end = opened.run("return scrollY + innerHeight >= document.documentElement.scrollHeight - 2")
        assert 0 <= top < 120 or at_end
    opened.slide(20)
    opened.click("#detail a[href^='#line-']")
    assert opened.run("return location.hash").startswith("#line-")
    opened.slide(1)
    opened.click("#source-body .op")
    assert opened.count("#canvas .frame-box.on") == 1 and opened.count("#canvas .badge") == 1
    assert opened.step() == int(opened.run("return Number(document.getElementById('slider').max)"))


@attention
def test_a_node_tells_what_it_is(opened: Page) -> None:
    opened.run("document.querySelector('#canvas .part .bytes').parentElement.onclick()")
    assert "bytes" in opened.text("#picked")
    assert opened.count("#canvas .near") > 0


@attention
def test_dark_and_light(opened: Page) -> None:
    colours = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    first = opened.run(colours)
    opened.press("t")
    second = opened.run(colours)
    for background, ink in (first, second):
        assert abs(lightness(background) - lightness(ink)) > 150
    assert (lightness(first[0]) - 128) * (lightness(second[0]) - 128) < 0
    opened.chrome.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    opened.chrome.refresh()
    opened.wait()
    assert lightness(opened.run(colours)[0]) < 60
    opened.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def lightness(colour: str) -> float:
    """The mean of a colour's components."""
    parts = colour.partition("(")[2].rstrip(")").split(",")[:3]
    return sum(map(float, parts)) / 3


@attention
def test_two_machines_side_by_side(opened: Page) -> None:
    assert opened.count(".compare .source") == 2
    assert "h200" in opened.text(".compare table") and "toy" in opened.text(".compare table")
    first = opened.text("#kernel-kind")
    opened.press("m")
    assert opened.text("#kernel-kind") != first
    assert opened.count("#machines [aria-pressed='true']") == 1


@every_page
def test_nothing_is_wider_than_a_narrow_window(opened: Page) -> None:
    opened.chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        time.sleep(0.2)
        assert opened.run("return document.documentElement.scrollWidth") <= 391
        assert opened.run("return document.querySelector('#canvas svg').clientWidth") > 200
    finally:
        opened.chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@attention
def test_print_shows_everything_and_no_controls(opened: Page) -> None:
    opened.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        for gone in (".tools", ".top nav", "#slider", ".search"):
            shown = "return document.querySelector(arguments[0]).getClientRects().length"
            assert opened.run(shown, gone) == 0
        clipped = """return [...document.querySelectorAll('main *')].filter((one) =>
            one.clientHeight && one.scrollHeight > one.clientHeight + 3
            && ['auto', 'hidden', 'scroll'].includes(getComputedStyle(one).overflowY)).length"""
        assert opened.run(clipped) == 0
    finally:
        opened.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len(opened.chrome.print_page()) > 10_000


@attention
def test_what_is_the_same_stays_the_same_element(opened: Page) -> None:
    last = opened.step()
    opened.slide(last - 2)
    opened.run("for (const one of document.querySelectorAll('#canvas .part')) one.mine = true")
    opened.slide(last - 1)
    assert opened.run("return [...document.querySelectorAll('#canvas .part')].filter((one) => one.mine).length") > 10


def chain(length: int) -> str:
    """A program of many operators, one after the other."""
    lines = [f"    Y{at + 1} = exp(Y{at}) + X" for at in range(length // 2)]
    text = "\n".join(["    Y0 = X * 2", *lines, f"    Z = Y{length // 2}"])
    return f"program chain(X: f32[m, n]) -> Z: f32[m, n] {{\n{text}\n}}\n"


def large_page() -> str:
    """The page of a small program with the first steps of a large one."""
    program = lower(parse(chain(320), "chain.blk"), frozenset())
    every = [Stop(program, -1, 0, "")]
    for number in range(8):
        match = next(found for found in RULE.match(program, None) if isinstance(found, Match))
        program = RULE.rewrite(program, match)
        every.append(Stop(program, number, 0, RULE.name, RULE.paper, match.at))
    data = data_of(page_of(chain(2), "toy"))
    data["machines"][0]["parts"][0]["steps"] = drawn(every, {"m": 512, "n": 512}, {"m": 64, "n": 64})
    data["rules"][RULE.name] = rule_json(RULE.name)
    return page(data)


def test_a_thousand_nodes_stay_responsive(chrome: Chrome, tmp_path: Path) -> None:
    path = tmp_path / "large.html"
    text = large_page()
    path.write_text(text)
    assert len(data_of(text)["machines"][0]["parts"][0]["steps"]["frames"][0]["places"]) > 1000
    chrome.get(path.as_uri())
    opened = Page(chrome)
    opened.wait()
    last = int(opened.run("return Number(document.getElementById('slider').max)"))
    shown = """const slider = document.getElementById('slider'); slider.value = arguments[0];
        const start = performance.now(); slider.dispatchEvent(new Event('input'));
        document.body.getBoundingClientRect(); return performance.now() - start"""
    taken = sorted(float(opened.run(shown, step)) for step in (*range(last + 1), *reversed(range(last))))
    print(f"milliseconds for a step: median {taken[len(taken) // 2]:.1f}, most {taken[-1]:.1f}")
    assert taken[len(taken) // 2] < 100
    opened.run("document.getElementById('canvas').scrollTop = 1e6")
    time.sleep(0.3)
    assert "Z: f32[m, n]" in opened.picture() and "X: f32[m][n]" not in opened.picture()
    opened.run("dispatchEvent(new Event('beforeprint'))")
    assert {"Z: f32[m, n]", "X: f32[m][n]"} <= opened.picture()
    assert opened.run("return performance.getEntriesByType('resource').length") == 0
    assert logged(chrome, "browser") == []


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.blk")), ids=lambda path: path.stem)
def test_reports_of_examples_are_below_two_megabytes(path: Path) -> None:
    for name in parse_all(path.read_text(), path.name):
        program = driver.load_program(path, name)
        made = report_page(Request(program, [("cpu", load_machine("cpu"))], {}, {}, {}))
        assert len(made.encode()) < 2_000_000


def test_the_report_of_a_transformer_layer_takes_less_than_twenty_seconds() -> None:
    page_of.cache_clear()
    start = time.monotonic()
    made = page_of("large/transformer_layer.blk", "h200")
    seconds = time.monotonic() - start
    print(f"{seconds:.1f} s, {len(made.encode()):,} bytes")
    assert seconds < 20
