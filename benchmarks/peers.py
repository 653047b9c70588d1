"""The other libraries behind one function, so that they can be timed and compared like ours."""

import torch

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
}
TORCHCAM = {
    "cam": "CAM",
    "grad-cam": "GradCAM",
    "grad-cam++": "GradCAMpp",
    "xgrad-cam": "XGradCAM",
    "layer-cam": "LayerCAM",
    "score-cam": "ScoreCAM",
}


def maps(library, method, model, layer, images, targets):
    """The maps of a library as it gives them: (N, h, w), or at the images' resolution from pytorch-grad-cam.

    library  "captum", "torchcam" or "grad-cam"
    layer    a module of the model
    targets  N ints
    """
    return {"captum": _captum, "torchcam": _torchcam, "grad-cam": _grad_cam}[library](
        method, model, layer, images, list(targets)
    )


def _captum(method, model, layer, images, targets):
    from captum.attr import LayerGradCam, LayerGradientXActivation

    if method == "grad-cam":
        return LayerGradCam(model, layer).attribute(images, target=targets).detach()[:, 0]
    if method == "hires-cam":
        return LayerGradientXActivation(model, layer).attribute(images, target=targets).detach().sum(1)
    raise ValueError(f"Captum has no {method}.")


def _torchcam(method, model, layer, images, targets):
    from torchcam import methods

    with getattr(methods, TORCHCAM[method])(model, layer) as extractor:
        logits = model(images)
        return extractor(targets, logits)[0].detach()


def _grad_cam(method, model, layer, images, targets):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with getattr(pytorch_grad_cam, GRAD_CAM[method])(model, [layer]) as cam:
        cam.batch_size = 32  # of the masked images, as ours
        return torch.from_numpy(cam(images, [ClassifierOutputTarget(c) for c in targets]))
