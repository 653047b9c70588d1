"""Every method against every score: drawn shapes with exact masks, CIFAR-10, and Caltech-101 with boxes.

    OMP_NUM_THREADS=1 python benchmarks/scores.py                     # two hours of one core; goes on where it stopped
    GRADCAM_DATA=... OMP_NUM_THREADS=1 python benchmarks/scores.py    # the folder with caltech101_boxes
    OMP_NUM_THREADS=1 python benchmarks/scores.py shapes layers       # some of the parts

Beside the CAM family stand the methods of Captum, and the baselines that know nothing of the network. All are asked
about the same images, which the network gets right, and about the class that it gives them. A row is a method's score:
the mean over the images, with its 95 % bootstrap interval. Rows go to data/records/scores.
"""

import sys
import time
import warnings
from dataclasses import replace
from itertools import product

import captum.attr
import numpy as np
import pandas as pd
import torch

import gradcam_lib as gc
from gradcam_lib import faithfulness as fa
from gradcam_lib import sanity
from gradcam_lib.batches import in_order
from gradcam_lib.datasets import DATASETS, ArrayDataset, Splits
from gradcam_lib.evaluation import bootstrap
from gradcam_lib.quality import BOXES, object_boxes
from gradcam_lib.records import describe_machine, records_folder, replacing, write_record
from gradcam_lib.shapes import CLASSES, make_shapes

RECORD = records_folder() / "scores"
CPU = torch.device("cpu")
PICTURED = [0, 25, 50, 75]  # of the drawn shapes
GRID = 8  # cells along a side for the methods that switch regions on and off


