"""The report of an audit in a browser: it asks nobody, runs nothing, and fits the window, whatever files are called."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

import gradcam_lib as gc
from gradcam_lib.architectures import Preparation
from gradcam_lib.shapes import make_shapes

WINDOWS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
FILE = (
    "\"'><img src=x onerror=document.title=1><script>document.title='x'<script>{{}}$model&lt; {}.png"  # no / in a name
)
CLASS = "</title></style></main><script>document.title='x'</script><iframe src=//example.org>&\"' "

# The contrast of each text with the nearest background that is painted behind it (WCAG 2.2, 1.4.3), where it is low.
FAINT = r"""() => {
    const rgb = colour => colour.match(/[\d.]+/g).map(Number);
    const linear = v => (v /= 255) <= .04 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b), faint = [];
    for (const e of document.querySelectorAll("main *")) {
        if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) continue;
        let b = e; while (b.parentElement && rgb(getComputedStyle(b).backgroundColor)[3] === 0) b = b.parentElement;
        const style = getComputedStyle(e), ink = e instanceof SVGElement ? style.fill : style.color;
        const [x, y] = [light(rgb(ink)), light(rgb(getComputedStyle(b).backgroundColor))].sort((p, q) => q - p);
        if ((x + .05) / (y + .05) < 4.5) faint.push(e.textContent);
    }
    return faint;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of a data set whose files and classes are named by somebody who means no good."""
    folder = tmp_path_factory.mktemp("audit")
    shapes = make_shapes(16)
    for k, image in enumerate(np.repeat(shapes.images, 2, 0)):
        place = folder / "pictures" / f"class {k % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / FILE.format(k))  # each twice, in two classes
    torch.manual_seed(0)
    model = gc.build_model("report-cnn", 2)
    model.prepare, model.classes, model.name = Preparation(32, 32), (CLASS + "0", CLASS + "1"), CLASS
    data = ImageFolder(folder / "pictures")
    data.classes = list(model.classes)
    found = gc.audit(model, data)
    assert found.images["why"].str.contains("script").all() and (found.images["name"].str.startswith("\"'>")).all()
    return found.save(folder / "audit.html"), found


@pytest.mark.parametrize("width, mode", WINDOWS)
def test_the_report_is_whole_and_its_names_do_nothing(browser, report, width, mode):
    file, found = report
    with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=mode) as window:
        tab, faults = window.new_page(), []
        tab.on("request", lambda r: r.url.startswith(("file:", "data:")) or faults.append(f"asks for {r.url}"))
        tab.on("console", lambda m: faults.append(f"console {m.type}: {m.text}"))
        tab.on("pageerror", lambda error: faults.append(f"script error: {error}"))
        tab.on("dialog", lambda dialog: faults.append("a dialog"))
        tab.goto(file.as_uri())
        assert tab.title() == f"Audit of {CLASS}".strip()
        assert tab.locator("script, iframe, object, embed, link").count() == 0
        assert tab.locator("img").count() == sum(1 + (heat is not None) for _, heat in found.pictures.values())
        assert all(tab.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)"))
        names = tab.locator(".suspects strong").all_text_contents()
        assert set(names) <= set(found.images["name"]) and len(names) == len(found.pictures)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(FAINT) == []
        assert faults == []
