"""`explain` against the two equations computed in float64, and what it must leave untouched."""

import gc as garbage
import multiprocessing
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradcam_lib as gc
from gradcam_lib.architectures import build_model
from gradcam_lib.methods import METHODS


def grad_cam_float64(model, images, layer, targets):
    """Equations 1 and 2 written out in float64, each image by itself, without any of the library's machinery.

    The layer's output is copied before anything later can overwrite it. The gradient is taken by central differences:
    alpha_k is the derivative of the score with respect to a constant added to map k, divided by the number of places.
    """
    model, eps, maps = model.double(), 1e-6, []
    module = dict(model.named_modules())[layer]
    for image, target in zip(images.double(), targets, strict=True):

        def score(offset, image=image, target=target):
            """The class score with `offset` (B, K, 1, 1) added to the layer's output, and that output (K, h, w)."""
            seen = []

            def add(module, inputs, output):
                seen.append(output[0].clone())
                return output + offset

            handle = module.register_forward_hook(add)
            with torch.no_grad():
                logits = model(image.expand(len(offset), *image.shape))
            handle.remove()
            return logits[:, target], seen[-1]

        A = score(torch.zeros(1, 1, 1, 1))[1]
        steps = eps * torch.eye(len(A), dtype=torch.float64)[:, :, None, None]
        alpha = (score(steps)[0] - score(-steps)[0]) / (2 * eps) / A[0].numel()
        maps.append((alpha[:, None, None] * A).sum(0))
    model.float()
    return torch.stack(maps)


