"""The page in a browser: one session for all of it."""

import re
import shutil

import pytest

from ssdd_jax.report import read_runs, write_comparison

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Of every text that is seen: its colour against the nearest background below it, as in WCAG 2.
CONTRASTS = """
() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255).map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const below = (e) => {
    for (; e; e = e.parentElement) {
      const rgb = numbers(getComputedStyle(e).backgroundColor);
      if (rgb.length === 3 || rgb[3] === 1) return rgb;
    }
    return numbers(getComputedStyle(document.body).backgroundColor);
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || ["SCRIPT", "STYLE"].includes(e.tagName) || !e.checkVisibility()) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(numbers(e.closest("svg") ? style.fill : style.color)), light(below(e))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.trim().slice(0, 40)]);
  }
  return found;
}
"""


@pytest.fixture
def page(runs, tmp_path):
    """The page of two runs in a browser, with everything that it asks for and complains about."""
    playwright = pytest.importorskip("playwright.sync_api")
    for package in ("jinja2", "vl_convert"):
        pytest.importorskip(package)
    if BROWSER is None:
        pytest.skip("no chromium: apt-get install chromium")
    assert write_comparison(read_runs(runs), tmp_path / "compared") == []
    with playwright.sync_playwright() as library:
        # Without a sandbox, which root has not.
        browser = library.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(20_000)
        page.complaints = []
        page.on("request", lambda request: page.complaints.append(request.url) if not request.url.startswith(("data:", "blob:")) else None)
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        address = (tmp_path / "compared" / "index.html").as_uri()
        page.goto(address)
        page.wait_for_selector("[data-charts='1'] svg")
        assert page.complaints.pop(0) == address
        yield page
        browser.close()


def test_the_page_works_in_a_browser(page):
    # Nothing is fetched, and nothing goes wrong, neither now nor below.
    rows = lambda: page.locator("section.table >> nth=0").locator("tbody tr:visible")
    cells = lambda column: rows().locator(f":scope > :nth-child({column + 1})").all_inner_texts()
    assert rows().count() == 10

    # Sorted by a number, the best first, and back; what has none stays last.
    titles = page.locator("section.table >> nth=0").locator("thead th")
    probe = [text.split() for text in titles.all_inner_texts()].index(["linear", "probe"])
    titles.nth(probe).get_by_role("button").click()
    assert titles.nth(probe).get_attribute("aria-sort") == "descending"
    assert [text.split()[0] for text in cells(probe)] == ["90.0", "90.0", "76.0", "76.0", "60.0", "60.0", "55.0", "55.0", "45.0", "45.0"]
    titles.nth(probe).get_by_role("button").press("Enter")
    assert cells(probe)[0].startswith("45.0")
    images = [text.strip() for text in titles.all_inner_texts()].index("images")
    for order in (["12", "12", "3", "3"], ["3", "3", "12", "12"]):
        titles.nth(images).get_by_role("button").click()
        assert cells(images) == [*order, *["–"] * 6]
    titles.nth(0).get_by_role("button").click()
    assert cells(0)[0] == "large"

    # Filtered: rows, pictures and lines.
    lines = lambda: page.locator("[data-charts='1'] .mark-line path").count()
    assert (lines(), page.locator(".gallery:visible").count()) == (4, 4)
    page.get_by_role("checkbox", name="krr_st").uncheck()
    page.get_by_role("checkbox", name="large").press("Space")
    page.wait_for_function("document.querySelectorAll(\"[data-charts='1'] .mark-line path\").length === 1")
    assert page.locator(".gallery:visible h3").all_inner_texts() == ["small: ours, seed 0"]
    assert set(cells(0)) == {"small"}
    assert "krr_st" not in cells(1)
    page.locator("fieldset[data-key=run]").get_by_role("checkbox", name="large").check()

    # A curve says what it is where one points at it, and another score can be picked.
    budgets = page.locator("[data-charts='0']")
    budgets.scroll_into_view_if_needed()
    box = budgets.locator(".chart").bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert re.search(r"method\s*ours.*pairs\s*6", page.locator("#vg-tooltip-element").inner_text(), re.DOTALL)
    budgets.get_by_role("radio", name="linear probe").press("Space")
    page.wait_for_function("document.querySelector(\"[data-charts='0']\").textContent.includes('linear probe, %')")

    # An image opens by the keyboard, with all views and real images; arrows go on, Escape closes it where one has arrived.
    thumb = page.locator(".gallery:visible .thumb").first
    thumb.press("Enter")
    viewer = page.get_by_role("dialog")
    assert viewer.get_by_role("heading", level=2).inner_text() == "small: ours, seed 0: image 1 of 12"
    assert viewer.locator("img").count() == 1 + 3 + 5
    assert viewer.locator("figcaption").all_inner_texts()[:3] == ["identity, stored", "rot90, network", "dim, shared"]
    page.keyboard.press("ArrowLeft")
    assert "image 12 of 12" in viewer.inner_text()
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert page.evaluate("document.activeElement.dataset.index") == "11"

    # A screen reader has words for every picture and button.
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    unnamed = (
        "[...document.querySelectorAll('button')].filter((b) => !b.textContent.trim() && !b.ariaLabel && !b.querySelector('img[alt]'))"
    )
    assert page.evaluate(f"{unnamed}.length") == 0

    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        weakest, text = min(page.evaluate(CONTRASTS))
        assert weakest >= 4.5, (scheme, weakest, text)
        for width in (1400, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            thumb.click()
            assert page.evaluate("document.getElementById('viewer').scrollWidth") <= width
            page.keyboard.press("Escape")
    assert page.complaints == []
