"""Do the CIFAR-10 networks lean on the background? The internship report says so of airplanes, from the look of a map.

    OMP_NUM_THREADS=1 python benchmarks/background.py    # a quarter of an hour of one core

For the first 200 test pictures of each class: where Grad-CAM's energy lies, and what each network says when the
background is blurred, exchanged for that of a picture of another class, or alone is left. What is object is found by
GrabCut, from the network's own map and from the middle of the picture; how well, is measured on drawn shapes, whose
objects are known. GrabCut leaves much standing, so all but a narrow frame is taken away as well: there, what other
classes' frames are called says how much of an answer is a guess. Rows go to data/records/background.
"""

import time

import numpy as np
import pandas as pd
import torch

import gradcam_lib as gc
from gradcam_lib.background import border_share, cut_out, only_background, with_background
from gradcam_lib.batches import in_order
from gradcam_lib.datasets import ArrayDataset, first_of_each_class
from gradcam_lib.records import describe_machine, records_folder, write_record
from gradcam_lib.shapes import CLASSES, make_shapes

RECORD = records_folder() / "background"
NETWORKS = ("cifar10-report-50", "cifar10-fast")
PER_CLASS = 200
FRAMES = (1, 2, 4, 6)  # pixels of 32
KEPT = 0.05, 0.8  # a cut that leaves less of a picture, or more, has failed, and tells nothing


def heatmaps(model, images):
    """Grad-CAM of the true class, at the images' resolution, and at the layer's."""
    x = torch.cat(list(in_order(images, model.prepare, torch.device("cpu"), 500)))
    parts = zip(x.split(250), torch.tensor(images.targets).split(250), strict=True)
    found = [gc.explain(model, a, targets=b) for a, b in parts]
    return torch.cat([e.heatmaps() for e in found]).numpy(), torch.cat([e.maps for e in found])


def probabilities(model, pictures, targets):
    logits = gc.predict(model, ArrayDataset(np.stack(pictures), targets, range(10)))
    return logits.softmax(1)[torch.arange(len(targets)), torch.tensor(targets)].numpy(), logits.argmax(1).numpy()


def cut(images, heat):
    """Masks by each way of cutting: {name: (N, H, W) bool}."""
    from_map = [cut_out(picture, M) for picture, M in zip(images.data, heat, strict=True)]
    return {"map": np.stack(from_map), "middle": np.stack([cut_out(picture) for picture in images.data])}


def on_cifar(name):
    model, test = gc.load_model(name), gc.load_dataset("cifar10").test
    images = test.take(np.sort(first_of_each_class(test.targets, PER_CLASS)))
    heat, maps = heatmaps(model, images)
    p, guess = probabilities(model, images.data, images.targets)
    common = {"network": name, "label": images.targets, "right": guess == images.targets, "p": p}
    common["border"] = border_share(maps).numpy()
    # The background of the first picture after it that is of another class.
    next_other = [
        next(j % len(images) for j in range(i + 1, 2 * len(images)) if images.targets[j % len(images)] != y)
        for i, y in enumerate(images.targets)
    ]
    for way, masks in cut(images, heat).items():
        cases = list(zip(images.data, masks, strict=True))
        empty = [only_background(*case) for case in cases]
        changed = {
            "blurred": [with_background(*case) for case in cases],
            "swapped": [with_background(*case, empty[j]) for case, j in zip(cases, next_other, strict=True)],
            "alone": empty,
        }
        table = {**common, "cut": way, "share": masks.mean((1, 2))}
        for what, pictures in changed.items():
            table[f"p_{what}"], after = probabilities(model, pictures, images.targets)
            table[f"right_{what}"] = after == images.targets
        yield pd.DataFrame(table)


def in_frames(name):
    """Nothing but a frame is kept, and all within is filled in from it. A row a class."""
    model, test = gc.load_model(name), gc.load_dataset("cifar10").test
    images = test.take(np.sort(first_of_each_class(test.targets, PER_CLASS)))
    right = gc.predict(model, images).argmax(1).numpy() == images.targets
    for width in FRAMES:
        within = np.zeros((32, 32), dtype=bool)
        within[width + 1 : -width - 1, width + 1 : -width - 1] = True  # `only_background` fills in a pixel more
        p, guess = probabilities(model, [only_background(picture, within) for picture in images.data], images.targets)
        for c in range(10):
            own, others = (images.targets == c) & right, images.targets != c
            yield {
                "network": name, "cut": "frame", "frame": width, "label": c, "images": own.sum(),
                "p_alone": p[own].mean(), "right_alone": (guess[own] == c).mean(),
                "others_so_called": (guess[others] == c).mean(),
            }  # fmt: skip


def on_shapes():
    """How much of an object a cut finds, where the object is known."""
    found = make_shapes(500, seed=3)
    model = gc.load_model(records_folder() / "shortcuts" / "tie-0-seed-0.safetensors")
    images = ArrayDataset(found.images, found.labels, CLASSES, found.masks)
    heat, _ = heatmaps(model, images)
    for way, masks in cut(images, heat).items():
        overlap = (masks & found.masks).sum((1, 2)) / (masks | found.masks).sum((1, 2))
        table = {"network": "small-resnet, shapes", "label": found.labels, "cut": way, "share": masks.mean((1, 2))}
        yield pd.DataFrame({**table, "iou": overlap})


def summed_up(rows):
    """By network, cut, class and whether the answer was right; the pictures themselves would be 8,000 rows."""
    usable = rows["share"].between(*KEPT)
    for keys, group in rows.groupby(["network", "cut", "label", "right"], dropna=False):
        kept = group[usable[group.index]]
        row = dict(zip(("network", "cut", "label", "right"), keys, strict=True), images=len(group), usable=len(kept))
        row["border"], row["border_std"] = group["border"].mean(), group["border"].std()
        columns = [c for c in kept if c.startswith(("p", "right_", "iou", "share"))]
        yield row | kept[columns].astype(float).mean().to_dict()


def main():
    start = time.time()
    tables = [table for name in NETWORKS for table in on_cifar(name)] + list(on_shapes())
    rows = pd.concat(tables, ignore_index=True)
    framed = [row for name in NETWORKS for row in in_frames(name)]
    run = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/background.py",
        "images_per_class": PER_CLASS,
        "usable_share": KEPT,
        "seconds": round(time.time() - start),
        **describe_machine(torch.device("cpu")),
    }
    write_record(RECORD, run, pd.DataFrame([*summed_up(rows), *framed]))


if __name__ == "__main__":
    main()