class InPlace(nn.Module):
    """A batch norm followed by an in-place ReLU, as in torchvision's ResNet: the trap that overwrites activations."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.pool(self.relu(self.bn(self.conv(x)))).flatten(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build_model("report-cnn")


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("layer", ["features.conv1", "features.relu2", "features.conv3", "features.relu3"])
def test_grad_cam_is_its_definition(net, images, layer):
    got = gc.explain(net, images, layer=layer, targets=[3, 1, 9]).signed
    assert relative_error(got, grad_cam_float64(net.eval(), images, layer, [3, 1, 9])) < 1e-5


@pytest.mark.parametrize("layer", ["conv", "bn", "relu"])
def test_an_in_place_operation_after_the_layer_spoils_nothing(images, layer):
    torch.manual_seed(0)
    net = InPlace()
    got = gc.explain(net, images, layer=layer, targets=[0, 1, 2]).signed
    assert relative_error(got, grad_cam_float64(net.eval(), images, layer, [0, 1, 2])) < 1e-5


def test_the_map_is_the_relu_of_the_signed_map(net, images):
    result = gc.explain(net, images)
    assert (result.signed < 0).any()
    assert torch.equal(result.maps, result.signed.relu())


def test_a_batch_gives_what_its_images_give_one_by_one(net, images):
    together = gc.explain(net, images, targets=5).signed
    alone = torch.cat([gc.explain(net, image[None], targets=5).signed for image in images])
    assert relative_error(together, alone) < 1e-5


def test_without_a_layer_the_last_feature_maps_before_a_pooling_are_taken(net, images):
    result = gc.explain(net, images)
    assert result.layer == "features.relu3"
    assert result.maps.shape == (3, 8, 8)
    torchvision_models = pytest.importorskip("torchvision.models")
    picture = torch.rand(1, 3, 64, 64)
    assert gc.explain(torchvision_models.vgg16_bn(), picture).layer == "features.42"  # the layer that the report hooks
    assert gc.explain(torchvision_models.resnet18(), picture).layer == "layer4"
    assert gc.explain(torchvision_models.densenet121(), picture).layer == "features"


def test_every_form_of_target_means_the_same_class(net, images):
    net.classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    expected = gc.explain(net, images, targets=[3, 3, 3]).signed
    for targets in (3, np.int64(3), "cat", ["cat", 3, "cat"], torch.tensor([3, 3, 3]), np.array([3, 3, 3])):
        assert torch.equal(gc.explain(net, images, targets=targets).signed, expected)
    predicted = gc.explain(net, images)
    assert torch.equal(predicted.targets, predicted.logits.argmax(1))


def state_of(model):
    return (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        {name: t.clone() for name, t in model.state_dict().items()},
    )


def same(a, b):
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for before, after in zip(a, b, strict=True)
        for x, y in zip(*(v.values() if isinstance(v, dict) else v for v in (before, after)), strict=True)
    )


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(images, fails):
    torch.manual_seed(0)
    net = InPlace()
    net.train()
    net.relu.eval()  # a module whose mode differs from the others' keeps its own
    net.conv.weight.requires_grad_(False)
    net(images).sum().backward()
    before = state_of(net)
    if fails:
        handle = net.head.register_forward_pre_hook(lambda module, inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            gc.explain(net, images)
        handle.remove()
    else:
        gc.explain(net, images)
    assert same(state_of(net), before)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("frozen", [False, True])
def test_it_works_where_gradients_are_switched_off(net, images, context, frozen):
    expected = gc.explain(net, images, targets=2).signed
    net.requires_grad_(not frozen)
    with context():
        result = gc.explain(net, images + 0, targets=2)  # + 0: under inference_mode, an inference tensor
    assert torch.equal(result.signed, expected)
    assert not result.maps.requires_grad


class Staying(torch.overrides.TorchFunctionMode):
    """Whatever would copy a tensor from an accelerator, or wait for it, fails."""

    away = frozenset(getattr(torch.Tensor, name) for name in ("cpu", "numpy", "item", "tolist", "__bool__", "nonzero"))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in self.away, f"{function.__name__} takes values off the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["grad-cam", "grad-cam++", "xgrad-cam", "hires-cam", "layer-cam", "eigengrad-cam"])
def test_nothing_leaves_the_device_while_maps_are_made(net, images, method):
    with Staying():
        result = gc.explain(net, images, layer="features.relu3", method=method)
    assert isinstance(result.maps, torch.Tensor) and result.maps.device == images.device


def test_heatmaps_have_the_images_size_and_a_stated_scale(net, images):
    result = gc.explain(net, images, targets=[3, 8, 3])
    heat = result.heatmaps()
    assert heat.shape == (3, 32, 32)
    assert heat.min() >= 0
    assert torch.allclose(heat.amax((1, 2)), torch.ones(3))
    batch = result.heatmaps(normalize="batch")
    assert batch.max() == 1
    assert torch.allclose(batch / batch.amax((1, 2), keepdim=True), heat)
    raw = result.heatmaps(normalize=None)
    assert torch.allclose(raw / raw.amax(), batch)
    with pytest.raises(ValueError, match="not 'pixel'"):
        result.heatmaps(normalize="pixel")


def test_a_map_that_is_zero_everywhere_is_said_to_be():
    net = InPlace()
    with torch.no_grad():
        net.head.weight.copy_(-net.head.weight.abs())  # every feature map counts against every class
    result = gc.explain(net, torch.rand(2, 3, 16, 16), layer="relu")
    with pytest.warns(UserWarning, match=r"images \[0, 1\] are zero everywhere"):
        assert (result.heatmaps() == 0).all()


def test_a_map_that_is_constant_and_positive_stays_visible():
    net = InPlace()
    with torch.no_grad():
        net.conv.weight.zero_()
        net.conv.bias.fill_(1)
        net.head.weight.fill_(1)
    heat = gc.explain(net, torch.rand(2, 3, 8, 8), layer="relu").heatmaps()
    assert torch.allclose(heat, torch.ones(2, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "features.conv4"}, r"no layer 'features.conv4'. Did you mean: .*features.conv3"),
        ({"layer": nn.ReLU()}, "not a layer of the model"),
        ({"layer": "classifier.dense1"}, r"gives \(3, 128\), not feature maps"),
        ({"targets": 10}, "Class 10 does not exist: the model has 10 classes, 0 to 9"),
        ({"targets": -1}, "Class -1 does not exist"),
        ({"targets": [1, 2]}, "2 targets for 3 images"),
        ({"targets": [1.0, 2.0, 3.0]}, "the number of a class or its name, not 1.0"),
        ({"targets": "cat"}, "Set model.classes"),
        ({"targets": [[1], [1, 2], [3]]}, "different numbers of targets"),
        ({"targets": [[], [], []]}, "There are no targets"),
        ({"targets": lambda logits: logits.sum()}, r"must return one score an image, \(3,\)"),
        ({"method": "gradcam"}, "no method 'gradcam'. Did you mean: grad-cam"),
        ({"method": "full-grad", "layer": "features.conv3"}, "looks at the whole network and not at one layer"),
        ({"strongest": 5}, "leave out strongest="),
        ({"layer": 3.5}, "a name, a module, or a negative number, not 3.5"),
        ({"reshape": "nhwc"}, "There is no reshape 'nhwc'"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(net, images, arguments, message):
    with pytest.raises(ValueError, match=message):
        gc.explain(net, images, **arguments)


def test_images_of_the_wrong_shape_or_type_are_refused(net, images):
    with pytest.raises(ValueError, match=r"pass image\[None\]"):
        gc.explain(net, images[0])
    with pytest.raises(ValueError, match="uint8"):
        gc.explain(net, (images * 255).byte())
    net.classes = ("cat", "dog")
    with pytest.raises(ValueError, match="no class 'dgo'. Did you mean: dog"):
        gc.explain(net, images, targets="dgo")


def test_a_layer_that_is_never_run_and_a_model_without_maps_are_refused(net, images):
    net.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="'spare' is never run"):
        gc.explain(net, images, layer="spare")
    with pytest.raises(ValueError, match="Name a layer"):
        gc.explain(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), images)


@pytest.fixture(scope="module")
def vit():
    """A small vision transformer, whose head reads the class token alone."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
    torch.nn.init.normal_(vit.heads.head.weight)
    return vit.eval()


