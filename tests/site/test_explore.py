"""The page Explore, driven as a reader would: what its browser computes is what gradcam_lib computes."""

import base64
import io
import itertools
import re
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
from conftest import FLAGS
from PIL import Image
from skimage import data

import gradcam_lib as gc
from gradcam_lib.architectures import Preparation

PATIENCE = 120_000  # milliseconds for anything, on a machine that may be training a network beside
LAYERS = {
    "efficientnet-lite0": [f"features.stage{i}" for i in (2, 3, 4, 5, 6)] + ["features"],
    "cifar10-fast": ["features.group1", "features.group2", "features.group3.conv1", "features.group3"],
}
PHOTOGRAPHS = {  # in scikit-image itself, so that nothing is downloaded
    "chelsea": data.chelsea, "coffee": data.coffee, "rocket": data.rocket, "astronaut": data.astronaut,
    "motorcycle": lambda: data.stereo_motorcycle()[0], "other motorcycle": lambda: data.stereo_motorcycle()[1],
    "hubble": data.hubble_deep_field, "retina": data.retina, "ihc": data.immunohistochemistry, "camera": data.camera,
    "coins": data.coins, "moon": data.moon, "brick": data.brick, "grass": data.grass, "page": data.page,
}  # fmt: skip
TEST_PICTURES = range(12)  # of CIFAR-10
names = itertools.count()

RESULT = """() => {
    const r = document.querySelector("#explorer").result, {model, layer, picture, h, w} = r;
    const [logits, map, crop, sum] = [r.logits, r.map, r.crop, r.parts?.sums.at(-1) ?? []].map(v => Array.from(v));
    return {model, layer, class: r.class, picture, h, w, logits, map, crop, sum};
}"""


@contextmanager
def window(browser, url, width=1280, mode="light", **options):
    """A tab, and a list of what went wrong in it."""
    with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=mode, **options) as context:
        tab, faults = context.new_page(), []
        tab.set_default_timeout(PATIENCE)
        own = url, "data:", "blob:"
        tab.on("request", lambda r: r.url.startswith(own) or faults.append(f"asks another host: {r.url}"))
        tab.on("console", lambda m: m.type in ("error", "warning") and faults.append(f"console {m.type}: {m.text}"))
        tab.on("pageerror", lambda error: faults.append(f"script error: {error}"))
        yield tab, faults


@pytest.fixture(scope="module")
def opened(browser, url):
    with window(browser, url) as (tab, faults):
        tab.goto(f"{url}chapters/explore.html")
        yield tab, faults


@pytest.fixture
def tab(opened):
    tab, faults = opened
    faults.clear()
    yield tab
    assert faults == []


@cache
def network(name):
    return gc.load_model(name)


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).convert("RGB").save(file, "PNG")
    return file.getvalue()


def wait(tab, **wanted):
    tests = " && ".join(f"r.{key} === {value!r}" for key, value in wanted.items())
    tab.wait_for_function(f"() => {{ const r = document.querySelector('#explorer').result; return r && {tests}; }}")
    return tab.evaluate(RESULT)


def use(tab, model):
    """Choose a network, at its last layer; load it if it is not there yet."""
    tab.locator(".networks label").nth(list(LAYERS).index(model)).click()
    tab.locator(".layers label").last.click()
    if tab.locator(".start").is_visible():
        tab.get_by_role("button", name=re.compile("Load this network")).click()
    tab.locator(".start").wait_for(state="hidden")


def show(tab, model, file, name=None):
    """Hand a picture over, the bytes of a file, and wait for its map."""
    use(tab, model)
    name = f"{next(names)} {name or 'picture'}"
    tab.locator("input[type=file]").set_input_files({"name": name, "mimeType": "image/png", "buffer": file})
    return wait(tab, model=model, layer=LAYERS[model][-1], picture=name)


def agree(found, model, crop, layer=None, target=None):
    """The page's result for a picture is that of the package."""
    net = network(model)
    x = net.prepare(crop)
    wanted = gc.explain(net, x, layer=layer or LAYERS[model][-1], targets=target)
    M, map = wanted.maps[0].numpy(), np.reshape(found["map"], (found["h"], found["w"]))
    assert found["layer"] == wanted.layer and found["class"] == wanted.targets.item()
    assert np.argmax(found["logits"]) == wanted.logits.argmax()
    assert np.abs(np.array(found["logits"]) - wanted.logits[0].detach().numpy()).max() < 1e-3
    assert np.abs(map - M).max() <= 1e-3 * M.max()


