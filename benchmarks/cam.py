"""How fast, and in how much memory, each library makes its maps, against the model's own forward pass.

    python benchmarks/cam.py            # about an hour on two cores; a second call goes on where the first one stopped
    python benchmarks/cam.py speed      # one of the parts: speed, classes, perturbation, memory
    OMP_NUM_THREADS=1 python benchmarks/cam.py    # as many threads as are wanted; the rows say how many there were

Every case runs all libraries in one process, in turn, round after round, after one round that does not count; its row
holds the median of the rounds, and the ratio to the forward pass under `inference_mode` of the same rounds. Peak
memory is that of a fresh process. The rows go to data/records/cam-benchmark.
"""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import peers
import torch
import torchvision
from timing import interleaved

import gradcam_lib as gc
from gradcam_lib.records import describe_machine, records_folder, write_record

ROUNDS = 9
LIBRARIES = ("forward", "gradcam_lib", "gradcam_lib, accelerated", "captum", "torchcam", "grad-cam")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NETWORKS = {  # name: (builder, layer, size of the images, largest batch that fits the time and the memory of a CPU)
    "resnet18": (torchvision.models.resnet18, "layer4", 224, 32),
    "vgg16_bn": (torchvision.models.vgg16_bn, "features.42", 224, 8),
    "report-cnn": (lambda: gc.build_model("report-cnn"), "features.relu3", 32, 256),
}
BATCHES = (1, 8, 32, 256)
RECORD = records_folder() / "cam-benchmark"


def network(name):
    """The network with random weights, its layer, and the size of its images. Speed does not depend on the weights."""
    torch.manual_seed(0)
    build, layer, size, _ = NETWORKS[name]
    return build().eval().to(DEVICE), layer, size


def job(library, method, model, layer, images, classes=1, **options):
    """A function that makes the maps of all images once, with that library."""
    targets = [[k * 7 % 10 for k in range(classes)]] * len(images) if classes > 1 else [3] * len(images)

    def forward():
        with torch.inference_mode():
            model(images)

    def ours():
        gc.explain(model, images, layer=layer, targets=targets, method=method, **options)

    def theirs():
        module = model.get_submodule(layer)
        for k in range(classes):
            of_class = [t[k] for t in targets] if classes > 1 else targets
            peers.maps(library, method, model, module, images, of_class)

    if library == "gradcam_lib, accelerated":
        options["accelerate"] = True
    run = forward if library == "forward" else ours if library.startswith("gradcam_lib") else theirs

    def finished():
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return finished


def rows_of(case, medians, images):
    return [
        {**case, "library": name, "seconds": median, "images_per_second": images / median,
         "times_forward": median / medians["forward"], "rounds": ROUNDS}
        for name, median in medians.items()
    ]  # fmt: skip


def speed():
    """Grad-CAM, for each network and batch."""
    for name, (*_, largest) in NETWORKS.items():
        model, layer, size = network(name)
        for batch in BATCHES:
            case = {"part": "speed", "method": "grad-cam", "network": name, "batch": batch, "classes": 1}
            if batch > largest and DEVICE.type == "cpu":
                continue
            images = torch.rand(batch, 3, size, size, device=DEVICE)
            yield (
                case,
                lambda c=case, m=model, l=layer, i=images: rows_of(
                    c, interleaved({name: job(name, "grad-cam", m, l, i) for name in LIBRARIES}, ROUNDS), len(i)
                ),
            )


def classes():
    """Ten classes an image."""
    model, layer, size = network("resnet18")
    images = torch.rand(8, 3, size, size, device=DEVICE)
    for K in (1, 10):
        case = {"part": "classes", "method": "grad-cam", "network": "resnet18", "batch": 8, "classes": K}
        libraries = [name for name in LIBRARIES if "accelerated" not in name]
        yield (
            case,
            lambda c=case, K=K, ls=libraries: rows_of(
                c, interleaved({name: job(name, "grad-cam", model, layer, images, K) for name in ls}, ROUNDS), 8
            ),
        )


def perturbation():
    """Ablation-CAM and Score-CAM of the last block, of one image and of a batch; the peers take one at a time."""
    model, layer, size = network("resnet18")
    for method, theirs in (("ablation-cam", ("grad-cam",)), ("score-cam", ("torchcam", "grad-cam"))):
        images = torch.rand(1, 3, size, size, device=DEVICE)
        jobs = {name: job(name, method, model, layer, images) for name in ("forward", "gradcam_lib", *theirs)}
        if method == "score-cam":
            jobs["gradcam_lib, accelerated"] = job("gradcam_lib, accelerated", method, model, layer, images)
            jobs["gradcam_lib, strongest 32"] = job("gradcam_lib", method, model, layer, images, strongest=32)
        case = {"part": "perturbation", "method": method, "network": "resnet18", "batch": 1, "classes": 1}
        yield case, lambda c=case, j=jobs: rows_of(c, interleaved(j, ROUNDS), 1)
    images = torch.rand(8, 3, size, size, device=DEVICE)
    jobs = {name: job(name, "ablation-cam", model, layer, images) for name in ("forward", "gradcam_lib")}
    case = {"part": "perturbation", "method": "ablation-cam", "network": "resnet18", "batch": 8, "classes": 1}
    yield case, lambda c=case, j=jobs: rows_of(c, interleaved(j, ROUNDS), 8)


def memory():
    """Peak memory beyond what the process held before its first map, in MiB, each library in a process of its own."""
    for name, batch in (("resnet18", 32), ("vgg16_bn", 8), ("report-cnn", 256)):
        case = {"part": "memory", "method": "grad-cam", "network": name, "batch": batch, "classes": 1}
        yield (
            case,
            lambda c=case, n=name, b=batch: [
                {**c, "library": library, "peak_mib": peak(library, n, b), "rounds": 1}
                for library in LIBRARIES
                if "accelerated" not in library
            ],
        )


def peak(library, name, batch):
    command = [sys.executable, __file__, "peak", library, name, str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(library, name, batch):
    model, layer, size = network(name)
    images = torch.rand(int(batch), 3, size, size, device=DEVICE)
    job(library, "grad-cam", model, layer, images[:1])()  # what importing a library takes is not counted
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = used()
    job(library, "grad-cam", model, layer, images)()
    print(used() - before)


def used():
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**10


def main(parts):
    if parts[:1] == ["peak"]:
        return print_peak(*parts[1:])
    file = RECORD / "history.csv"
    rows = pd.read_csv(file).to_dict("records") if file.is_file() else []
    for part in (speed, classes, perturbation, memory):
        if parts and part.__name__ not in parts:
            continue
        for case, measure in part():
            case["threads"] = torch.get_num_threads()
            if any(all(row[key] == case[key] for key in case) for row in rows):
                continue
            rows += measure()
            for row in rows[-len(LIBRARIES) :]:
                print({key: value for key, value in row.items() if value == value}, flush=True)
            about = describe_machine(DEVICE)
            about["versions"] |= {name: version(name) for name in ("captum", "grad-cam", "torchcam")}
            write_record(RECORD, {"command": "python benchmarks/cam.py", **about}, pd.DataFrame(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
