"""The live figures as a reader uses them, by mouse and by keyboard, held against PyTorch and the package."""

import json
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gradcam_lib import faithfulness
from gradcam_lib.optimizers import SCHEDULES

PAGES = {
    "convolution": "chapters/02-convolution.html",
    "softmax": "chapters/04-backpropagation.html",
    "schedule": "chapters/05-training.html",
    "threshold": "chapters/09-trust.html",
}
PATIENCE = 180_000  # milliseconds, as in test_site.py


@pytest.fixture(scope="module")
def window(browser):
    with browser.new_context(viewport={"width": 1280, "height": 900}) as window:
        yield window


@pytest.fixture
def live(request, window, url):
    """The live figure that a test is named after, and its numbers; in the end nothing may stand on the console."""
    name = next(name for name in PAGES if name in request.node.name)
    errors = []
    with window.new_page() as tab:
        tab.on("console", lambda m: m.type in ("error", "warning") and errors.append(m.text))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(url + PAGES[name], timeout=PATIENCE)
        figure = tab.locator(f".live.is-live[data-live={name}]")
        figure.scroll_into_view_if_needed()
        yield figure, json.loads(figure.locator("script[type='application/json']").text_content())
    assert not errors


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text.replace("−", "-"))]


def said(figure, name):
    return figure.locator(f"[data-result={name}]").text_content().replace("\u00a0", " ")


def press(locator, keys):
    locator.focus()
    for key in keys:
        locator.press(key)


def slide(slider, value):
    """Drag a slider to a value with the mouse, as near as a pixel allows; returns the value that it took."""
    box = slider.bounding_box()
    low, high = (float(slider.get_attribute(end)) for end in ("min", "max"))
    mouse = slider.page.mouse
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(box["x"] + 8 + (box["width"] - 16) * (value - low) / (high - low), box["y"] + box["height"] / 2)
    mouse.up()
    return float(slider.input_value())


# --- convolution ---


def map_of(figure, data):
    """PyTorch's map for what the controls say."""
    kernel = [float(field.input_value()) for field in figure.locator("input[type=number]").all()]
    stride, padding = (int(figure.get_by_role("combobox", name=name).input_value()) for name in ("stride", "padding"))
    x, w = (torch.tensor(values, dtype=torch.float64) for values in (data["x"], kernel))
    return F.conv2d(x[None, None], w.view(1, 1, 3, 3), stride=stride, padding=padding)[0, 0]


def check_sum(figure, y):
    """The line says a value of the map, and its products add up to it; to the four decimals that it shows."""
    text = said(figure, "sum")
    i, j = (int(number) for number in re.match(r"Row (\d+), column (\d+):", text).groups())
    left, _, value = text.partition(": ")[2].partition(" = ")
    assert numbers(value)[0] == pytest.approx(y[i, j].item(), abs=6e-5)
    terms = re.findall(r"(−?) ?([\d.]+) · ([\d.]+)", left)
    products = sum((-1 if sign else 1) * float(weight) * float(pixel) for sign, weight, pixel in terms)
    assert products == pytest.approx(y[i, j].item(), abs=6e-5)
    return i, j


def hover(locator, y, i, j, size):
    box = locator.bounding_box()
    locator.page.mouse.move(box["x"] + (j + 0.5) * box["width"] / size, box["y"] + (i + 0.5) * box["height"] / size)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 0), (2, 1), (3, 1)])