def test_of_a_vision_transformer_the_last_layer_with_a_gradient_is_taken(vit, images):
    result = gc.explain(vit, images)
    assert result.layer == "encoder.layers.encoder_layer_2.ln_1"  # before the last attention
    assert result.maps.shape == (3, 4, 4)
    assert (result.signed.flatten(1).std(1) > 0).all()
    after = gc.explain(vit, images, layer="encoder.ln")
    assert (after.signed == 0).all()


def test_tokens_become_maps_row_by_row_without_the_class_token(vit, images):
    kept = []
    handle = vit.encoder.layers[1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    result = gc.explain(vit, images, layer="encoder.layers.encoder_layer_1", method=lambda A: A[:, 3])
    handle.remove()
    assert torch.equal(result.signed, kept[0][:, 1:, 3].reshape(3, 4, 4))
    own = gc.explain(
        vit,
        images,
        layer="encoder.layers.encoder_layer_1",
        method=lambda A: A[:, 3],
        reshape=lambda X: X[:, 1:].mT.unflatten(2, (4, 4)),
    )
    assert torch.equal(own.signed, result.signed)


def test_images_that_are_no_squares_have_grids_of_their_proportions():
    from gradcam_lib.layers import token_grid

    assert token_grid(1 + 14 * 14, (224, 224)) == (14, 14)
    assert token_grid(2 + 14 * 28, (224, 448)) == (14, 28)
    assert token_grid(4 * 3, (64, 48)) == (4, 3)
    assert token_grid(7, (224, 224)) == (2, 2)  # three leading tokens
    assert token_grid(2, (224, 224)) is None


def test_a_swin_transformer_is_read_channels_last(images):
    from torchvision.models import SwinTransformer

    swin = SwinTransformer([2, 2], 8, [1, 1], [2, 2], [4, 4], num_classes=5)
    kinds = {layer.name: (layer.kind, layer.shape) for layer in gc.list_layers(swin.eval(), images)}
    assert kinds["features"] == kinds["norm"] == ("channels-last", (16, 8, 8))
    assert kinds["permute"] == ("maps", (16, 8, 8))
    at_norm, at_permute = (gc.explain(swin, images, layer=name).signed for name in ("norm", "permute"))
    assert relative_error(at_norm, at_permute) < 1e-5


def test_layers_are_listed_in_order_and_counted_from_the_end(net, images):
    layers = gc.list_layers(net, images)
    assert [layer.name for layer in layers] == [
        f"features.{n}" for n in ("conv1 relu1 conv2 relu2 conv3 relu3").split()
    ]
    assert layers[-1].shape == (128, 8, 8)
    for index in range(-6, 0):
        assert gc.explain(net, images, layer=index).layer == layers[index].name
    with pytest.raises(ValueError, match="no layer -7: the model has 6 with a map"):
        gc.explain(net, images, layer=-7)
    with pytest.raises(ValueError, match="counted from the end"):
        gc.explain(net, images, layer=1)


def test_an_exchanged_module_is_noticed(net, images):
    assert gc.explain(net, images).layer == "features.relu3"
    net.features.pool3 = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(128, 128, 1))
    assert gc.explain(net, images).layer == "features"  # which ends in a convolution now


