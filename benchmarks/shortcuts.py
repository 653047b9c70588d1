"""Does a map reveal that a network looks at the background? Shortcuts planted in drawn pictures, where it is known.

    OMP_NUM_THREADS=1 python benchmarks/shortcuts.py    # forty minutes of one core; goes on where it stopped

In the data set "shapes", eight of ten classes are tied to a scene each, with a strength from 0 to 1. For each strength
and seed a small network is trained, and tested on the same objects in the scenes of their class (kept), in scenes drawn
by chance (broken) and in another class's scene (swapped). Then every method maps the true class, and the map's energy
on the object is measured with the exact masks. Rows go to data/records/shortcuts, with the weights of three networks.
"""

import time
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

import gradcam_lib as gc
from gradcam_lib.batches import in_order
from gradcam_lib.datasets import DATASETS, ArrayDataset, Splits
from gradcam_lib.faithfulness import BASELINES, energy_inside, pointing_game
from gradcam_lib.models import save_model
from gradcam_lib.records import describe_machine, records_folder, replacing, write_record
from gradcam_lib.shapes import CLASSES, TIED, make_shapes

RECORD = records_folder() / "shortcuts"
TIES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
SEEDS = (0, 1, 2)
KEPT = (0.0, 0.9, 1.0)  # the ties whose first network chapter 9 looks at
TRAIN, TEST, MAPPED = 8_000, 1_000, 250
LAYERS = ("features.stage2", "features.stage3")  # maps of 8 x 8 and of 4 x 4, the last
RECIPE = gc.Recipe(
    name="shortcut",
    dataset="shapes",
    model="small-resnet",
    all_images=True,
    epochs=10,
    batch_size=128,
    optimizer="sgd",
    lr=0.1,
    nesterov=True,
    weight_decay=5e-4,
    schedule="one-cycle",
    flip="random",
    shift=2,
)


def drawn(count, seed, tie=0.0, swap=False):
    found = make_shapes(count, seed=seed, tie=tie, swap=swap)
    return ArrayDataset(found.images, found.labels, CLASSES, found.masks)


def accuracies(model, tests):
    for scenes, images in tests.items():
        right = gc.predict(model, images).argmax(1).numpy() == images.targets
        for tied in (True, False):
            which = (TIED[images.targets] >= 0) == tied
            yield {
                "part": "accuracy",
                "scenes": scenes,
                "tied": tied,
                "value": right[which].mean(),
                "images": which.sum(),
            }


def maps_of(model, images):
    """(method, layer, maps) of the true classes."""
    x = torch.cat(list(in_order(images, model.prepare, torch.device("cpu"), 500)))
    y = torch.tensor(images.targets)
    for method in gc.METHODS:
        whole = method in ("full-grad", "guided-grad-cam")
        for layer in LAYERS[-1:] if whole or method == "cam" else LAYERS:
            options = {} if method == "full-grad" else {"layer": layer}
            yield method, layer, gc.explain(model, x, targets=y, method=method, **options).maps
    for name, baseline in BASELINES.items():
        yield name, "none", baseline(x)


def on_the_object(model, tests):
    """Energy on the object of each mapped picture: {(scenes, method, layer): (N,)}, and rows with its mean."""
    energies, rows = {}, []
    for scenes in ("kept", "broken"):
        images = tests[scenes].take(np.flatnonzero(TIED[tests[scenes].targets] >= 0)[:MAPPED])
        masks = torch.tensor(images.masks)
        area = masks.float().mean((1, 2))
        for method, layer, maps in maps_of(model, images):
            energy = energies[scenes, method, layer] = energy_inside(maps, masks)
            rows.append(
                {
                    "part": "map",
                    "scenes": scenes,
                    "method": method,
                    "layer": layer,
                    "value": energy.mean().item(),
                    "pointing": pointing_game(maps, masks).mean().item(),
                    "below_chance": (energy < area).float().mean().item(),
                    "images": len(images),
                }
            )
    return energies, rows


def main():
    start = time.time()
    file = RECORD / "history.csv"
    known = pd.read_csv(file) if file.is_file() else pd.DataFrame(columns=["tie", "seed"])
    rows = known.to_dict("records")
    tests = {
        "broken": drawn(TEST, seed=2),
        "kept": drawn(TEST, seed=2, tie=1),
        "swapped": drawn(TEST, seed=2, tie=1, swap=True),
    }
    for seed in SEEDS:
        honest = None
        for tie in TIES:
            weights = RECORD / f"tie-{tie:g}-seed-{seed}.safetensors"
            measured = ((known["tie"] == tie) & (known["seed"] == seed)).any()
            if measured and tie:  # of the honest network, the others need the energies
                continue
            if weights.is_file():
                model = gc.load_model(weights)
            else:
                pictures = drawn(TRAIN, seed=1, tie=tie)
                data = Splits(DATASETS["shapes"], pictures, pictures, tests["broken"], CLASSES, "")
                model = gc.train(replace(RECIPE, seed=seed), data=data, device="cpu").model
                RECORD.mkdir(parents=True, exist_ok=True)
                save_model(model, weights, architecture=RECIPE.model, classes=CLASSES)
            energies, found = on_the_object(model, tests)
            honest = energies if tie == 0 else honest
            for row in found:
                # How well the map tells this network from the honest one: 1 always, 0.5 never.
                case = row["scenes"], row["method"], row["layer"]
                both = torch.cat([honest[case], energies[case]])
                row["auroc"] = roc_auc_score([0] * len(honest[case]) + [1] * len(energies[case]), -both)
            if not measured:
                rows += [{"tie": tie, "seed": seed} | row for row in (*accuracies(model, tests), *found)]
                RECORD.mkdir(parents=True, exist_ok=True)
                with replacing(file) as scratch:
                    pd.DataFrame(rows).to_csv(scratch, index=False)
            print(f"tie {tie}, seed {seed}: {time.time() - start:.0f} s", flush=True)
    for tie, seed in product(TIES, SEEDS):
        if seed or tie not in KEPT:
            (RECORD / f"tie-{tie:g}-seed-{seed}.safetensors").unlink(missing_ok=True)
    run = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/shortcuts.py",
        "recipe": asdict(RECIPE),
        "images": {"train": TRAIN, "test": TEST, "mapped": MAPPED},
        "seeds": list(SEEDS),
        "seconds": round(time.time() - start),
        **describe_machine(torch.device("cpu")),
    }
    write_record(RECORD, run, pd.DataFrame(rows))


if __name__ == "__main__":
    main()