def cells(x):
    """The number of each pixel's cell, (1, 1, H, W) int64."""
    row, column = (torch.arange(side) * GRID // side for side in x.shape[2:])
    return (row[:, None] * GRID + column)[None, None]


def mean_colour(model, x):
    return x.mean((2, 3), keepdim=True).expand_as(x)


def black(model, x):
    picture = np.zeros((*x.shape[2:], 3), np.uint8)
    return model.prepare(picture).expand_as(x)


def of_captum(name, without=None, each=False, **options):
    """A method of Captum as a function of (model, images, targets), its attributions summed over the channels.

    without  of (model, images): what stands for a pixel that is not there. Captum's own choice is 0, which is black for
             one network and grey for another
    """

    def maps(model, x, targets):
        method, given = getattr(captum.attr, name)(model), dict(options)
        if name in ("Lime", "KernelShap"):
            given["feature_mask"] = cells(x)
        if name == "Occlusion":
            side = x.shape[-1]
            given |= {"sliding_window_shapes": (3, side // 4, side // 4), "strides": (3, side // 8, side // 8)}
        found = []
        for part, t in zip(x.split(1), targets.split(1), strict=True) if each else [(x, targets)]:
            if without is not None:
                given["baselines"] = without(model, part)
            found.append(method.attribute(part, target=t, **given).detach().sum(1))
        return torch.cat(found)

    return maps


def of_baseline(baseline):
    return lambda model, x, targets: baseline(x)


FAMILY = {name: sanity.explainer(name) for name in gc.METHODS}
CAPTUM = {
    "gradient": of_captum("Saliency", abs=True),
    "integrated gradients": of_captum("IntegratedGradients", mean_colour, n_steps=32, internal_batch_size=64),
    "integrated gradients, black": of_captum("IntegratedGradients", black, n_steps=32, internal_batch_size=64),
    "gradient SHAP": of_captum("GradientShap", mean_colour, each=True, n_samples=16),
    "occlusion": of_captum("Occlusion", mean_colour, perturbations_per_eval=16),
    "LIME": of_captum("Lime", mean_colour, each=True, n_samples=200, perturbations_per_eval=50),
    "kernel SHAP": of_captum("KernelShap", mean_colour, each=True, n_samples=200, perturbations_per_eval=50),
}
BASELINES = {name: of_baseline(baseline) for name, baseline in fa.BASELINES.items()}
EXPLAINERS = FAMILY | CAPTUM | BASELINES


# --- what is looked at ---


def right_ones(model, images, per_class):
    """The first images of each class that the network gets right, as it takes them, and their classes."""
    guess = gc.predict(model, images).argmax(1).numpy()
    chosen = [np.flatnonzero((images.targets == c) & (guess == c))[:per_class] for c in np.unique(images.targets)]
    some = images.take(np.sort(np.concatenate(chosen)))
    return torch.cat(list(in_order(some, model.prepare, CPU, 500))), torch.tensor(some.targets), some


def shapes_case():
    model = gc.load_model(records_folder() / "shortcuts" / "tie-0-seed-0.safetensors")
    found = make_shapes(500, seed=3)
    x, y, some = right_ones(model, ArrayDataset(found.images, found.labels, CLASSES, found.masks), 10)
    return model, x, y, torch.tensor(some.masks)


def cifar_case(name):
    model = gc.load_model(name)
    return *(model, *right_ones(model, gc.load_dataset("cifar10").test.take(slice(0, 1000)), 10)[:2]), None


@torch.no_grad()
def predicted(model, one):
    return model(one).argmax().item()


def caltech_case(per_class=5):
    """Test pictures that have a box, with the box as the network's crop shows it."""
    table, data, model = object_boxes(), gc.load_dataset("caltech101").test, gc.load_model("caltech101-transfer")
    if table is None:
        raise SystemExit("The boxes of Caltech-101 are not at hand: set GRADCAM_DATA to the folder that holds them.")
    whole, x, y, masks = data.dataset, [], [], []
    for folder in BOXES:
        label, kept = whole.categories.index(folder), 0
        for i in data.indices:
            name = f"{folder}/image_{whole.index[i]:04d}.jpg"
            if whole.y[i] != label or name not in table.index or kept == per_class:
                continue
            picture = np.asarray(whole[i][0])
            one = model.prepare(picture)
            if predicted(model, one) != label:
                continue
            x0, y0, x1, y1 = table.loc[name]
            box = np.zeros_like(picture)
            box[max(y0, 0) : y1, max(x0, 0) : x1] = 255
            x.append(one)
            y.append(label)
            masks.append(torch.tensor(model.prepare.crop(box)[..., 0] > 127))
            kept += 1
    return model, torch.cat(x), torch.tensor(y), torch.stack(masks)


# The scores that ask a method 14 times more look at every n-th image of the larger networks.
CASES = {
    "shapes": ("small-resnet, shapes", shapes_case, 1),
    "cifar10-report": ("cifar10-report-50", lambda: cifar_case("cifar10-report-50"), 1),
    "cifar10-fast": ("cifar10-fast", lambda: cifar_case("cifar10-fast"), 4),
    "caltech101": ("caltech101-transfer", caltech_case, 5),
}


# --- the scores ---


def scores(method, model, x, y, maps, masks, every):
    """Every score of the maps: {name: (N,)}, or of every n-th image where the method is asked again.

    Of large images fewer, and those of stability not at all: they would take hours.
    """
    small = x.shape[-1] <= 64
    steps, subsets = (32, 100) if small else (8, 20)
    given = model, x, maps, y
    found = {}
    if masks is not None:
        found["pointing game"] = fa.pointing_game(maps, masks)
        found["energy inside"] = fa.energy_inside(maps, masks)
        found["best IoU"] = fa.best_iou(maps, masks)
        corners = fa.boxes(masks.float(), 0.5)
        found["box IoU"] = fa.box_iou(fa.boxes(fa.enlarged(maps, x.shape[2:])), corners)
    for fill in ("mean", "blur", "noisy-linear") if small else ("mean", "blur"):
        found[f"deletion, {fill}"] = fa.deletion(*given, steps=steps, fill=fill).area
        found[f"insertion, {fill}"] = fa.insertion(*given, steps=steps, fill=fill).area
    found["ROAD"] = fa.road(*given)[0]
    drop, increase = fa.drop_and_increase(*given)
    found |= {"average drop": drop, "increase": increase}
    found["sensitivity-n"] = fa.sensitivity_n(*given, shares=[0.2], subsets=subsets)[:, 0]
    if method is not None:
        x, y, maps = x[::every], y[::every], maps[::every]
        *_, (_, forgotten) = sanity.cascade(model)
        after = method(forgotten, x, y)
        found["randomised"] = sanity.rank_correlation(maps, after)
        found["randomised, SSIM"] = sanity.ssim(*(fa.enlarged(M, x.shape[2:]) for M in (maps, after)))
        if not small:  # the next two ask the method thirteen times
            return found
        seen = sanity.views(method, model, x, y, shift=x.shape[-1] // 16)
        found["views"] = torch.stack([sanity.rank_correlation(seen[0], other) for other in seen[1:]]).mean(0)
        found["max sensitivity"] = sanity.max_sensitivity(method, model, x, y, samples=5, radius=0.05)
    return found


def rows_of(network, name, seconds, found):
    for score, values in found.items():
        values = values.double().numpy()
        value, low, high = bootstrap(np.mean, values)
        yield {
            "network": network, "method": name, "score": score, "value": value, "low": low, "high": high,
            "images": len(values), "seconds_per_image": seconds,
        }  # fmt: skip


def scored(part, known):
    """The rows of each method that is not among the known ones, and of the map that a search finds on small images."""
    network, case, again = CASES[part]
    model, x, y, masks = case()
    small = x.shape[-1] <= 64
    # Score-CAM of 1,280 feature maps at 224 pixels takes a minute an image.
    more = {"searched": None} if small else {"score-cam, 64 strongest": sanity.explainer("score-cam", strongest=64)}
    for name, method in (EXPLAINERS | more).items():
        if name in known or (name == "score-cam" and not small):
            continue
        start = time.process_time()
        try:
            maps = fa.search(model, x[::5], y[::5], fill="mean") if method is None else method(model, x, y)
        except ValueError as error:  # such as CAM, of a network without its head
            print(f"{part}: {name} does not apply: {error}")
            continue
        seconds = (time.process_time() - start) / len(maps)
        every = 5 if method is None else 1
        some = None if masks is None else masks[::every]
        yield list(rows_of(network, name, seconds, scores(method, model, x[::every], y[::every], maps, some, again)))
        print(f"{part}: {name}", flush=True)


def layers():
    """What the choice of the layer does, from the first to the last of the network."""
    for part in ("shapes", "cifar10-fast"):
        network, case, _ = CASES[part]
        model, x, y, masks = case()
        names = [layer.name for layer in gc.list_layers(model, x)]
        names = names[:: max(1, len(names) // 8)] + names[-1:]
        for method, name in product(("grad-cam", "hires-cam", "layer-cam"), names):
            by = sanity.explainer(method, layer=name)
            start = time.process_time()
            maps = by(model, x, y)
            seconds = (time.process_time() - start) / len(maps)
            found = {"ROAD": fa.road(model, x, maps, y)[0]}
            found["insertion, blur"] = fa.insertion(model, x, maps, y).area
            if masks is not None:
                found |= {"energy inside": fa.energy_inside(maps, masks), "best IoU": fa.best_iou(maps, masks)}
            yield from ({"layer": name, **row} for row in rows_of(network, method, seconds, found))


def cascades():
    """The maps while the network forgets, layer by layer."""
    for part in ("shapes", "cifar10-report"):
        network, case, _ = CASES[part]
        model, x, y, _ = case()
        for name in (
            "grad-cam",
            "hires-cam",
            "guided-grad-cam",
            "full-grad",
            "gradient",
            "integrated gradients",
            "edges",
        ):
            table = sanity.randomisation(EXPLAINERS[name], model, x[:50], y[:50])
            yield from (
                {"network": network, "method": name, "layer": layer, "depth": depth, "score": score,
                 "value": rows[score].mean(), "images": len(rows)}
                for (depth, layer), rows in table.groupby(["depth", "layer"])
                for score in ("rank_correlation", "ssim")
            )  # fmt: skip


def agreements():
    """How alike the methods are on the same images."""
    network, case, _ = CASES["shapes"]
    model, x, y, _ = case()
    maps = {name: fa.enlarged(method(model, x, y), x.shape[2:]) for name, method in EXPLAINERS.items()}
    shown = {name: M[PICTURED].half().numpy() for name, M in maps.items()}
    np.savez_compressed(RECORD / "maps.npz", pictures=x[PICTURED].half().numpy(), **shown)  # for chapter 9 to show
    table = sanity.agreement(maps)
    for a in table:
        for b in table:
            alike = {"score": "rank correlation", "value": table.loc[a, b], "images": len(x)}
            yield {"network": network, "method": a, "other": b, **alike}


def trainings():
    """One method across networks that learnt from the same pictures: the labels, by another seed, or labels of chance.

    If a map shows what was learnt, it should stay with the seed and go with the labels (Adebayo et al. 2018, sec. 3.3).
    """
    drawn, chance = make_shapes(2_000, seed=1), np.random.default_rng(0)
    labels = {
        "the labels": drawn.labels,
        "another seed": drawn.labels,
        "random labels": chance.permutation(drawn.labels),
    }
    recipe = gc.Recipe("memory", "shapes", "small-resnet", all_images=True, epochs=30, batch_size=100, optimizer="sgd",
                       lr=0.1, nesterov=True, schedule="one-cycle")  # fmt: skip
    found = make_shapes(500, seed=3)
    test, maps = ArrayDataset(found.images, found.labels, CLASSES), {}
    for n, (learnt, targets) in enumerate(labels.items()):
        pictures = ArrayDataset(drawn.images, targets, CLASSES)
        data = Splits(DATASETS["shapes"], pictures, pictures, test, CLASSES, "")
        seed = n if learnt == "another seed" else 0
        model = gc.train(replace(recipe, seed=seed), data=data, device="cpu", progress=False).model
        if learnt == "the labels":
            x, y, _ = right_ones(model, test, 10)
        for split, images in (("train", pictures), ("test", test)):
            right = gc.predict(model, images).argmax(1).numpy() == images.targets
            yield {"network": "small-resnet, shapes", "other": learnt, "score": f"{split} accuracy",
                   "value": right.mean(), "images": len(right)}  # fmt: skip
        for name, method in EXPLAINERS.items():
            maps[learnt, name] = method(model, x, y)
            if learnt != "the labels":
                pair = [fa.enlarged(maps[which, name], x.shape[2:]) for which in ("the labels", learnt)]
                found = {"rank correlation": sanity.rank_correlation(*pair), "SSIM": sanity.ssim(*pair)}
                yield from ({"other": learnt, **row} for row in rows_of("small-resnet, shapes", name, 0, found))
        print(f"trainings: {learnt}", flush=True)


PARTS = {"layers": layers, "cascades": cascades, "agreements": agreements, "trainings": trainings}


def write(rows, file):
    with replacing(file) as scratch:
        pd.DataFrame(rows).to_csv(scratch, index=False)


def main(wanted):
    file = RECORD / "history.csv"
    rows = pd.read_csv(file).to_dict("records") if file.is_file() else []
    RECORD.mkdir(parents=True, exist_ok=True)
    for part in wanted or [*CASES, *PARTS]:
        known = {row["method"] for row in rows if row["part"] == part}
        if known and part in PARTS:
            continue
        torch.manual_seed(0)
        for found in scored(part, known) if part in CASES else [PARTS[part]()]:
            rows += [{"part": part, **row} for row in found]
            write(rows, file)
        print(f"{part} is whole", flush=True)
    run = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/scores.py",
        "captum": captum.__version__,
        **describe_machine(CPU),
    }
    write_record(RECORD, run, pd.DataFrame(rows))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Captum's own, of gradients that it asks for by itself
    main(sys.argv[1:])
