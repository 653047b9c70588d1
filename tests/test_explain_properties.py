"""`explain` on whatever hypothesis draws: networks, pictures of any shape, layers, targets and all methods.

In float64 the maps must be those of `cam_oracle`, to 1e-8 of the largest magnitude; in any type of number, what an
Explanation promises must hold, and nothing of the model or the images may change.
"""

from dataclasses import dataclass

import pytest
import torch
from cam_oracle import Definitions, randomise, relative_error
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import gradcam_lib as gc
from gradcam_lib.methods import METHODS

NAMES = ["cat", "dog", "ship", "frog", "truck"]
many = settings(max_examples=60, deadline=None, derandomize=True)
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Case:
    net: nn.Sequential
    images: torch.Tensor  # (N, C, H, W)
    layer: str
    pooled: bool  # global average pooling and one linear layer follow, so that CAM is defined


@st.composite
def cases(draw, dtype=torch.float64):
    """A network of one to three convolutions of any shape, and pictures from 1 × 1."""
    channels, H, W, N = (draw(st.integers(1, top)) for top in (4, 15, 15, 3))
    wide, layers = channels, []
    for _ in range(draw(st.integers(1, 3))):
        groups = wide if draw(st.booleans()) else 1
        k = draw(st.tuples(*[st.sampled_from([1, 3, 5])] * 2))
        new = groups * draw(st.integers(1, 3)) if groups > 1 else draw(st.integers(1, 6))
        dilation, bias = draw(st.integers(1, 2)), draw(st.booleans())
        padding = tuple(dilation * (side // 2) for side in k)  # so that no map is ever empty
        layers += [nn.Conv2d(wide, new, k, draw(st.integers(1, 2)), padding, dilation, groups, bias)]
        layers += [nn.BatchNorm2d(new)] * draw(st.booleans())
        layers += [draw(st.sampled_from([nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(), nn.Hardswish()]))]
        wide = new
    maps, places = len(layers), draw(st.sampled_from([1, 2]))
    layers += [nn.AdaptiveAvgPool2d((1, places)), nn.Flatten(), nn.Linear(wide * places, len(NAMES))]
    net, generator = nn.Sequential(*layers), torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    randomise(net, generator)
    images = torch.randn(N, channels, H, W, generator=generator)
    layer = draw(st.integers(0, maps - 1))
    return Case(net.to(dtype).eval(), images.to(dtype), str(layer), places == 1 and layer == maps - 1)


def expected(case, method, classes):
    definitions = Definitions(case.net, case.images, case.layer, classes)
    if method.startswith("eigen"):  # which vector is the first, and which way it points, must be decided
        for A, dA in zip(definitions.A, definitions.dA, strict=True):
            rows = (A if method == "eigen-cam" else A * dA).flatten(1)
            _, S, V = torch.linalg.svd(rows, full_matrices=False)
            assume(len(S) < 2 or S[1] < 0.99 * S[0])
            assume((V[0] @ rows.sum(0)).abs() > 1e-6 * S[0])
    return definitions.of(method)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_its_definition(method):
    @many
    @given(cases(), st.data())
    def holds(case, data):
        assume(method != "cam" or case.pooled)
        classes = data.draw(st.lists(st.integers(0, 4), min_size=len(case.images), max_size=len(case.images)))
        where = {} if method == "full-grad" else {"layer": case.layer}
        got = gc.explain(case.net, case.images, targets=classes, method=method, **where)
        assert relative_error(got.signed, expected(case, method, classes)) < 1e-8

    holds()


def forms(N):
    """Targets as they may be given, each with the classes (N, T) that are meant; None stands for the predicted one."""
    number = st.integers(0, 4)
    each = st.lists(number, min_size=N, max_size=N)
    several = st.lists(st.lists(number, min_size=2, max_size=2), min_size=N, max_size=N)
    return st.one_of(
        st.just((None, None)),
        number.map(lambda c: (c, [[c]] * N)),
        number.map(lambda c: (NAMES[c], [[c]] * N)),
        each.map(lambda cs: (cs, [[c] for c in cs])),
        each.map(lambda cs: ([NAMES[c] for c in cs], [[c] for c in cs])),
        each.map(lambda cs: (torch.tensor(cs), [[c] for c in cs])),
        several.map(lambda cs: (cs, cs)),
        several.map(lambda cs: (torch.tensor(cs), cs)),
    )


@many
@given(st.data(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]), st.sampled_from([*METHODS]))
def test_what_an_explanation_promises_holds(data, dtype, method):
    case = data.draw(cases(dtype))
    assume(method != "cam" or case.pooled)
    net, images = case.net, case.images
    net.classes = NAMES
    net.train(mode := data.draw(st.booleans()))
    targets, meant = data.draw(forms(len(images)))
    weights, before = {k: v.clone() for k, v in net.state_dict().items()}, images.clone()
    where = {} if method == "full-grad" else {"layer": case.layer}
    got = gc.explain(net, images, targets=targets, method=method, **where)

    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items()) and torch.equal(images, before)
    assert all(m.training == mode and not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())

    at_the_layer = method not in ("full-grad", "guided-grad-cam")
    with torch.no_grad():
        logits = net.eval()(images)
        size = net[: int(case.layer) + 1](images).shape[2:] if at_the_layer else images.shape[2:]
    torch.testing.assert_close(got.logits, logits)
    several = isinstance(meant, list) and len(meant[0]) > 1
    classes = logits.argmax(1, keepdim=True) if meant is None else torch.tensor(meant)
    assert got.maps.shape == (len(images), *[2] * several, *size)
    assert got.targets.dtype == torch.int64 and torch.equal(got.targets.view(classes.shape), classes)
    torch.testing.assert_close(got.scores.view(classes.shape), logits.gather(1, classes), check_dtype=False)
    assert torch.equal(got.maps, got.signed.relu()) and got.maps.isfinite().all()
    assert not got.maps.requires_grad and got.size == tuple(images.shape[2:]) and got.method == method


@many
@given(st.data())
def test_what_cannot_be_a_target_is_one_sentence_and_leaves_the_model_alone(data):
    case = data.draw(cases(torch.float32))
    N, number = len(case.images), st.integers(-(10**6), 10**6).filter(lambda c: not 0 <= c < 5)
    wrong = st.one_of(
        number,
        st.text().filter(lambda name: name not in NAMES),
        st.lists(number, min_size=N, max_size=N),
        st.lists(st.integers(0, 4), max_size=6).filter(lambda cs: len(cs) != N),
        st.floats(),
        st.lists(st.floats(), min_size=N, max_size=N),
        st.just(torch.zeros(N, 5)),
        st.just({"class": 1}),
    )
    case.net.classes = NAMES
    with pytest.raises((ValueError, TypeError)) as told:
        gc.explain(case.net, case.images, targets=data.draw(wrong), layer=case.layer)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400
    assert not any(m._forward_hooks for m in case.net.modules()) and not case.net.training
