"""How fast the scores are, against Quantus's, on the same maps of the same images.

    OMP_NUM_THREADS=1 python benchmarks/faithfulness.py    # ten minutes of one core

Each case runs both in one process, in turn, round after round, after one round that does not count; its row holds the
median of the rounds in seconds of processor time, which other programs on the machine do not count into. The scores
are those that tests/test_score_peers.py shows to be the same. Rows go to data/records/faithfulness-benchmark.
"""

import sys
import time
import warnings
from importlib.metadata import version

import pandas as pd
import torch
import torchvision
from peers import quantus_score
from timing import interleaved
from torch import nn

import gradcam_lib as gc
from gradcam_lib import faithfulness as fa
from gradcam_lib import sanity
from gradcam_lib.records import describe_machine, records_folder, write_record

warnings.simplefilter("ignore")  # Quantus's own, of its docstrings
import quantus  # noqa: E402

ROUNDS = 3
RECORD = records_folder() / "faithfulness-benchmark"
BLACK = torch.zeros(1)


class Grey(nn.Module):
    """A network for grey images, for Quantus's ROAD fails where a pixel has several channels."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.repeat(1, 3, 1, 1))


NETWORKS = {  # name: (builder, side of the images, how many)
    "report-cnn": (lambda: gc.build_model("report-cnn"), 32, 64),
    "resnet18": (torchvision.models.resnet18, 224, 4),
}


def scores(model, images):
    """{score: {library: function}}"""
    N, C, H, W = images.shape
    targets = torch.arange(N) % 10
    maps, masks = fa.random_map(images), fa.centre_map(images) > 0.6
    given, grey = (model, images, maps, targets), (Grey(model).eval(), images[:, :1], maps, targets)
    method = sanity.explainer("grad-cam")

    def enlarged(model, inputs, targets, **kwargs):
        found = method(model, torch.as_tensor(inputs), torch.as_tensor(targets))
        return fa.enlarged(found, (H, W))[:, None].numpy()

    def quantus_of(name, **options):
        return lambda: quantus_score(name, *given, masks, **options)

    share = round(0.2 * H * W)
    return {
        "pointing game": (lambda: fa.pointing_game(maps, masks), quantus_of("PointingGame")),
        "energy inside": (lambda: fa.energy_inside(maps, masks), quantus_of("RelevanceMassAccuracy")),
        "deletion, 48 steps": (
            lambda: fa.deletion(*given, steps=48, fill=BLACK),
            quantus_of("PixelFlipping", features_in_step=C * H * W // 48, perturb_baseline=0.0),
        ),
        "ROAD, 9 shares": (
            # Quantus removes the most important first, and no more: half of what `road` does.
            lambda: fa._curve(*grey, torch.tensor(fa.NINE_TENTHS), "noisy-linear"),
            lambda: quantus_score("ROAD", *grey, masks, percentages=list(range(10, 100, 10))),
        ),
        "sensitivity-n, 100 sets": (
            lambda: fa.sensitivity_n(*given, shares=[0.2], fill=BLACK),
            quantus_of(
                "FaithfulnessCorrelation", nr_runs=100, subset_size=C * share, perturb_baseline=0.0, softmax=False,
                return_aggregate=False,
            ),
        ),
        "max sensitivity, 10 samples": (
            lambda: sanity.max_sensitivity(method, model, images, targets, samples=10),
            quantus_of("MaxSensitivity", nr_samples=10, explain=enlarged),
        ),
        "randomisation, every layer": (
            lambda: sanity.randomisation(method, model, images, targets),
            quantus_of(
                "MPRT", explain=enlarged, similarity_func=quantus.correlation_spearman,
                return_average_correlation=False,
            ),
        ),
    }  # fmt: skip


def main():
    torch.manual_seed(0)
    start, rows = time.time(), []
    for name, (build, side, N) in NETWORKS.items():
        model, images = build().eval(), torch.rand(N, 3, side, side)
        for score, (ours, quantus_) in scores(model, images).items():
            medians = interleaved({"ours": ours, "quantus": quantus_}, ROUNDS, clock=time.process_time)
            ratio = medians["quantus"] / medians["ours"]
            rows.append({"network": name, "side": side, "images": N, "score": score, **medians, "ratio": ratio})
            print(f"{name:12} {score:30}", *(f"{value:10.4f}" for value in (*medians.values(), ratio)), flush=True)
    run = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/faithfulness.py",
        "rounds": ROUNDS,
        "seconds": round(time.time() - start),
        "quantus": version("quantus"),
        **describe_machine(torch.device("cpu")),
    }
    write_record(RECORD, run, pd.DataFrame(rows))


if __name__ == "__main__":
    sys.exit(main())
