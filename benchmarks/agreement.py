"""Whether the libraries make the same maps as ours, and where not, by which convention they differ.

    python benchmarks/agreement.py      # a quarter of an hour on two cores

For each library, method and network: the largest difference of the maps over the largest magnitude, before ReLU,
scaling and enlarging. Where the library has another convention, a second error says what is left once ours is changed
to theirs. The rows go to data/records/cam-agreement.
"""

import json
import warnings
from copy import deepcopy
from importlib.metadata import version

import pandas as pd
import peers
import torch
import torchvision
from torch import nn

import gradcam_lib as gc
from gradcam_lib.records import describe_machine, records_folder, replacing

RECORD = records_folder() / "cam-agreement"
NETWORKS = {  # name: (builder, side of the images, usual layer, a layer in front of an in-place operation)
    "resnet18": (torchvision.models.resnet18, 112, "layer4", "layer4.1.bn2"),
    "vgg16_bn": (torchvision.models.vgg16_bn, 112, "features.42", "features.41"),
    "report-cnn": (lambda: gc.build_model("report-cnn"), 32, "features.relu3", None),
}


def network(name):
    """Random weights, with the running statistics that these images give, and two images."""
    torch.manual_seed(0)
    build, side, *_ = NETWORKS[name]
    model, images = build(), torch.randn(8, 3, side, side)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        model.train()(images)
    return model.eval(), images[:2]


def error(theirs, ours, up_to_sign=False):
    """The largest difference over the largest magnitude, in the image where that is worst."""
    theirs, ours = theirs.double().flatten(1), ours.double().flatten(1)
    if up_to_sign:
        theirs = theirs * (theirs * ours).sum(1, keepdim=True).sign()
    wrong = (theirs - ours).abs().amax(1)
    return torch.where(wrong == 0, 0, wrong / ours.abs().amax(1)).max().item()


def compare(library, method, model, layer, images, targets):
    """The error of a library's maps, the error by its own convention (NaN where that is ours), and that convention."""
    arguments = {"targets": targets} if method == "full-grad" else {"targets": targets, "layer": layer}
    theirs_on = deepcopy(model)  # some of them leave a model changed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peers.maps(
            library, method, theirs_on, theirs_on.get_submodule(layer), images.clone(), targets, raw=True
        )
    eigen = method.startswith("eigen")
    as_is = error(theirs, gc.explain(model, images, method=method, **arguments).signed, eigen)
    note, convention = peers.DIFFERENCES.get((library, method), ("", None))
    if convention is None:
        return as_is, float("nan"), note
    by_theirs = gc.explain(model, images, method=convention(model, targets), **arguments).signed
    return as_is, error(theirs, by_theirs, eigen), note


def main():
    rows = []
    for name, (_, _, usual, before_in_place) in NETWORKS.items():
        model, images = network(name)
        logits = model(images)
        for library, methods in peers.METHODS.items():
            for method in sorted(methods):
                if method == "cam" and name != "resnet18":  # the only one with the head that it needs
                    continue
                # Ablation-CAM of a score below zero: only there do the two conventions differ.
                targets = (-logits if method == "ablation-cam" else logits).argmax(1).tolist()
                layers = [usual, before_in_place] if method == "grad-cam" and before_in_place else [usual]
                for layer in layers:
                    as_is, by_theirs, note = compare(library, method, model, layer, images, targets)
                    if layer == before_in_place:
                        note = "an in-place operation follows the layer"
                        note += ", and overwrites A" if as_is > 1e-4 else ""
                    rows.append(
                        {"peer": library, "method": method, "network": name,
                         "layer": "" if method == "full-grad" else layer, "error": as_is,
                         "error_by_their_convention": by_theirs, "convention": note}
                    )  # fmt: skip
                    print(rows[-1], flush=True)
    about = describe_machine(torch.device("cpu"))
    about["versions"] |= {peer: version(peer) for peer in peers.METHODS}
    with replacing(RECORD / "agreement.csv") as scratch:
        pd.DataFrame(rows).to_csv(scratch, index=False, float_format="%.2g")
    with replacing(RECORD / "run.json") as scratch:
        scratch.write_text(json.dumps({"command": "python benchmarks/agreement.py", **about}, indent=2) + "\n")


if __name__ == "__main__":
    main()
