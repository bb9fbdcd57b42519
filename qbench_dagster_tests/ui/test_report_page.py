"""The parity report's page in a real browser: wide, narrow, dark, and on paper. Without scripts, as it is mailed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qbench_dagster.adapters.report import render_html
from qbench_dagster_tests.adapters.reports import failed_report

playwright = pytest.importorskip("playwright.sync_api", reason="the UI tests need playwright (pip install '.[dev]')")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="the UI tests need a Chromium on the PATH (Debian: apt-get install chromium)"
)

CONTRAST = """() => {
  const parts = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = colour => parts(colour).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = node => { const colour = getComputedStyle(node).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" ? behind(node.parentElement) : colour; };
  return [...document.querySelectorAll("h1, h3, p, small, td, th, dt, dd, a, .mark, svg text")].map(node => {
    const own = getComputedStyle(node), at = node.closest("svg") ? own.fill : own.color;
    const [low, high] = [light(at), light(behind(node))].sort((a, b) => a - b);
    return [(high + 0.05) / (low + 0.05), node.outerHTML.slice(0, 120)]; }).sort((a, b) => a[0] - b[0])[0]; }"""
"""The least contrast of a text with what is behind it, and the text."""


def test_it_is_readable_at_any_width_in_light_and_dark_and_fetches_nothing(tmp_path: Path) -> None:
    page_file = tmp_path / "parity.html"
    page_file.write_text(render_html(failed_report().as_json()), encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            for width, scheme in ((1280, "light"), (400, "dark"), (320, "light")):
                page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
                fetched: list[str] = []
                said: list[str] = []
                page.on("request", lambda request, to=fetched: to.append(request.url))
                page.on("console", lambda message, to=said: to.append(message.text))
                page.goto(page_file.as_uri())
                assert fetched == [page_file.as_uri()]
                assert said == []
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                least, where = page.evaluate(CONTRAST)
                assert least >= 4.5, (scheme, where)
                page.close()
            paper = browser.new_page()
            paper.goto(page_file.as_uri())
            assert 3 <= paper.pdf(format="A4").count(b"/Type /Page\n") <= 30
        finally:
            browser.close()
