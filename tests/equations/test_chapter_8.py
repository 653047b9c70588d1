"""Chapter 8, equation by equation, written out in loops over feature maps and held against `explain`, in float64."""

import pytest
import torch
from torch.nn import functional as F

from gradcam_lib import build_model, explain

C = 3  # the class


@pytest.fixture(scope="module")
def case():
    """A network with random weights, a picture of noise, its last feature maps A (K, h, w) and their gradient g."""
    torch.manual_seed(0)
    model = build_model("report-cnn").double().eval()
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    A = model.features[:8](x).detach().requires_grad_()
    z = model.classifier(model.features[8:](A))
    (g,) = torch.autograd.grad(z[0, C], A)
    return model, x, A.detach()[0], g[0]


def signed(case, method, **options):
    model, x, *_ = case
    return explain(model, x, layer="features.relu3", targets=[C], method=method, **options).signed[0]


def same(got, expected):
    return torch.allclose(got, expected, rtol=1e-8, atol=1e-12)


def test_equation_8_1_hires_cam(case):
    *_, A, g = case
    assert same(signed(case, "hires-cam"), sum(g[k] * A[k] for k in range(128)))


def test_equation_8_2_cam_reads_the_weights_of_the_linear_layer():
    torch.manual_seed(1)
    conv, linear = torch.nn.Conv2d(3, 6, 3).double(), torch.nn.Linear(6, 10).double()
    model = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear).eval()
    x = torch.rand(1, 3, 12, 12, dtype=torch.float64)
    A = conv(x).relu()[0]
    expected = sum(linear.weight[C, k] * A[k] for k in range(6)).detach()
    got = explain(model, x, layer="1", targets=[C], method="cam").signed[0]
    assert same(got / got.abs().max(), expected / expected.abs().max())


def test_equation_8_3_xgrad_cam(case):
    *_, A, g = case
    weights = [(A[k] / A[k].sum() * g[k]).sum() if A[k].sum() else 0 for k in range(128)]
    assert same(signed(case, "xgrad-cam"), sum(weights[k] * A[k] for k in range(128)))


def test_equation_8_4_grad_cam_plus_plus(case):
    *_, A, g = case
    up = g.clamp(min=0)
    weights = [(up[k] / (2 + up[k] * A[k].sum())).sum() for k in range(128)]
    assert same(signed(case, "grad-cam++"), sum(weights[k] * A[k] for k in range(128)))


def test_the_short_form_of_grad_cam_plus_plus_is_the_papers(case):
    """With Y = exp(y) the paper's second and third derivatives are g² and g³, up to a factor that they share."""
    *_, A, g = case
    total = A.sum((1, 2))[:, None, None]
    coefficient = torch.where(g > 0, g**2 / (2 * g**2 + total * g**3), 0)
    papers = (coefficient * g.clamp(min=0)).sum((1, 2))
    assert same(signed(case, "grad-cam++"), torch.einsum("k,kij->ij", papers, A))


def test_equation_8_5_layer_cam(case):
    *_, A, g = case
    assert same(signed(case, "layer-cam"), sum(g[k].clamp(min=0) * A[k] for k in range(128)))


def test_equation_8_6_ablation_cam(case):
    model, _, A, _ = case

    def score(A):
        return model.classifier(model.features[8:](A[None]))[0, C].item()

    weights = []
    for k in range(128):
        without = A.clone()
        without[k] = 0
        weights.append((score(A) - score(without)) / abs(score(A)))
    assert same(signed(case, "ablation-cam"), sum(weights[k] * A[k] for k in range(128)))


def test_equation_8_7_score_cam(case):
    model, x, A, _ = case
    up = F.interpolate(A[None], size=(32, 32), mode="bilinear")[0]
    scores = []
    for k in range(128):
        spread = up[k].max() - up[k].min()
        H = (up[k] - up[k].min()) / spread if spread else torch.zeros(32, 32)
        scores.append(model(x * H)[0, C].item())
    weights = torch.softmax(torch.tensor(scores, dtype=torch.float64), 0)
    assert same(signed(case, "score-cam"), sum(weights[k] * A[k] for k in range(128)))


def test_equation_8_8_gradient_times_input_and_biases_add_up_to_the_score(case):
    model, x, *_ = case
    x = x.clone().requires_grad_()
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    score = model(x)[0, C]
    dx, *db = torch.autograd.grad(score, [x, *biases])
    # The gradient of a convolution's bias is already the sum over the places that it was added at.
    total = (dx * x).sum() + sum((g * b).sum() for g, b in zip(db, biases, strict=True))
    assert torch.isclose(total, score, rtol=1e-10)
