"""The other libraries behind one function, so that they can be timed and compared like ours; and where they differ."""

from contextlib import redirect_stderr
from io import StringIO

import torch
from torch.nn.functional import interpolate

GRAD_CAM = {
    "grad-cam": "GradCAM",
    "grad-cam++": "GradCAMPlusPlus",
    "xgrad-cam": "XGradCAM",
    "hires-cam": "HiResCAM",
    "layer-cam": "LayerCAM",
    "eigen-cam": "EigenCAM",
    "eigengrad-cam": "EigenGradCAM",
    "score-cam": "ScoreCAM",
    "ablation-cam": "AblationCAM",
    "full-grad": "FullGrad",
}
TORCHCAM = {
    "cam": "CAM",
    "grad-cam": "GradCAM",
    "grad-cam++": "GradCAMpp",
    "xgrad-cam": "XGradCAM",
    "layer-cam": "LayerCAM",
    "score-cam": "ScoreCAM",
}


CAPTUM = {"grad-cam", "hires-cam", "guided-grad-cam"}
METHODS = {"captum": CAPTUM, "torchcam": TORCHCAM, "grad-cam": GRAD_CAM}


def maps(library, method, model, layer, images, targets, raw=False):
    """The maps of a library as it gives them: (N, h, w), or at the images' resolution from pytorch-grad-cam.

    library  "captum", "torchcam" or "grad-cam"
    layer    a module of the model
    targets  N ints
    raw      the signed maps that the library has on the way, before ReLU, scaling and enlarging
    """
    return {"captum": _captum, "torchcam": _torchcam, "grad-cam": _grad_cam}[library](
        method, model, layer, images, list(targets), raw
    )


def _captum(method, model, layer, images, targets, raw):
    from captum.attr import GuidedGradCam, LayerGradCam, LayerGradientXActivation

    if method == "guided-grad-cam":  # (N, 3, H, W): of the colours the largest magnitude, as ours
        options = {"interpolate_mode": "bilinear"} if raw else {}
        return GuidedGradCam(model, layer).attribute(images, targets, **options).detach().abs().amax(1)

    if method == "grad-cam":
        return LayerGradCam(model, layer).attribute(images, target=targets).detach()[:, 0]
    if method == "hires-cam":
        return LayerGradientXActivation(model, layer).attribute(images, target=targets).detach().sum(1)
    raise ValueError(f"Captum has no {method}.")


def _torchcam(method, model, layer, images, targets, raw):
    from torchcam import methods

    with getattr(methods, TORCHCAM[method])(model, layer) as extractor:
        extractor._relu = extractor._relu and not raw
        logits = model(images)
        return extractor(targets, logits, normalized=not raw)[0].detach()


def _grad_cam(method, model, layer, images, targets, raw):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layers = [] if method == "full-grad" else [layer]
    with getattr(pytorch_grad_cam, GRAD_CAM[method])(model, layers) as cam, redirect_stderr(StringIO()):  # tqdm's bars
        cam.batch_size = 32  # of the masked images, as ours
        if raw:
            step = "compute_cam_per_layer" if method == "full-grad" else "get_cam_image"
            seen = keep_results(cam, step)
        scaled = cam(images, [ClassifierOutputTarget(c) for c in targets])
        return torch.from_numpy(seen[0].reshape(len(images), *seen[0].shape[-2:]) if raw else scaled)


def keep_results(thing, name):
    """A list of all that the method of that name returns from now on."""
    method, results = getattr(thing, name), []

    def keeping(*args, **options):
        results.append(method(*args, **options))
        return results[-1]

    setattr(thing, name, keeping)
    return results


# Where a library has another convention than ours: what it is, in words, and as a method that `explain` takes.


def plus_plus_with_epsilon(model, targets):
    def equation(A, dA):
        g, S = dA, A.sum((2, 3), keepdim=True)
        alpha = torch.where(g != 0, g**2 / (2 * g**2 + S * g**3 + 1e-6), 0)
        return torch.einsum("nk,nkhw->nhw", (alpha * g.relu()).sum((2, 3)), A)

    return equation


