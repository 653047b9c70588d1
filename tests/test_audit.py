"""The audit of networks that have a known fault, and of the same networks without it."""

import re
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from bs4 import BeautifulSoup
from torch import nn
from torch.utils.data import Subset, TensorDataset

import gradcam_lib as gc
from gradcam_lib.auditing import TESTS
from gradcam_lib.datasets import DATASETS, ArrayDataset, Splits
from gradcam_lib.decoded import DecodedPictures
from gradcam_lib.faithfulness import BASELINES
from gradcam_lib.shapes import CLASSES, make_shapes
from gradcam_lib.training import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = Recipe(
    name="small", dataset="shapes", model="report-cnn-normalised", epochs=5, optimizer="sgd", lr=0.1, nesterov=True,
    weight_decay=5e-4, schedule="one-cycle",
)  # fmt: skip
NOTHING = {"not tested"}


@pytest.fixture(autouse=True)
def costly_tests_on_few_images(monkeypatch):
    monkeypatch.setattr(sys.modules["gradcam_lib.auditing"], "MOST", 16)


def trained(train, recipe):
    splits = Splits(DATASETS["shapes"], train, train.take(slice(50)), train.take(slice(50)), train.classes, "0" * 64)
    return gc.train(recipe, data=splits, progress=False).model


def drawn(count, start, tie):
    shapes = make_shapes(count, start=start, tie=tie)
    return ArrayDataset(shapes.images, shapes.labels, CLASSES, shapes.masks)


@pytest.fixture(scope="module")
def shortcut(one_thread):
    """A network that could tell most classes by their background, and images like those of its training."""
    return trained(drawn(1500, 0, 1.0), RECIPE), drawn(256, 100_000, 1.0)


@pytest.fixture(scope="module")
def honest(one_thread):
    """The same, trained on backgrounds that say nothing."""
    return trained(drawn(1800, 0, 0.0), replace(RECIPE, epochs=6)), drawn(256, 100_000, 0.0)


