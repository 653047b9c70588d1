"""axe-core on every page, in both themes: nothing serious."""

import pytest
from test_site import PAGES, PATIENCE

from gradcam_lib.datasets import data_cache
from gradcam_lib.npm import npm_files

AXE, AXE_BYTES = "axe-core@4.14.1", 708_405


@pytest.fixture(scope="session")
def axe():
    return (npm_files(AXE, AXE_BYTES, ["axe.min.js"], data_cache() / AXE) / "axe.min.js").read_text()


@pytest.fixture(scope="module", params=["light", "dark"])
def tab(request, browser):
    with browser.new_context(viewport={"width": 1280, "height": 844}, color_scheme=request.param) as window:
        yield window.new_page()


@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_nothing_serious(tab, url, page, axe):
    tab.goto(f"{url}{page}.html", timeout=PATIENCE)
    tab.evaluate("window.MathJax?.startup?.promise")
    tab.evaluate(axe)
    found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [
        f"{v['impact']} {v['id']}, {len(v['nodes'])} times, first {v['nodes'][0]['html'][:200]}: "
        + " ".join(v["nodes"][0]["failureSummary"].split())
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert not serious, "\n".join(serious)
