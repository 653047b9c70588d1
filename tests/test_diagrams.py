"""Diagrams say what the network is, and every letter of them can be read."""

from itertools import combinations

import pytest
import torch
from matplotlib.patches import Rectangle
from torchvision import models

from gradcam_lib import build_model, diagrams


def without_values(build, *args):
    with torch.device("meta"):
        return build(*args)


STAGES = {f"layer{k}": "bottleneck" for k in range(1, 5)}
DENSE = {f"features.denseblock{k}": "layer" for k in range(1, 5)}
DENSE |= {f"features.transition{k}": "transition" for k in range(1, 4)}
FIGURES = {
    "vgg-report": lambda: diagrams.network(without_values(build_model, "vgg-report")),
    "report-cnn": lambda: diagrams.network(without_values(build_model, "report-cnn"), (3, 32, 32)),
    "cifar10-fast": lambda: diagrams.network(without_values(build_model, "cifar10-fast"), (3, 32, 32)),
    "alexnet": lambda: diagrams.network(without_values(models.alexnet)),
    "resnet50": lambda: diagrams.network(without_values(models.resnet50), blocks=STAGES),
    "densenet121": lambda: diagrams.network(without_values(models.densenet121), blocks=DENSE),
    "residual_blocks": lambda: diagrams.residual_blocks(
        without_values(models.resnet18).layer1[0], without_values(models.resnet50).layer1[1]
    ),
    "dense_block": lambda: diagrams.dense_block(without_values(models.densenet121).features.denseblock1),
    "squeeze_excitation": lambda: diagrams.squeeze_excitation(
        without_values(build_model, "se-resnet18").features.stage1[0], 56
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_letters_are_large_inside_and_apart(name):
    figure = FIGURES[name]()
    assert figure.get_size_inches()[0] * figure.dpi <= 400  # a telephone shows it nearly at its own size
    texts = figure.axes[0].texts
    assert all(text.get_fontsize() >= 9 for text in texts)
    extents = [text.get_window_extent() for text in texts]
    for extent, text in zip(extents, texts, strict=True):
        assert figure.bbox.containsx(extent.x0) and figure.bbox.containsx(extent.x1), text
        assert figure.bbox.containsy(extent.y0) and figure.bbox.containsy(extent.y1), text
    for (a, one), (b, other) in combinations(zip(extents, texts, strict=True), 2):
        assert not a.overlaps(b), f"{one} lies over {other}"


def lines(figure):
    """What is written in a diagram, row by row: (left, right)."""
    rows = {}
    for text in figure.axes[0].texts:
        rows.setdefault(round(text.get_position()[1], 4), []).append(text.get_text())
    return [tuple(row) for _, row in sorted(rows.items(), reverse=True)]


def test_a_diagram_has_the_layers_and_shapes_of_the_network():
    assert lines(FIGURES["report-cnn"]())[2:] == [
        ("picture", "3 × 32 × 32"),
        ("conv 3×3", "32 × 32 × 32"),
        ("max pool", "32 × 16 × 16"),
        ("conv 3×3", "64 × 16 × 16"),
        ("max pool", "64 × 8 × 8"),
        ("conv 3×3", "128 × 8 × 8"),
        ("max pool", "128 × 4 × 4"),
        ("dense", "128"),
        ("dense", "10"),
    ]


def test_like_layers_and_blocks_are_counted():
    rows = [row for row in lines(FIGURES["vgg-report"]()) if "conv" in row[0] and len(row[0]) > 11]
    assert [row[0] for row in rows] == ["2 × conv 3×3"] * 2 + ["3 × conv 3×3"] * 3
    assert lines(FIGURES["resnet50"]())[3:9] == [
        ("conv 7×7 /2", "64 × 112 × 112"),
        ("max pool", "64 × 56 × 56"),
        ("3 × bottleneck", "256 × 56 × 56"),
        ("4 × bottleneck", "512 × 28 × 28"),
        ("6 × bottleneck", "1024 × 14 × 14"),
        ("3 × bottleneck", "2048 × 7 × 7"),
    ]
    assert ("24 × layer", "1024 × 14 × 14") in lines(FIGURES["densenet121"]())
    assert ("transition", "512 × 7 × 7") in lines(FIGURES["densenet121"]())


def test_boxes_narrow_where_maps_shrink():
    boxes = [p for p in FIGURES["vgg-report"]().axes[0].patches if isinstance(p, Rectangle)][3:]  # without the legend
    widths = [box.get_width() for box in boxes]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 7  # 224, 112, 56, 28, 14 and 7 pixels, and the dense layers


def test_what_the_block_diagrams_say_is_read_from_the_blocks():
    rows = [text for row in lines(FIGURES["dense_block"]()) for text in row]
    assert [text for text in rows if text.endswith(" in")] == [f"{n} in" for n in (64, 96, 128, 160, 192, 224)]
    assert (rows[0], rows[-1]) == ("64 maps", "256 maps")
    assert {"conv 1×1, 64", "conv 3×3, 64", "conv 1×1, 256"} <= {
        t for r in lines(FIGURES["residual_blocks"]()) for t in r
    }
    assert {"dense, 4", "dense, 64"} <= {t for r in lines(FIGURES["squeeze_excitation"]()) for t in r}