def second(model, crop):
    net = network(model)
    return int(net(net.prepare(crop)).topk(2).indices[0, 1])


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_has_the_map_that_python_gives_it(tab, name):
    file = png(PHOTOGRAPHS[name]())
    crop = network("efficientnet-lite0").prepare.crop(gc.load_image(file))
    found = show(tab, "efficientnet-lite0", file)
    assert np.array_equal(np.reshape(found["crop"], crop.shape), crop)
    agree(found, "efficientnet-lite0", gc.load_image(file))


@pytest.mark.parametrize("name", [*TEST_PICTURES, "chelsea", "coffee"])
def test_the_network_of_the_book_has_the_map_that_python_gives_it(tab, name):
    picture = gc.load_dataset("cifar10").test.data[name] if isinstance(name, int) else PHOTOGRAPHS[name]()
    found = show(tab, "cifar10-fast", png(picture))
    assert np.array_equal(np.reshape(found["crop"], (32, 32, 3)), network("cifar10-fast").prepare.crop(picture))
    agree(found, "cifar10-fast", picture)


@pytest.mark.parametrize(
    "shape", [(1, 1), (31, 33), (40, 41), (224, 225), (97, 600), (800, 301), (600, 299), (256, 256), (3, 200)]
)
@pytest.mark.parametrize("prepare", [Preparation(32, 32), Preparation(256, 224, interpolation="bicubic")])
def test_pictures_are_resized_to_the_bit(tab, shape, prepare):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    picture[: shape[0] // 2] = picture[: shape[0] // 2] // 128 * 255  # bicubic weights overshoot at hard edges
    rgba = np.dstack([picture, np.full(shape, 255, np.uint8)])
    model = {"resize": prepare.resize, "size": prepare.size, "interpolation": prepare.interpolation}
    found = tab.evaluate(
        """([bytes, height, width, model]) => {
            const rgba = Uint8Array.from(atob(bytes), c => c.charCodeAt());
            return [...crop((y, n) => rgba.subarray(4 * y * width, 4 * (y + n) * width), width, height, model)];
        }""",
        [base64.b64encode(rgba.tobytes()).decode(), *shape, model],
    )
    assert np.array_equal(np.reshape(found, (prepare.size, prepare.size, 3)), prepare.crop(picture))


@pytest.mark.parametrize("shape", [(7, 7), (3, 3), (14, 14), (1, 1), (5, 9)])
def test_maps_are_enlarged_as_pytorch_does(tab, shape):
    map = np.random.default_rng(0).random(shape, np.float32)
    found = tab.evaluate("([map, h, w]) => [...enlarge(map, h, w, 224, 224)]", [map.ravel().tolist(), *shape])
    wanted = torch.nn.functional.interpolate(torch.from_numpy(map)[None, None], (224, 224), mode="bilinear")[0, 0]
    assert np.abs(np.reshape(found, (224, 224)) - wanted.numpy()).max() < 1e-6


@pytest.mark.parametrize("model", LAYERS)
def test_another_class_and_another_layer_by_mouse(tab, model):
    picture = PHOTOGRAPHS["coffee"]()
    show(tab, model, png(picture))
    target = second(model, picture)
    tab.locator(".class").nth(1).click()
    agree(wait(tab, **{"class": target}), model, picture, target=target)
    for number, layer in enumerate(LAYERS[model]):
        tab.locator(".layers label").nth(number).click()
        agree(wait(tab, layer=layer), model, picture, layer, target)
    assert tab.locator(".class[aria-pressed=true]").inner_text().startswith(network(model).classes[target])


@pytest.mark.parametrize(
    "model, word, name", [("efficientnet-lite0", "DALM", "dalmatian"), ("cifar10-fast", "d", "dog")]
)
def test_another_class_and_another_layer_by_keyboard(tab, model, word, name):
    picture = PHOTOGRAPHS["chelsea"]()
    show(tab, model, png(picture))
    tab.locator(".class").nth(1).focus()
    tab.keyboard.press("Enter")
    wait(tab, **{"class": second(model, picture)})
    tab.get_by_role("combobox").focus()
    tab.keyboard.type(word)
    for _ in range(20):
        if tab.locator("[role=option][aria-selected=true] span").inner_text() == name:
            break
        tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    target = network(model).classes.index(name)
    agree(wait(tab, **{"class": target}), model, picture, target=target)
    tab.locator(".layers input:checked").focus()
    tab.keyboard.press("ArrowUp")
    agree(wait(tab, layer=LAYERS[model][-2]), model, picture, LAYERS[model][-2], target)


def test_a_map_that_is_zero_everywhere_is_said_in_words(tab):
    model, classes = "cifar10-fast", network("cifar10-fast").classes
    pictures = gc.load_dataset("cifar10").test.data[:20]
    x = network(model).prepare(list(pictures))
    zero = (gc.explain(network(model), x, targets=[list(range(10))] * 20).maps.flatten(2).amax(2) == 0).nonzero()
    k, target = zero[0].tolist()
    show(tab, model, png(pictures[k]))
    tab.get_by_role("combobox").fill(classes[target])
    tab.keyboard.press("Enter")
    assert max(wait(tab, **{"class": target})["map"]) == 0
    assert f"nothing speaks for “{classes[target]}”" in tab.locator(".view .status").inner_text()


@pytest.mark.parametrize("model", LAYERS)
def test_the_weighted_sum_becomes_the_map(tab, model):
    show(tab, model, png(PHOTOGRAPHS["chelsea"]()))
    if not tab.locator("details.making").evaluate("details => details.open"):
        tab.locator("details.making summary").click()
    found = tab.wait_for_function(
        f"() => document.querySelector('#explorer').result.parts && ({RESULT})()"
    ).json_value()
    assert np.allclose(np.maximum(found["sum"], 0), found["map"], atol=1e-4 * max(found["map"]))
    assert len(set(tab.locator(".tiles li").all_inner_texts())) == 12
    slider = tab.get_by_label("Add the maps, strongest first")
    slider.focus()
    tab.keyboard.press("Home")
    assert tab.locator(".tiles li.in").count() == 1
    tab.keyboard.press("ArrowRight")
    assert tab.locator(".tiles li.in").count() == 2 and slider.get_attribute("aria-valuetext").startswith(
        "The 2 strong"
    )
    tab.keyboard.press("End")
    assert slider.get_attribute("aria-valuetext").endswith("this is the Grad-CAM map.")


def test_a_file_that_is_no_picture_is_refused_and_the_picture_stays(tab):
    before = show(tab, "cifar10-fast", png(PHOTOGRAPHS["rocket"]()))
    notes = {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"Buy milk."}
    tab.locator("input[type=file]").set_input_files(notes)
    alert = tab.get_by_role("alert")
    alert.wait_for()
    assert "“notes.jpg” is not a picture" in alert.inner_text()
    tab.locator(".view .heat").wait_for()
    tab.locator(".class").nth(1).click()  # what stayed can still be asked
    target = second("cifar10-fast", PHOTOGRAPHS["rocket"]())
    assert wait(tab, **{"class": target})["picture"] == before["picture"]


def test_a_picture_can_be_dropped_and_pasted(tab):
    use(tab, "cifar10-fast")
    for event, key, place in (("drop", "dataTransfer", "#explorer"), ("paste", "clipboardData", "body")):
        tab.evaluate(
            """([event, key, place, bytes]) => {
                const held = new DataTransfer(), data = Uint8Array.from(atob(bytes), c => c.charCodeAt());
                held.items.add(new File([data], `${event}.png`, {type: "image/png"}));
                const Kind = event === "drop" ? DragEvent : ClipboardEvent;
                document.querySelector(place).dispatchEvent(new Kind(event, {[key]: held, bubbles: true}));
            }""",
            [event, key, place, base64.b64encode(png(PHOTOGRAPHS["coffee"]())).decode()],
        )
        wait(tab, picture=f"{event}.png")


def test_a_picture_of_50_megapixels(tab, tmp_path):
    file = tmp_path / "large.jpg"
    Image.fromarray(data.chelsea()).resize((8660, 5774), Image.Resampling.BICUBIC).save(file, quality=90)
    found = show(tab, "efficientnet-lite0", file.read_bytes())
    crop = network("efficientnet-lite0").prepare.crop(gc.load_image(file))
    assert np.abs(np.reshape(found["crop"], crop.shape) - crop.astype(int)).max() <= 2  # decoders of JPEG may differ
    assert "8,660 × 5,774" in tab.locator(".view .fine").inner_text()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_telephones_picture_is_upright(tab, tmp_path, orientation):
    picture = Image.fromarray(data.coffee()).crop((100, 20, 400, 260))
    picture.getexif()[0x0112] = orientation
    picture.save(tmp_path / "upright.jpg", exif=picture.getexif(), quality=95)
    file = (tmp_path / "upright.jpg").read_bytes()
    crop = network("cifar10-fast").prepare.crop(gc.load_image(file))
    found = show(tab, "cifar10-fast", file)
    assert np.abs(np.reshape(found["crop"], crop.shape) - crop.astype(int)).max() <= 2


def test_transparency_lies_on_white(tab):
    rng, file = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (32, 32, 4), dtype=np.uint8), "RGBA").save(file, "PNG")
    found = show(tab, "cifar10-fast", file.getvalue())
    difference = np.reshape(found["crop"], (32, 32, 3)) - gc.load_image(file.getvalue()).astype(int)
    assert np.abs(difference).max() <= 1  # a canvas holds colours multiplied by their opacity, in 8 bits


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_the_page_fits_a_telephone(browser, url, mode):
    with window(browser, url, 390, mode, has_touch=True) as (tab, faults):
        tab.goto(f"{url}chapters/explore.html")
        tab.locator(".making summary").click()
        for model in LAYERS:
            show(tab, model, png(PHOTOGRAPHS["coffee"]()))
            for arrangement in ("Side by side", "Overlay"):
                tab.get_by_text(arrangement, exact=True).click()
                assert tab.evaluate("document.documentElement.scrollWidth") == 390
        low = tab.locator(
            "#explorer :is(button, label.button, label.choice, input[role=combobox], summary)"
        ).evaluate_all("nodes => nodes.filter(n => n.offsetHeight && n.offsetHeight < 40).map(n => n.outerHTML)")
        assert low == [] and faults == []