def test_a_method_of_ones_own_is_a_function_and_may_have_a_name(net, images, monkeypatch):
    def elementwise(A, dA):
        return (A * dA).clamp(min=0).sum(1)

    by_function = gc.explain(net, images, method=elementwise)
    monkeypatch.setitem(gc.METHODS, "elementwise", elementwise)
    by_name = gc.explain(net, images, method="elementwise")
    assert by_function.method == by_name.method == "elementwise"
    assert torch.equal(by_function.signed, by_name.signed)
    with pytest.raises(ValueError, match="asks for colour. A method may ask for: A, biases, dA"):
        gc.explain(net, images, method=lambda A, colour: A.sum(1))


# --- what a user may hand over by mistake ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.rand(2, 1, 32, 32), r"images \(1, 32, 32\) torch.float32 on cpu.*to have 3 channels, but got 1"),
        (torch.rand(2, 3, 1, 1), r"images \(3, 1, 1\) .*Output size is too small"),
        (torch.rand(2, 3, 48, 32), r"images \(3, 48, 32\) .*cannot be multiplied"),
        (torch.rand(2, 3, 32, 32).half(), "torch.float16 on cpu, and its weights are torch.float32 on cpu"),
        (torch.rand(2, 3, 32, 32, device="meta"), "torch.float32 on meta, and its weights are torch.float32 on cpu"),
    ],
    ids=["channels", "one pixel", "size", "type", "device"],
)
@pytest.mark.parametrize("options", [{}, {"layer": "features.conv2"}, {"method": "score-cam"}], ids=str)
def test_images_that_the_model_does_not_take(net, given, message, options):
    with pytest.raises(ValueError, match=f"The model does not take .*{message}.*Prepare"):
        gc.explain(net, given, **options)
    with pytest.raises(ValueError, match="The model does not take"):
        gc.list_layers(net, given)
    assert not any(module._forward_hooks for module in net.modules())


def test_what_is_no_network_is_refused(net, images):
    for given in (net.state_dict(), lambda x: x, "resnet18"):
        with pytest.raises(ValueError, match=f"A network is needed.*not {type(given).__name__}.*load_state_dict"):
            gc.explain(given, images)


class Returning(nn.Module):
    """A network of one convolution, and what it makes of the feature maps."""

    def __init__(self, head):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), head

    def forward(self, x):
        return self.head(self.conv(x))


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (lambda A: {"logits": A.mean((2, 3))}, "dict"),
        (lambda A: (A.mean((2, 3)), A), "tuple"),
        (lambda A: A, r"\(3, 4, 30, 30\)"),
        (lambda A: A.mean(), r"\(\)"),
    ],
    ids=["dict", "tuple", "maps", "number"],
)
def test_an_output_that_is_no_logits_is_named(images, head, what):
    with pytest.raises(ValueError, match=rf"must return logits \(N, classes\), not {what}. Pass targets=, a function"):
        gc.explain(Returning(head), images)