def test_convolution_agrees_with_pytorch_for_every_kernel(live, stride, padding):
    figure, data = live
    figure.get_by_role("combobox", name="stride").select_option(str(stride))
    figure.get_by_role("combobox", name="padding").select_option(str(padding))
    feature_map = figure.get_by_role("application")
    for name in data["kernels"]:
        figure.get_by_role("combobox", name="kernel").select_option(name)
        y = map_of(figure, data)
        assert numbers(said(figure, "size"))[-1] == len(y)
        for i, j in [(0, 0), (len(y) - 1, len(y) - 1), (len(y) // 2, len(y) // 3)]:
            hover(feature_map, y, i, j, len(y))
            assert check_sum(figure, y) == (i, j)


def test_convolution_by_keyboard(live):
    figure, data = live
    y = map_of(figure, data)
    feature_map = figure.get_by_role("application")
    i, j = check_sum(figure, y)
    press(feature_map, ["ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowUp"])
    assert check_sum(figure, y) == (i - 1, j + 2)
    press(feature_map, ["ArrowLeft"] * 30)
    assert check_sum(figure, y) == (i - 1, 0)  # it stops at the border


def test_convolution_of_a_kernel_that_is_typed(live):
    figure, data = live
    fields = figure.locator("input[type=number]")
    for k, value in enumerate((-1.5, 0, 2, 0.125, 1, -1, 0, 0, 0.5)):
        fields.nth(k).focus()
        figure.page.keyboard.press("Control+a")
        figure.page.keyboard.type(str(value))
    assert figure.get_by_role("combobox", name="kernel").input_value() == "your own"
    check_sum(figure, map_of(figure, data))


def test_convolution_finds_the_window_under_the_mouse_in_the_picture(live):
    figure, data = live
    figure.get_by_role("combobox", name="stride").select_option("2")
    y = map_of(figure, data)
    picture = figure.locator(".live-grid").first
    hover(picture, y, 9, 5, len(data["x"]))  # the middle of the window that begins at row 8, column 4
    assert check_sum(figure, y) == (4, 2)
    figure.page.mouse.down()
    figure.page.mouse.up()
    figure.page.mouse.move(0, 0)
    assert check_sum(figure, y) == (4, 2)  # pressed, it stays


def test_convolution_draws_the_map_that_it_computed(live):
    figure, data = live
    figure.get_by_role("combobox", name="kernel").select_option("identity")
    y = map_of(figure, data).numpy()
    drawn = (
        figure.locator("canvas")
        .nth(1)
        .evaluate(
            "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, k) => k % 4 == 0)"
        )
    )
    assert np.abs(np.reshape(drawn, y.shape) / 255 - y / y.max()).max() < 0.01


# --- softmax ---


def check_softmax(figure, z, label):
    p = torch.softmax(torch.tensor(z), 0)
    gradient = p - F.one_hot(torch.tensor(label), len(z))
    shown = [[numbers(row)[0] for row in figure.locator(column).all_text_contents()]
             for column in (".number", ".live-bar:not(.is-signed)", ".live-bar.is-signed")]  # fmt: skip
    for column, expected, places in zip(shown, (torch.tensor(z), p, gradient), (2, 3, 3), strict=True):
        np.testing.assert_allclose(column, expected, atol=0.51 * 10**-places)
    loss = F.cross_entropy(torch.tensor(z)[None], torch.tensor([label])).item()
    assert numbers(said(figure, "loss"))[-1] == pytest.approx(loss, abs=5.1e-4)


def test_softmax_begins_with_the_scores_of_the_chapter(live):
    figure, data = live
    check_softmax(figure, data["z"], data["label"])


def test_softmax_by_mouse(live):
    figure, data = live
    z = list(data["z"])
    for k, value in ((0, 7.0), (4, -8.0)):
        z[k] = slide(figure.get_by_label(f"score of {data['classes'][k]}"), value)
        assert z[k] == pytest.approx(value, abs=0.5)
    check_softmax(figure, z, data["label"])
    figure.get_by_role("button", name="Reset").click()
    check_softmax(figure, data["z"], data["label"])


def test_softmax_by_keyboard(live):
    figure, data = live
    z, label = list(data["z"]), 5
    slider = figure.get_by_label(f"score of {data['classes'][3]}")
    press(slider, ["ArrowLeft"] * 7)
    z[3] = float(slider.input_value())
    assert z[3] == pytest.approx(data["z"][3] - 0.7, abs=0.06)
    press(figure.get_by_role("combobox", name="true class"), data["classes"][label][0])  # the letter chooses
    assert (
        figure.get_by_role("combobox", name="true class").input_value() == data["classes"][4]
    )  # deer, the first with that letter
    figure.get_by_role("combobox", name="true class").press("ArrowDown")
    check_softmax(figure, z, label)


def test_softmax_steps_against_the_gradient(live):
    figure, data = live
    z = torch.tensor(data["z"], dtype=torch.float64)
    figure.get_by_role("combobox", name="true class").select_option(data["classes"][5])
    step = figure.get_by_role("button", name="Step")
    step.click()
    press(step, ["Enter", "Space"])
    for _ in range(3):
        z = z - (torch.softmax(z, 0) - F.one_hot(torch.tensor(5), len(z)))
    check_softmax(figure, z.tolist(), 5)


def test_softmax_of_scores_far_apart_stays_finite(live):
    figure, data = live
    z = list(data["z"])
    for k, key in ((0, "End"), (data["label"], "Home")):
        slider = figure.get_by_label(f"score of {data['classes'][k]}")
        press(slider, [key])
        z[k] = float(slider.input_value())
    check_softmax(figure, z, data["label"])


# --- schedule ---


def check_step(figure, expected):
    text = said(figure, "step")
    schedule, step = re.match(r"([\w-]+): after (\d+) of", text).groups()
    assert numbers(text.removesuffix("."))[-1] == pytest.approx(expected(schedule, int(step)), rel=6e-4, abs=1e-12)
    return int(step)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_the_packages(live, name):
    figure, data = live
    figure.get_by_role("combobox", name="schedule").select_option(name)
    steps = figure.get_by_role("slider", name="steps done")

    def expected(schedule, step):
        assert schedule == name
        return data["peak"] * SCHEDULES[name](step / data["steps"])

    press(steps, ["Home"])
    assert check_step(figure, expected) == 0
    for _ in range(12):
        press(steps, ["PageUp"])
        check_step(figure, expected)
    press(steps, ["End"])
    assert check_step(figure, expected) == data["steps"]
    press(steps, ["ArrowLeft"] * 3)
    assert check_step(figure, expected) == data["steps"] - 3


def test_schedule_is_read_by_moving_along_the_curve(live):
    figure, data = live
    box = figure.locator(".live-chart").bounding_box()
    seen = []
    for share in (0.2, 0.4, 0.6, 0.8):
        figure.page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        seen.append(check_step(figure, lambda _, k: data["peak"] * SCHEDULES["one-cycle"](k / data["steps"])))
    assert seen == sorted(seen) and seen[-1] - seen[0] > data["steps"] / 2


def test_schedule_with_another_peak_and_warm_up_is_pytorchs(live):
    figure, data = live
    steps = data["steps"]
    peak = slide(figure.get_by_role("slider", name="peak"), 0.15)
    warm_up = slide(figure.get_by_role("slider", name="warm-up"), 60) / 100
    assert (peak, warm_up) != (data["peak"], data["warmUp"])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=peak, total_steps=steps + 1, pct_start=(warm_up * steps + 1) / (steps + 1)
    )  # it counts the steps of the warm-up from 1
    sizes = []
    for _ in range(steps):
        sizes.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    sizes.append(theirs.get_last_lr()[0])
    along = figure.get_by_role("slider", name="steps done")
    press(along, ["Home"])
    for _ in range(11):
        check_step(figure, lambda _, k: sizes[k])
        press(along, ["PageUp"])


# --- threshold ---


def check_scores(figure, picture, shape, threshold):
    """Against `faithfulness.iou`, to the three decimals that are shown."""
    M = torch.tensor(picture["level"], dtype=torch.float32).reshape(1, *shape) / 100
    O = torch.tensor([pixel == "1" for pixel in picture["mask"]]).reshape(1, *shape)
    above = threshold <= M
    both = (above & O).sum()
    expected = [faithfulness.iou(M, O, threshold).item(), (both / above.sum()).item(), (both / O.sum()).item()]
    assert numbers(said(figure, "scores")) == pytest.approx(expected, abs=5.1e-4)
    return expected[0]


def test_threshold_by_mouse(live):
    figure, data = live
    shape = data["height"], data["width"]
    check_scores(figure, data["pictures"][0], shape, 0.5)
    slider = figure.get_by_role("slider", name="threshold")
    for value in (10, 35, 90):
        k = slide(slider, value)
        assert k == pytest.approx(value, abs=2)
        check_scores(figure, data["pictures"][0], shape, k / 100)
    box = figure.locator(".live-chart").bounding_box()
    figure.page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    k = float(slider.input_value())
    assert 15 < k < 35
    check_scores(figure, data["pictures"][0], shape, k / 100)


def test_threshold_by_keyboard(live):
    figure, data = live
    shape = data["height"], data["width"]
    slider, pictures = figure.get_by_role("slider", name="threshold"), figure.get_by_role("combobox", name="picture")
    for n, picture in enumerate(data["pictures"]):
        press(slider, ["Home"])
        for k in range(0, 101, 10):
            assert float(slider.input_value()) == k
            check_scores(figure, picture, shape, k / 100)
            press(slider, ["ArrowRight"] * 10)
        if n + 1 < len(data["pictures"]):
            press(pictures, ["ArrowDown"])


def test_threshold_marks_the_best(live):
    figure, data = live
    shape = data["height"], data["width"]
    for n, picture in enumerate(data["pictures"]):
        figure.get_by_role("combobox", name="picture").select_option(index=n)
        button = figure.get_by_role("button", name="Best")
        press(button, ["Enter"])
        k = float(figure.get_by_role("slider", name="threshold").input_value())
        iou = check_scores(figure, picture, shape, k / 100)
        M = torch.tensor(picture["level"], dtype=torch.float32).reshape(1, *shape)
        O = torch.tensor([pixel == "1" for pixel in picture["mask"]]).reshape(1, *shape)
        assert iou == pytest.approx(faithfulness.best_iou(M, O).item(), abs=1e-6)  # of a map in hundredths
        assert numbers(button.text_content()) == pytest.approx([k / 100, iou], abs=5.1e-4)


# --- all of them ---


@pytest.mark.parametrize("name", PAGES)
def test_without_scripts_the_still_is_there(browser, url, name):
    with browser.new_context(java_script_enabled=False) as window, window.new_page() as tab:
        tab.goto(url + PAGES[name], timeout=PATIENCE)
        figure = tab.locator(f".live[data-live={name}]")
        assert figure.locator("> img").is_visible()
        assert figure.locator("> img").bounding_box()["width"] > 200
        assert figure.locator("input, select, button").count() == 0
        assert tab.locator(f"figure:has(.live[data-live={name}]) > figcaption").is_visible()


@pytest.mark.parametrize("name", PAGES)
def test_on_paper_the_still_is_there(window, url, name):
    with window.new_page() as tab:
        tab.goto(url + PAGES[name], timeout=PATIENCE)
        tab.emulate_media(media="print")
        figure = tab.locator(f".live.is-live[data-live={name}]")
        assert figure.locator("> img").is_visible() and not figure.locator(".live-body").is_visible()


# What does not suit a finger or an eye, in words.
TOO_SMALL = """figure => [...figure.querySelectorAll(".live-body *")].flatMap(node => {
    const box = node.getBoundingClientRect(), size = parseFloat(getComputedStyle(node).fontSize), faults = [];
    const name = `${node.tagName} ${node.textContent.slice(0, 20)}`;
    if (box.right > innerWidth + 1) faults.push(`${name} leaves the screen`);
    if (node.children.length === 0 && node.textContent && size < 12) faults.push(`${name}: letters of ${size} pixels`);
    if (node.matches("select, button, input") && box.height < 40) faults.push(`${name} is ${box.height} pixels high`);
    return faults;
})"""


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_on_a_telephone_it_fits(browser, url, name, mode):
    with browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=mode) as window:
        with window.new_page() as tab:
            tab.goto(url + PAGES[name], timeout=PATIENCE)
            figure = tab.locator(f".live.is-live[data-live={name}]")
            figure.wait_for()
            assert figure.evaluate(TOO_SMALL) == []
            assert tab.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("name", PAGES)
def test_every_control_has_a_name_and_can_be_reached(browser, url, name):
    with browser.new_page() as tab:
        tab.goto(url + PAGES[name], timeout=PATIENCE)
        figure = tab.locator(f".live.is-live[data-live={name}]")
        controls = figure.locator("select, button, input:enabled, [tabindex]").all()
        assert len(controls) >= 3
        controls[0].focus()
        for control in controls:
            assert control.evaluate("node => node === document.activeElement")
            assert control.evaluate("n => n.ariaLabel || n.labels?.[0]?.textContent.trim() || n.textContent.trim()")
            tab.keyboard.press("Tab")