def squares(count, seed, frame):
    """Four classes, a bright square in a quarter of the picture each; or class 0 a frame, and a square anywhere."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 4, count)
    images = rng.integers(0, 100, (count, 32, 32, 3), dtype=np.uint8)
    for image, c in zip(images, targets, strict=True):
        place = rng.integers(4) if frame and c == 0 else c
        y, x = 7 + 10 * (place // 2), 7 + 10 * (place % 2)
        image[y : y + 8, x : x + 8] += 120
        if frame and c == 0:
            image[:2] = image[-2:] = image[:, :2] = image[:, -2:] = (200, 30, 90)
    return ArrayDataset(images, targets, ("framed", "right", "below", "across"))


@pytest.fixture(scope="module", params=[True, False], ids=["frame", "no frame"])
def framed(request, one_thread):
    recipe = Recipe(name="squares", dataset="squares", model="report-cnn", batch_size=32, epochs=6)
    return trained(squares(400, 0, request.param), recipe), squares(200, 1, request.param), request.param


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return gc.build_model("report-cnn-normalised").eval()


@pytest.fixture(scope="module")
def pictures():
    return drawn(40, 200_000, 0.0)


def verdict(report, test):
    return report.verdicts.loc[test, "verdict"]


def test_a_background_that_gives_the_class_away_is_found(shortcut, honest):
    cheat, fair = (gc.audit(*pair) for pair in (shortcut, honest))
    for test in ("maps on the object", "needs the object"):
        assert verdict(cheat, test) == "fails"
        assert verdict(fair, test) == "passes"
        row = fair.verdicts.loc[test]
        assert row["low"] <= row["value"] <= row["high"] and row["bar"] == 0 < row["low"]
    # Of the cheat's images, the ones that are shown for it point beside their object.
    shown = cheat.images[cheat.images["why"].str.contains("without the background")]
    area = shortcut[1].masks.mean((1, 2))[shown["index"]]
    assert len(shown) >= 10 and (shown["inside"] < area).all()
    named = cheat.verdicts.loc["needs the object", "meaning"].split("worth more to")[1]
    assert sum(name in named for name in CLASSES) >= 4
    for report in (cheat, fair):
        assert verdict(report, "accuracy") == verdict(report, "maps depend on the weights") == "passes"
        assert report.verdicts.index.tolist() == list(TESTS)
        assert set(report.images["index"]) == set(range(256))


def test_a_frame_that_gives_a_class_away_is_found_without_masks(framed):
    model, images, frame = framed
    report = gc.audit(model, images)
    row = report.verdicts.loc["border"]
    assert (row["verdict"], row["value"]) == (("warns", 1) if frame else ("passes", 0))
    flagged = report.images[report.images["why"].str.contains("in the border")]
    assert set(flagged["prediction"]) == ({"framed"} if frame else set())
    assert verdict(report, "needs the object") == "not tested"


def test_wrong_labels_are_the_first_of_the_suspects(framed):
    model, images, _ = framed
    rng = np.random.default_rng(0)
    wrong = rng.choice(len(images), 12, replace=False)
    labels = images.targets.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, 4, 12)) % 4
    report = gc.audit(model, ArrayDataset(images.data, labels, images.classes))
    assert verdict(report, "labels") == "warns"
    first = set(report.images["index"][:12])
    assert len(first & set(wrong)) >= 11  # precision and recall at 12, both above 0.9
    assert verdict(gc.audit(model, images), "labels") == "passes"


def test_copies_are_found_and_those_with_two_labels_come_first(untrained, pictures):
    data, labels = pictures.data.copy(), pictures.targets.copy()
    for copy, original in ((0, 20), (1, 21), (2, 22)):
        data[copy] = np.clip(0.9 * data[original] + 12, 0, 255)  # brighter, and with less contrast
        labels[copy] = labels[original]
    labels[2] = (labels[22] + 1) % 10
    report = gc.audit(untrained, ArrayDataset(data, labels, CLASSES))
    assert report.verdicts.loc["near-duplicates", ["verdict", "value"]].tolist() == ["fails", 3]
    same = report.images[report.images["why"].str.contains("nearly the same")].set_index("index")
    assert sorted(same.index) == [0, 1, 2, 20, 21, 22]
    assert all(f"image {k + 20}" in same.loc[k, "why"] for k in range(3))
    assert "labelled" in same.loc[22, "why"] and "labelled" not in same.loc[21, "why"]
    labels[2] = labels[22]
    assert verdict(gc.audit(untrained, ArrayDataset(data, labels, CLASSES)), "near-duplicates") == "warns"
    assert verdict(gc.audit(untrained, pictures), "near-duplicates") == "passes"


def test_an_edge_detector_is_no_map(honest):
    def edges(x):
        return BASELINES["edges"](x)

    model, images = honest
    report = gc.audit(model, images, images=40, method=edges)
    row = report.verdicts.loc["maps depend on the weights"]
    assert row["verdict"] == "fails" and row["value"] == pytest.approx(1)
    assert "method=edges, layer=None" in report.about["call"] and report.about["maps"] == "edges, the whole network"
    guided = gc.audit(model, images, images=40, method="layer-cam", layer="features.relu2")
    assert verdict(guided, "maps depend on the weights") == "passes"
    assert guided.about["maps"] == "layer-cam, features.relu2"


def test_an_untrained_network_is_no_better_than_chance(untrained, pictures):
    report = gc.audit(untrained, pictures)
    row = report.verdicts.loc["accuracy"]
    assert row["verdict"] == "fails" and "Not better than chance" in row["meaning"]
    assert row["bar"] == np.bincount(pictures.targets).max() / 40
    # Wilson's interval, in closed form.
    p, z2 = row["value"], 1.959964**2
    middle, half = p + z2 / 80, 1.959964 * np.sqrt(p * (1 - p) / 40 + z2 / 6400)
    assert (row["low"], row["high"]) == pytest.approx(
        ((middle - half) / (1 + z2 / 40), (middle + half) / (1 + z2 / 40))
    )


class Broken(nn.Module):
    """A convolution whose logits a function spoils."""

    def __init__(self, spoil):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.spoil = nn.Conv2d(3, 4, 3), spoil

    def forward(self, x):
        return self.spoil(self.conv(x), x)


def test_logits_that_are_not_finite_are_said_and_left_out(pictures):
    def spoil(A, x):
        z = A.mean((2, 3))
        return torch.where(x.mean((1, 2, 3))[:, None] > 0.5, z / 0, z)

    bright = pictures.data.mean((1, 2, 3)) / 255 > 0.5
    report = gc.audit(Broken(spoil), ArrayDataset(pictures.data, pictures.targets % 4, "abcd"))
    assert 0 < bright.sum() < 30
    assert report.verdicts.loc["finite outputs", ["verdict", "value"]].tolist() == ["fails", 1 - bright.mean()]
    assert sorted(report.images["index"][: bright.sum()]) == np.flatnonzero(bright).tolist()
    assert report.images["prediction"].isna().sum() == bright.sum()
    assert verdict(report, "accuracy") != "not tested"

    everywhere = gc.audit(Broken(lambda A, x: A.mean((2, 3)) * float("nan")), pictures.take(pictures.targets < 4))
    others = everywhere.verdicts.drop(["finite outputs", "near-duplicates"])
    assert set(others["verdict"]) == NOTHING and verdict(everywhere, "finite outputs") == "fails"


def test_a_network_that_says_one_thing_is_found_out(pictures):
    def always(A, x):
        return A.mean((2, 3)) * 1e-3 + torch.tensor([0.0, 0.0, 9.0, 0.0])

    report = gc.audit(Broken(always), ArrayDataset(pictures.data, pictures.targets % 4, "abcd"))
    assert report.verdicts.loc["varied predictions", "meaning"].startswith("Every image is called c.")
    assert verdict(report, "varied predictions") == verdict(report, "accuracy") == "fails"

    # Without even a difference in its logits there is nothing to explain.
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 1, 1, 16, 16, num_classes=4)  # its last layer begins with zeros
    report = gc.audit(model, TensorDataset(torch.rand(20, 3, 32, 32), torch.arange(20) * 7 % 4))
    assert verdict(report, "varied predictions") == verdict(report, "accuracy") == "fails"
    assert set(report.verdicts.loc["maps not empty":"border", "verdict"]) == NOTHING
    assert "nothing to explain" in report.verdicts.loc["ROAD", "meaning"]


def test_maps_of_zeros_are_said_and_nothing_is_concluded_from_them(pictures):
    def blind(A, x):
        return (0 * A).mean((2, 3)) + x.mean((1, 2, 3))[:, None] * torch.arange(4.0)

    report = gc.audit(Broken(blind), pictures.take(pictures.targets < 4))
    assert report.verdicts.loc["maps not empty", ["verdict", "value"]].tolist() == ["fails", 0]
    assert set(report.verdicts.loc["maps depend on the weights":"border", "verdict"]) == NOTHING
    assert report.images["empty"].all() and report.images["why"].str.contains("zero everywhere").all()
    assert all(heat is None for _, heat in report.pictures.values())


def test_little_to_look_at_gives_no_verdict(untrained, pictures):
    for one in (pictures.take([3]), pictures.take(slice(9))):
        report = gc.audit(untrained, one)
        assert set(report.verdicts.loc["accuracy":"calibration", "verdict"]) == NOTHING
        assert "at least 10 are needed" in report.verdicts.loc["ROAD", "meaning"]
        assert verdict(report, "finite outputs") == "passes" and len(report.images) == len(one)
    single = gc.audit(untrained, pictures.take(pictures.targets.argsort()[:4].repeat(4)))
    assert "one label" in single.verdicts.loc["accuracy", "meaning"]


def test_data_sets_come_in_many_forms_and_give_the_same_figures(untrained, pictures, tmp_path):
    """Pixels, PIL pictures, tensors and dicts, with and without labels: what the network sees is the same."""
    expected = gc.audit(untrained, pictures)

    class Items:
        classes = pictures.classes

        def __init__(self, item):
            self.item = item

        def __len__(self):
            return 40

        def __getitem__(self, i):
            return self.item(i)

    picture = torchvision.transforms.functional.to_pil_image
    chw = np.ascontiguousarray(pictures.data.transpose(0, 3, 1, 2))
    pixels = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=(40 * 32 * 32 * 3,))
    pixels[:] = pictures.data.ravel()
    places = np.array([(k * 3072, 32, 32) for k in range(40)])
    forms = {
        "PIL": Items(lambda i: (picture(pictures.data[i]), pictures.targets[i])),
        "uint8 tensor": Items(lambda i: (torch.from_numpy(chw[i]), int(pictures.targets[i]), "more")),
        "dict": Items(lambda i: {"image": pictures.data[i], "label": torch.tensor(pictures.targets[i])}),
        "prepared": Items(lambda i: (untrained.prepare(pictures.data[i])[0], pictures.targets[i])),
        "subset": Subset(Subset(pictures, range(40)), range(40)),
        "decoded": DecodedPictures(pixels, places, pictures.targets, CLASSES),
    }
    columns = ["verdict", "value", "low", "high", "bar"]
    at = ["accuracy", "calibration", "maps depend on the weights", "ROAD", "stable maps", "labels", "near-duplicates"]
    for name, data in forms.items():
        report = gc.audit(untrained, data)
        pd.testing.assert_frame_equal(
            report.verdicts.loc[at, columns], expected.verdicts.loc[at, columns], rtol=1e-3, atol=1e-5
        )
        assert (verdict(report, "needs the object") == "not tested") == (name != "subset")
        shown = report.pictures.keys() & expected.pictures.keys()
        for k in shown:  # the picture is the one that was stored
            assert np.abs(report.pictures[k][0].astype(int) - pictures.data[k]).max() <= 1

    without = gc.audit(untrained, Items(lambda i: picture(pictures.data[i])))
    assert set(without.verdicts.loc[["accuracy", "calibration", "labels"], "verdict"]) == NOTHING
    assert without.images["label"].isna().all() and (without.images["prediction"].isin([f"{c}" for c in CLASSES])).all()


def test_labels_are_matched_by_their_names(untrained, pictures, monkeypatch):
    monkeypatch.setattr(untrained, "classes", CLASSES, raising=False)
    expected = gc.audit(untrained, pictures)
    turned = gc.audit(untrained, ArrayDataset(pictures.data, 9 - pictures.targets, CLASSES[::-1]))
    assert turned.verdicts.loc["accuracy"].equals(expected.verdicts.loc["accuracy"])
    assert turned.images["label"].equals(expected.images["label"])
    part = pictures.take(np.isin(pictures.targets, (2, 7)))
    few = ArrayDataset(part.data, part.targets == 7, (CLASSES[2], CLASSES[7]))  # two of the model's ten classes
    assert set(gc.audit(untrained, few).images["label"]) == {CLASSES[2], CLASSES[7]}
    report = gc.audit(untrained, ArrayDataset(pictures.data, pictures.targets, [f"other {k}" for k in range(10)]))
    assert "are not those of the model" in report.verdicts.loc["accuracy", "meaning"]


def test_a_network_of_torchvision_with_random_weights(one_thread):
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).train()
    images, labels = torch.randn(24, 3, 64, 64), torch.arange(24) % 5
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    report = gc.audit(model, TensorDataset(images, labels))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert verdict(report, "accuracy") == "fails" and report.about["maps"] == "grad-cam, layer4"
    assert set(report.images["label"]) == {f"class {c}" for c in range(5)}


def test_the_same_seed_gives_the_same_report(untrained, pictures, tmp_path):
    def text(**options):
        report = gc.audit(untrained, pictures, images=30, **options)
        return report.save(tmp_path / "report.html").read_text().replace(report.about["date"], "")

    first = text(seed=1)
    torch.rand(7)
    assert text(seed=1) == first != text(seed=2)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(dataset=[]), "empty"),
        (dict(dataset=iter([1])), "a length and an index"),
        (dict(images=0), "at least 1"),
        (dict(images=2.5), "at least 1"),
        (dict(dataset=[("a picture", 0)]), "not str"),
        (dict(dataset=[(torch.zeros(3, 32, 32), 10)]), "Labels from 10 to 10 do not fit a model of 10 classes"),
        (dict(dataset=[(torch.zeros(3, 32, 32), 0), (torch.zeros(3, 8, 8), 0)]), "different sizes"),
        (dict(dataset=[(torch.zeros(5, 32, 32), 0)]), "does not take images (5, 32, 32)"),
        (dict(model=nn.Conv2d(3, 4, 3)), "returns logits (N, classes)"),
        (dict(method="grad-camera"), "There is no method 'grad-camera'"),
        (dict(layer="nowhere"), "nowhere"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(untrained, pictures, change, message):
    given = {"model": untrained, "dataset": pictures} | change
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        gc.audit(**given)
    assert "\n" not in str(caught.value)


def test_an_image_that_cannot_be_read_is_named(untrained):
    class Torn(list):
        def __getitem__(self, i):
            raise OSError(f"file {i} is cut short")

    with pytest.raises(ValueError, match="Image 0 of the data set cannot be read: file 0 is cut short"):
        gc.audit(untrained, Torn([1]))


def test_a_failure_while_writing_leaves_what_was_there(untrained, pictures, tmp_path, monkeypatch):
    report, file = gc.audit(untrained, pictures.take(slice(4))), tmp_path / "audit.html"
    file.write_text("the report of last week")

    def half(report):
        (tmp_path / "audit.html.partial").write_text("<html")
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["gradcam_lib.auditing"], "page", half)
    with pytest.raises(KeyboardInterrupt):
        report.save(file)
    assert [f.name for f in tmp_path.iterdir()] == ["audit.html"] and file.read_text() == "the report of last week"
    monkeypatch.undo()
    assert report.save(file) == file and "</html>" in file.read_text()


def test_the_page_holds_all_that_was_found_and_is_well_formed(honest, tmp_path):
    model, images = honest
    report = gc.audit(model, images, images=64, out=tmp_path / "audit.html")
    text = (tmp_path / "audit.html").read_text()
    soup = BeautifulSoup(text, "html.parser")
    assert soup.html["lang"] == "en" and soup.title.text == "Audit of NormalisedReportCNN"
    levels = [int(tag.name[1]) for tag in soup.find_all(re.compile("^h[1-6]$"))]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    rows = soup.select("table.verdicts tbody tr")
    assert [row.th.text for row in rows] == list(TESTS) and all(row.th["scope"] == "row" for row in rows)
    for row, expected in zip(rows, report.verdicts.to_dict("records"), strict=True):
        assert row.select_one(".verdict").text.split(" ", 1)[1] == expected["verdict"]  # in words
        assert expected["meaning"] in row.text
        if np.isfinite(expected["value"]):
            assert f"{expected['value']:.3f}".rstrip("0").rstrip(".").replace("-", "−") in row.text
    assert all(
        img["src"].startswith("data:image/webp;base64,") and len(img["alt"]) > 10 for img in soup.find_all("img")
    )
    assert len(soup.select(".suspects li")) == len(report.pictures) <= 18 and len(text) < 400_000
    assert (
        not soup.find_all(["script", "link", "iframe", "object"]) and "http://" not in text and "https://" not in text
    )
    assert all(svg["aria-label"] for svg in soup.find_all("svg")) and len(soup.find_all("svg")) == 4
    assert soup.select("main code")[-1].text == report.about["call"]
    assert len(BeautifulSoup(report._repr_html_(), "html.parser").select("tbody tr")) == len(TESTS)


def test_the_call_in_the_report_repeats_it(untrained, pictures):
    report = gc.audit(untrained, pictures, images=20, seed=3)
    again = eval(report.about["call"], {"gc": gc, "model": untrained, "dataset": pictures})
    pd.testing.assert_frame_equal(again.verdicts, report.verdicts)
    pd.testing.assert_frame_equal(again.images, report.images)


def test_a_full_disk_leaves_the_report_that_was_there(untrained, pictures, tmp_path, full_disk):
    report, file = gc.audit(untrained, pictures.take(slice(4))), tmp_path / "audit.html"
    file.write_text("the report of last week")
    with (
        full_disk(5_000),
        pytest.raises(OSError, match=r"audit.html could not be written \(File too large\).*make room"),
    ):
        report.save(file)
    assert [f.name for f in tmp_path.iterdir()] == ["audit.html"] and file.read_text() == "the report of last week"
    with pytest.raises(OSError, match=r"could not be written \(Is a directory\)"):
        report.save(tmp_path)


def test_images_of_one_class_are_audited_as_far_as_that_goes(untrained, pictures):
    one = pictures.take(np.flatnonzero(pictures.targets == pictures.targets[0])[:4].repeat(5))
    report = gc.audit(untrained, one)
    assert verdict(report, "accuracy") == "not tested"
    assert "all images have one label" in report.verdicts.loc["accuracy", "meaning"]


def test_what_is_no_network_is_refused(untrained, pictures):
    with pytest.raises(ValueError, match="A network is needed, a torch.nn.Module, not OrderedDict. Weights alone"):
        gc.audit(untrained.state_dict(), pictures)
