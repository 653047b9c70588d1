"""Chapter 7: Grad-CAM, equations 5 and 6 of the Grad-CAM report, from central differences in float64."""

import numpy as np
import pytest
import torch

from gradcam_lib import build_model, explain, maths


@pytest.fixture(scope="module")
def network():
    """Random weights, cut before the last ReLU, where no value is 0; a picture; and α by equation 7.1."""
    torch.manual_seed(0)
    model = build_model("report-cnn").double().eval()
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        A = model.features[:7](x).numpy()

    @torch.no_grad()
    def score(A, c=3):
        return model.classifier(model.features[7:](torch.from_numpy(A)))[0, c].item()

    gradient = maths.numerical_gradient(score, A.copy())
    return model, x, A, score, gradient[0].mean((1, 2))


def test_equation_7_1_the_weight_of_a_map_is_its_mean_gradient(network):
    """Report, eq. 5: it is also the slope of the score when a constant is added to the whole map, over Z."""
    _, _, A, score, alpha = network
    for k in (0, 17, 127):
        shift = np.zeros_like(A)
        shift[0, k] = 1e-7
        slope = (score(A + shift) - score(A - shift)) / 2e-7
        assert alpha[k] == pytest.approx(slope / 64, abs=1e-8)


def test_equation_7_2_the_map_is_the_positive_part_of_the_weighted_sum(network):
    """Report, eq. 6."""
    model, x, A, _, alpha = network
    by_hand = np.maximum(sum(alpha[k] * A[0, k] for k in range(128)), 0)
    result = explain(model, x, layer="features.conv3", targets=[3], method="grad-cam")
    assert np.abs(result.maps[0].numpy() - by_hand).max() < 1e-6 * by_hand.max()