def test_a_layer_without_a_gradient_is_said(images):
    with pytest.raises(ValueError, match="does not depend on layer 'conv' in a way that has a gradient. Choose ano"):
        gc.explain(Returning(lambda A: A.detach().mean((2, 3))), images)


@pytest.mark.parametrize("method", ["full-grad", "guided-grad-cam"])
def test_a_score_without_a_gradient_is_said_of_methods_that_go_back_to_the_images(net, images, method):
    with pytest.raises(ValueError, match="The score does not depend on .* in a way that has a gradient. Choose"):
        gc.explain(net, images, method=method, targets=lambda logits: logits.detach()[:, 0])


def test_nan_in_the_weights_or_in_an_image_is_said(net, images):
    with torch.no_grad():
        for p in net.classifier.parameters():
            p.abs_()  # so that no map is zero everywhere
    images[1, 0, 3, 4] = torch.nan
    with pytest.warns(UserWarning, match=r"maps of images \[1\] hold NaN or infinity and show nothing: look for"):
        heat = gc.explain(net, images, targets=0).heatmaps()
    assert heat[[0, 2]].isfinite().all()
    for method in METHODS:
        if method != "cam":  # which this network has no head for
            maps = gc.explain(net, images, targets=0, method=method).maps
            assert maps[1].isnan().any() and maps[[0, 2]].isfinite().all(), method
    with torch.no_grad():
        net.features.conv2.weight[0] = torch.inf
    with pytest.warns(UserWarning, match=r"maps of images \[0, 1, 2\] hold NaN .*in .logits, and in the model's wei"):
        gc.explain(net, images, targets=0).heatmaps()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (tuple("abcdefghijkl"), "model.classes has 12 names, and the model gives 10 logits: name each"),
        (("a", "b"), "model.classes has 2 names, and the model gives 10 logits"),
        (("a", "b") * 5, "Several classes are named 'b': give the number of one, 1 or 3 or 5 or 7 or 9"),
    ],
    ids=["too many", "too few", "the same"],
)
def test_names_of_classes_that_do_not_say_which_is_meant(net, images, names, message):
    net.classes = names
    with pytest.raises(ValueError, match=message):
        gc.explain(net, images, targets="b")


# --- threads and memory ---


@pytest.mark.parametrize("method", ["grad-cam", "ablation-cam", "full-grad"])
def test_eight_threads_on_one_model_get_what_one_thread_gets(one_thread, net, method):
    batches = torch.rand(8, 2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    net.train()
    alone = [gc.explain(net, images, method=method) for images in batches]
    start = threading.Barrier(8)

    def several_times(images):
        start.wait()
        return [(gc.explain(net, images, method=method), len(gc.list_layers(net, images)))[0] for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        for expected, found in zip(alone, pool.map(several_times, batches), strict=True):
            assert all(torch.equal(f.signed, expected.signed) and f.layer == expected.layer for f in found)
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def watch_memory(net, images, pipe):
    torch.set_num_threads(1)  # a forked child may not use its parent's OpenMP threads
    for k in range(1200):
        gc.explain(net, images, targets=k % 10)
        if k in (199, 1199):
            garbage.collect()
            pipe.send(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())


def test_a_thousand_calls_take_no_memory(net, images):
    here, there = multiprocessing.get_context("fork").Pipe()
    child = multiprocessing.get_context("fork").Process(target=watch_memory, args=(net, images, there))
    child.start()
    child.join()
    assert child.exitcode == 0
    before, after = here.recv(), here.recv()
    assert after - before < 1e6


def test_too_little_memory_is_said_with_a_hint(net, images, little_memory):
    gc.explain(net, images)
    many = images[:1].expand(4000, -1, -1, -1)  # its first feature maps alone take 524 MB
    with little_memory(200_000_000), pytest.raises(torch.OutOfMemoryError) as caught:
        gc.explain(net, many)
    assert str(caught.value).startswith("There is not enough memory: explain fewer than 4000 images at once (a DataL")
    assert len(str(caught.value)) < 400 and not any(module._forward_hooks for module in net.modules())