def test_the_camera_is_followed_until_it_is_stopped(browser, chromium, url):
    fake = ["use-fake-device-for-media-stream", "use-fake-ui-for-media-stream"]
    flags = [f"--{flag}" for flag in [*FLAGS, *fake]]
    with browser.browser_type.launch(executable_path=chromium, args=flags) as with_camera:
        with window(with_camera, url) as (tab, faults):
            tab.add_init_script("""{
                const ask = MediaDevices.prototype.getUserMedia;
                MediaDevices.prototype.getUserMedia = async function (...given) {
                    return window.stream = await ask.apply(this, given);
                };
            }""")
            tab.goto(f"{url}chapters/explore.html")
            use(tab, "cifar10-fast")
            tab.get_by_role("button", name="Use the camera").click()
            first = wait(tab, picture="the camera’s picture")
            tab.wait_for_function(
                "crop => document.querySelector('#explorer').result.crop.some((v, i) => v !== crop[i])",
                arg=first["crop"],
            )
            tab.get_by_role("button", name="Stop the camera").click()
            assert tab.evaluate("stream.getTracks().map(track => track.readyState)") == ["ended"]
            tab.locator(".networks label").first.click()  # the last frame stays, and can be shown to the other network
            use(tab, "efficientnet-lite0")
            assert len(wait(tab, model="efficientnet-lite0", picture="the camera’s picture")["crop"]) == 224 * 224 * 3
            tab.get_by_role("button", name="Use the camera").click()
            tab.get_by_role("button", name="Stop the camera").wait_for()
            tab.evaluate("dispatchEvent(new PageTransitionEvent('pagehide'))")
            assert tab.evaluate("stream.getTracks().map(track => track.readyState)") == ["ended"]
            assert faults == []


