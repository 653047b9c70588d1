"""Chapter 10, equation by equation, written out in loops and held against the package, or against other libraries."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradcam_lib as gc
from gradcam_lib.batches import side_of
from gradcam_lib.datasets import ArrayDataset
from gradcam_lib.recipes import Recipe
from gradcam_lib.training import _mean_class_accuracy


def test_equation_10_1_standard_error():
    a = np.random.default_rng(0).normal(0.6, 0.01, (20_000, 3))
    mean = sum(a[:, i] for i in range(3)) / 3
    error = np.sqrt(sum((a[:, i] - mean) ** 2 for i in range(3)) / (3 * 2))
    assert np.allclose(error[:50], [pd.Series(row).sem() for row in a[:50]])
    # Its square is right on average: the variance of the mean of three.
    assert (error**2).mean() == pytest.approx(mean.var(), rel=0.05)


@given(
    epochs=st.integers(1, 60),
    first=st.sampled_from([16, 24, 48, 128]),
    full=st.sampled_from([32, 96, 224]),
)
def test_equation_10_2_growing_pictures(epochs, first, full):
    if first >= full:
        return
    recipe = Recipe("growing", "cifar10", "small-resnet", epochs=epochs, first_size=first)
    for e in range(1, epochs + 1):
        t = min(1, (e - 1) / (0.75 * epochs))
        side = first + t * (full - first)
        assert abs(side_of(recipe, full, e) - side) <= 4  # to the nearest step of 8 pixels
        assert (side_of(recipe, full, e) - first) % 8 == 0 or t == 1
    assert side_of(recipe, full, 1) == first
    assert side_of(recipe, full, epochs) == full or epochs <= 4  # the last epoch begins before the run is over


def test_equation_10_3_mean_over_views():
    torch.manual_seed(0)
    model = gc.build_model("small-resnet").eval()
    x = torch.randint(256, (3, 8, 8, 3), dtype=torch.uint8)
    images = ArrayDataset(x.numpy(), np.zeros(3), range(10))
    z = gc.predict(model, images, views=2)
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.prepare.mean, model.prepare.std))
    pixels = (x.permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        expected = 0.5 * model(pixels) + 0.5 * model(torch.flip(pixels, [3]))
    assert torch.allclose(z, expected, atol=1e-5)


def test_equation_10_4_mean_class_accuracy():
    rng = np.random.default_rng(0)
    y = rng.choice(5, 400, p=[0.6, 0.2, 0.1, 0.06, 0.04])
    logits = torch.tensor(rng.normal(size=(400, 5)) + 2 * np.eye(5)[y] * (y == 0)[:, None])
    guess, total = logits.argmax(1).numpy(), 0.0
    for c in range(5):
        total += sum(guess[n] == c for n in range(400) if y[n] == c) / sum(y[n] == c for n in range(400))
    assert _mean_class_accuracy(logits, y) == pytest.approx(total / 5)
    assert _mean_class_accuracy(logits, y) < (guess == y).mean() - 0.1


values = st.lists(st.floats(-100, 100), min_size=1, max_size=50).map(lambda v: np.array(v, dtype=np.float32))


@given(x=values, s=st.floats(0.001, 2), z=st.integers(-20, 20))
def test_equation_10_5_quantisation(x, s, z):
    q = np.clip(np.rint(x / np.float32(s)) + z, -128, 127)
    again = (np.float32(s) * (q - z)).astype(np.float32)
    theirs = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), s, z, -128, 127).numpy()
    # A value half-way between two codes may be rounded to either.
    assert np.abs(again - theirs).max() <= s * 1.001
    assert np.mean(np.abs(again - theirs) < 1e-3 * s + 1e-5) >= 1 - 1 / len(x)


@given(x=values)
def test_equation_10_6_the_error_is_half_a_step_at_most(x):
    s = max(np.abs(x).max() / 127, 1e-6)
    again = s * np.clip(np.rint(x / s), -127, 127)
    assert np.abs(again - x).max() <= s / 2 * (1 + 1e-4)