def plus_plus_undivided(model, targets):
    def equation(A, dA):
        return torch.einsum("nk,nkhw->nhw", (dA**2 * dA.relu()).sum((2, 3)), A)

    return equation


def centred_component(X):
    rows = X.flatten(2).mT
    rows = rows - rows.mean(1, keepdim=True)
    first = torch.linalg.svd(rows.double(), full_matrices=False)[2][:, 0, :, None]
    return (rows.double() @ first)[..., 0].unflatten(1, X.shape[2:]).float()


def eigen_centred(model, targets):
    def equation(A):
        return centred_component(A)

    return equation


def eigengrad_centred(model, targets):
    def equation(A, dA):
        return centred_component(A * dA)

    return equation


def score_through(model, targets, masks_of):
    def equation(A, x):
        masks = masks_of(A, x.shape[2:])
        with torch.no_grad():
            z = [
                model(one * masks_of_one[:, None])[:, t] for one, masks_of_one, t in zip(x, masks, targets, strict=True)
            ]
        return torch.einsum("nk,nkhw->nhw", torch.stack(z).softmax(1), A)

    return equation


def scaled(masks):
    low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
    return (masks - low) / (high - low + 1e-8)


def score_with_aligned_corners(model, targets):
    return score_through(
        model, targets, lambda A, size: scaled(interpolate(A, size, mode="bilinear", align_corners=True))
    )


def score_scaled_first(model, targets):
    return score_through(
        model, targets, lambda A, size: interpolate(scaled(A), size, mode="bilinear", align_corners=False)
    )


def ablation_by_signed_score(model, targets):
    def equation(A, z, z_without):
        return torch.einsum("nk,nkhw->nhw", (z[:, None] - z_without) / z[:, None], A)

    return equation


def full_grad_by_channel(model, targets):
    def psi(m, size):
        m = m.abs()
        m = m - m.amin((2, 3), keepdim=True)
        m = m / (1e-7 + m.amax((2, 3), keepdim=True))
        return interpolate(m, size, mode="bilinear", align_corners=False).sum(1)

    def equation(x, dx, biases):
        return psi(dx * x, x.shape[2:]) + sum(psi(b, x.shape[2:]) for b in biases)

    return equation


DIFFERENCES = {
    ("grad-cam", "grad-cam++"): ("adds 1e-6 to a denominator that is often smaller", plus_plus_with_epsilon),
    ("torchcam", "grad-cam++"): ("divides a copy, so that alpha is the squared gradient", plus_plus_undivided),
    ("grad-cam", "eigen-cam"): ("centres the feature maps, and leaves the sign to chance", eigen_centred),
    ("grad-cam", "eigengrad-cam"): (
        "centres gradient × feature maps, and leaves the sign to chance",
        eigengrad_centred,
    ),
    ("grad-cam", "score-cam"): ("enlarges masks with corners aligned", score_with_aligned_corners),
    ("torchcam", "score-cam"): ("scales masks before it enlarges them", score_scaled_first),
    ("grad-cam", "ablation-cam"): ("divides by the score with its sign", ablation_by_signed_score),
    ("grad-cam", "full-grad"): ("scales each channel by itself, not all of a layer together", full_grad_by_channel),
}


def quantus_score(name, model, images, maps, targets, masks, explain=None, softmax=True, **options):
    """A score of Quantus, as it gives it, of maps (N, H, W) of images (N, C, H, W) for targets (N,)."""
    import quantus

    metric = getattr(quantus, name)(
        abs=False, normalise=False, disable_warnings=True, display_progressbar=False, **options
    )
    return metric(
        model=model,
        x_batch=images.numpy(),
        y_batch=targets.numpy(),
        a_batch=maps[:, None].numpy(),
        s_batch=masks[:, None].numpy(),
        softmax=softmax,
        device="cpu",
        explain_func=explain,
    )