def test_a_refused_camera_is_said_in_a_sentence(tab):
    tab.get_by_role("button", name="Use the camera").click()  # Chromium without a screen refuses, or has no camera
    alert = tab.get_by_role("alert")
    alert.wait_for()
    assert "camera" in alert.inner_text()


def test_a_network_that_cannot_be_fetched_can_be_asked_for_again(browser, url):
    with window(browser, url) as (tab, _):
        tab.route("**/*.onnx", lambda route: route.fulfill(status=404))
        tab.goto(f"{url}chapters/explore.html")
        tab.get_by_role("button", name=re.compile("Load this network")).click()
        tab.get_by_role("alert").wait_for()
        assert "could not be loaded" in tab.get_by_role("alert").inner_text()
        tab.unroute("**/*.onnx")
        use(tab, "cifar10-fast")
        wait(tab, model="cifar10-fast")
        assert not tab.get_by_role("alert").is_visible()


def test_nothing_large_is_fetched_unasked(browser, url):
    with window(browser, url) as (tab, faults):
        asked = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(f"{url}chapters/explore.html")
        tab.get_by_role("button", name=re.compile(r"Load this network \(\d+\.\d MB\)")).wait_for()
        assert not [to for to in asked if "/ort/" in to or to.endswith(".onnx")] and faults == []


def test_from_the_disk_the_page_says_how_to_serve_it(browser, html):
    page = (html / "chapters" / "explore.html").as_uri()
    with window(browser, "file:") as (tab, faults):
        tab.goto(page)
        alert = tab.get_by_role("alert")
        assert "python -m http.server" in alert.inner_text() and "http://localhost:8000" in alert.inner_text()
        assert tab.locator("#explorer > *").count() == 1
        assert [fault for fault in faults if not fault.startswith("console")] == []  # the theme's fonts, in Chromium


@pytest.mark.parametrize(
    "script, options, said",
    [
        ("delete window.WebAssembly", {}, "lacks WebAssembly"),
        ("", {"java_script_enabled": False}, "takes JavaScript"),
    ],
)
def test_a_browser_that_cannot_says_so(browser, url, script, options, said):
    with window(browser, url, **options) as (tab, _):
        tab.add_init_script(script)
        tab.goto(f"{url}chapters/explore.html")
        assert said in tab.locator("#explorer").inner_text()
