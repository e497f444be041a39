"""The page of `morendo view` in a browser: it opens, steps, compares, finds, and shows weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from morendo.view import Figures, collect, write_page

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the system package chromium is missing")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def file(compiled, tmp_path_factory) -> Path:
    """A page with a curve of quality, and with a figure of sensitivity."""
    figures = tmp_path_factory.mktemp("page") / "eval.json"
    rows = [
        {"kind": "artifact", "level": i, "score": {"kl_mean": 0.1 * i}, "bytes_per_token": 9 - i}
        for i in range(3)
    ]
    figures.write_text(json.dumps({"rows": rows}))
    data = collect(compiled[1], Figures(figures))
    name = "model.layers.0.mlp.down_proj.weight"
    losses = {"loss_2bit": [0.1 * (i + 1) for i in range(12)], "outliers": [0.01] * 12}
    data["stages"][2]["figures"] = {name: losses}
    page = figures.with_name("page.html")
    page.write_text(write_page(data), encoding="utf-8")
    return page


@pytest.fixture(params=[("light", 1280, 800), ("dark", 1920, 1080)], ids=lambda p: p[0])
def page(browser, file, request):
    scheme, width, height = request.param
    found = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    found.set_default_timeout(60_000)  # other work may have the processors
    problems: list[str] = []
    found.on("console", lambda message: problems.append(message.text))
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.on("request", lambda r: None if r.url.startswith("file:") else problems.append(r.url))
    found.goto(file.as_uri())
    found.wait_for_selector("body[data-ready]")
    yield found
    assert problems == []
    found.close()


def chosen(page) -> str:
    return page.locator(".stage.chosen .spec").inner_text()


def test_opens_with_the_last_ir_beside_the_one_before(page):
    assert chosen(page) == "choose-levels"
    assert page.locator(".cm-mergeView").count() == 1
    assert "levels=" in page.locator(".cm-merge-b .cm-content").inner_text()
    assert "levels=" not in page.locator(".cm-merge-a .cm-content").inner_text()
    assert page.locator(".cm-changedLine").count() > 4
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".chart").count() == 5
    sides = page.locator(".cm-mergeView .cm-scroller")
    assert sides.evaluate_all("all => all.every(e => e.scrollWidth <= e.clientWidth)")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    scheme = page.evaluate("document.documentElement.dataset.theme")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 29)"}[scheme]


def test_steps_with_keys(page):
    page.keyboard.press("k")
    page.locator(".stage.chosen .number", has_text="06").wait_for()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.locator(".stage.chosen .number", has_text="08").wait_for()
    page.locator("select[aria-label=file]").wait_for()
    page.locator(".cm-content", has_text="T.prim_func").wait_for()


def test_a_call_leads_to_its_kernel_and_its_weights(page):
    line = page.locator(".cm-merge-b .cm-line", has_text="L0.q_proj = ").first
    line.click(position={"x": 30, "y": 6})
    details = page.locator("#details")
    details.locator(".kernel h3", has_text="qlinear_f32_i8").wait_for()
    assert details.locator(".weight h3").count() == 3
    assert details.locator(".weight").first.locator(".map i.bits4").count() == 4
    assert details.locator(".histogram canvas").count() == 3
    details.get_by_role("button", name="TIR").click()
    page.locator(".cm-content", has_text="T.prim_func").wait_for()
    assert "parallel" in details.locator(".loops").inner_text()
    details.get_by_role("button", name="assembly").click()
    page.locator(".stage.chosen .spec", has_text="assembly").wait_for()
    page.locator(".cm-content", has_text=".text").wait_for()


def test_the_map_is_as_high_as_groups_are_sensitive(page):
    page.locator(".overview", has_text="layers.0.mlp.down_proj").click()
    cells = page.locator(".weight .map i")
    assert cells.count() == 12
    heights = [cells.nth(i).bounding_box()["height"] for i in range(12)]
    assert heights == sorted(heights)
    assert heights[-1] > 2 * heights[0]
    assert "lost at 2 bits" in (cells.first.get_attribute("title") or "")


def test_searches_all_texts(page):
    page.keyboard.press("/")
    page.keyboard.type("down_proj")
    result = page.locator("#results .result", has_text="normalize / main")
    result.click()
    assert chosen(page) == "normalize"
    page.locator("#search").fill("nothing like this")
    page.locator("#results p", has_text="0 texts").wait_for()


def test_layers_fold_and_sides_can_be_chosen(page):
    text = page.locator(".cm-merge-b .cm-content")
    page.locator("label", has_text="whole").locator("input").check()
    page.locator(".cm-collapsedLines").first.wait_for(state="detached")
    height = "element => element.clientHeight"
    before = text.evaluate(height)
    page.get_by_role("button", name="fold", exact=True).click()
    page.locator(".cm-foldPlaceholder").first.wait_for()
    assert text.evaluate(height) < before / 2
    page.get_by_role("button", name="unfold").click()
    page.locator("select[aria-label=beside]").select_option(label="nothing")
    page.locator(".cm-mergeView").first.wait_for(state="detached")
    page.locator("label", has_text="short").locator("input").uncheck()
    page.locator(".cm-content", has_text="R.Tensor((1, 1, 128)").wait_for()


def test_the_graph_leads_to_lines_and_lines_to_the_graph(page):
    page.keyboard.press("g")
    nodes = page.locator("#graph .node")
    page.locator("#graph .node.folded").first.wait_for()
    assert page.locator("#graph .node.folded").count() == 4
    assert nodes.count() == 8, "embedding, norm and head; of the inputs the ids"
    page.locator('#graph [data-box="layer 2"]').click()
    page.locator("#graph .cluster").wait_for()
    assert page.locator("#graph .node.folded").count() == 3
    linear = nodes.filter(has_text="gate_proj + up_proj")
    assert "4.75 bits" in (linear.text_content() or "")
    linear.click()
    details = page.locator("#details")
    details.locator("h2", has_text="L2.gate_proj").wait_for()
    assert details.locator(".weight h3").count() == 2
    assert details.locator(".kernel").count() == 1
    assert "L2.gate_proj = " in page.locator(".cm-line.cm-activeLine").inner_text()
    assert "chosen" in (linear.get_attribute("class") or "")
    page.locator(".cm-line", has_text="L2.down_proj = ").click(position={"x": 30, "y": 6})
    page.locator("#graph .node.chosen", has_text="down_proj").wait_for()
    page.locator("select[aria-label=figures]").select_option("bytes")
    shown = page.locator('#graph [data-box="layer 0"]').text_content() or ""
    assert "kB" in shown, "what all ops of the layer read"
    page.locator("#graph .cluster").dispatch_event("click")
    page.locator("#graph .cluster").first.wait_for(state="detached")
    page.keyboard.press("k")
    page.locator(".stage.chosen .number", has_text="06").wait_for()
    assert page.locator("#graph .node").count() == 8, "it stays while stepping"
    page.keyboard.press("g")
    page.locator(".cm-mergeView").wait_for()


def test_layers_of_the_input_unfold_together(page):
    page.keyboard.press("g")
    page.locator(".stage", has_text="input").first.click()
    page.locator("#graph .node", has_text="astype").first.wait_for()
    folded = page.locator("#graph .node").count()
    page.get_by_role("button", name="unfold").click()
    page.locator("#graph .cluster").nth(3).wait_for()
    assert page.locator("#graph .node").count() > 250 > 5 * folded


def test_lines_wrap_if_wanted(page):
    page.locator("select[aria-label=beside]").select_option(label="nothing")
    page.locator(".cm-mergeView").first.wait_for(state="detached")
    wide = "document.querySelector('#text .cm-scroller').scrollWidth > "
    wide += "document.querySelector('#text .cm-scroller').clientWidth"
    page.locator("label", has_text="short").locator("input").uncheck()
    page.locator(".cm-content", has_text="R.Tensor((1, 1, 128)").wait_for()
    assert not page.evaluate(wide)
    page.locator("label", has_text="wrap").locator("input").uncheck()
    for _ in range(200):  # the page forbids what would wait inside of it
        if page.evaluate(wide):
            return
        page.wait_for_timeout(50)
    pytest.fail("lines are still wrapped")


def test_opens_in_a_moment(page):
    loaded = page.evaluate(
        "performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart"
    )
    assert loaded < 20_000, "2 s alone; tests may run beside other work"
