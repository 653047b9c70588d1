"""The recipes: everything that decides a training run, as plain data, each constant with its reason or its unit."""

from dataclasses import dataclass, replace
from typing import Any

__all__ = ["RECIPES", "REPORTED", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run.

    name             of the recipe and of its record
    dataset, model   names for `load_dataset` and `build_model`
    pretrained       start from the network's ImageNet weights, with a new last layer
    seed             of the weights, the order of the images, their augmentation and the dropout
    epochs           passes over the training set, at most
    batch_size       images a step, over all devices together
    accumulate       parts in which a batch is computed, one after the other, where memory is short; batch norm sees
                     each part, of each worker, by itself
    train_images     use only the first so many training images; None uses all
    per_class        use only the first so many training images of each class; None uses all
    all_images       train on the training and the validation images together, as published figures for CIFAR-10 do;
                     then nothing is left to choose by, and nothing may be chosen
    balanced         draw every class equally often, whatever its number of images

    optimizer        "adam", "sgd" (with momentum), or "muon": Muon for the filters of convolutions, SGD for the rest
    lr               step size of the optimiser at its largest
    pretrained_lr    share of the step size that the pretrained layers get; the new last layer gets all of it
    momentum         of SGD and of Muon
    least_momentum   what momentum falls to while the step size of "one-cycle" rises, and comes back from while it falls
                     (Smith and Topin 2018); None leaves it as it is
    nesterov         whether the momentum looks ahead
    weight_decay     of matrices and filters; biases and the parameters of batch norm are left alone
    schedule         of the step size, by `optimizers.SCHEDULES`: "constant", "linear", "cosine", "one-cycle"
    label_smoothing  share of each label that is spread over all classes
    ema              the weights kept are their exponential moving average with this decay a step; None keeps the last
    patience         epochs without a better validation accuracy after which training stops, and the best epoch's
                     weights are kept; None trains all epochs and keeps the last one's

    image_size       side of the square that the network is shown, in pixels; None takes the network's own. Pictures of
                     CIFAR and shapes are taken as they are
    first_size       side of the pictures at the beginning, in pixels: they grow until three quarters of the run are
                     over (progressive resizing); None shows them at their full size throughout
    crop             of photographs: "centre", as in testing, or "random", a part of random place, size and shape
                     brought to the square (Szegedy et al. 2015)
    jitter           of photographs: how far brightness, contrast and saturation may be changed, as a share
    flip             "none", "random", or "alternating": every image is seen both ways in turn (Jordan 2024; not for
                     photographs)
    shift            pixels by which an image is moved at most, its border reflected; not for photographs
    cutout           side of a square of grey laid somewhere on the image, in pixels; not for photographs
    views            of each image that are averaged in testing: 1, 2 with its mirror image, 6 with shifts by a pixel

    precision        "float32", "bfloat16" or "float16", of the network's products; its weights stay float32
    """

    name: str
    dataset: str
    model: str
    pretrained: bool = False
    seed: int = 0
    epochs: int = 50
    batch_size: int = 64
    accumulate: int = 1
    train_images: int | None = None
    per_class: int | None = None
    all_images: bool = False
    balanced: bool = False

    optimizer: str = "adam"
    lr: float = 1e-3
    pretrained_lr: float = 1.0
    momentum: float = 0.9
    least_momentum: float | None = None
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "constant"
    label_smoothing: float = 0.0
    ema: float | None = None
    patience: int | None = None

    image_size: int | None = None
    first_size: int | None = None
    crop: str = "centre"
    jitter: float = 0.0
    flip: str = "none"
    shift: int = 0
    cutout: int = 0
    views: int = 1

    precision: str = "float32"


CIFAR10_REPORT = Recipe(
    name="cifar10-report",
    dataset="cifar10",  # pixels in [0, 1]; "no explicit data augmentation was applied"
    model="report-cnn",
    optimizer="adam",
    lr=1e-3,
    batch_size=64,
    epochs=50,
    patience=5,  # the report says "early stopping" and gives no figure; ours
)

# The report's figures are those of its 50th epoch, which early stopping never reaches.
CIFAR10_REPORT_50 = replace(CIFAR10_REPORT, name="cifar10-report-50", patience=None)

# The 94 % recipe of Jordan (2024), with Muon as in the author's later code; what is not here is in `optimizers.py`.
CIFAR10_FAST = Recipe(
    name="cifar10-fast",
    dataset="cifar10",
    model="cifar10-fast",
    all_images=True,  # as all figures for this recipe
    epochs=10,  # the author's 8 gave 93.9 % here
    batch_size=2000,
    optimizer="muon",
    lr=0.24,
    momentum=0.6,
    nesterov=True,
    schedule="linear",
    label_smoothing=0.2,
    flip="alternating",
    shift=2,
    views=6,
)

# For an hour of one GPU: what is usual for the best convolutional networks of this size.
CIFAR10_BEST = Recipe(
    name="cifar10-best",
    dataset="cifar10",
    model="cifar10-se-resnet18",
    all_images=True,
    epochs=200,
    batch_size=512,
    optimizer="sgd",
    lr=0.4,  # 0.1 for 128 images (He et al. 2016), in proportion (Goyal et al. 2017)
    nesterov=True,
    weight_decay=5e-4,
    schedule="one-cycle",
    label_smoothing=0.1,
    ema=0.999,  # of the last 1,000 steps, 10 epochs
    flip="random",
    shift=4,
    cutout=16,  # DeVries and Taylor (2017), for CIFAR-10
    views=2,
    precision="bfloat16",
)

# The Caltech-256 report. It gives neither step size nor momentum: 0.9 is usual, and 0.01 was VGG's own.
CALTECH256_REPORT = Recipe(
    name="caltech256-report",
    dataset="caltech256",
    model="vgg-report",
    epochs=25,
    batch_size=64,
    optimizer="sgd",
    lr=0.01,
    momentum=0.95,  # these two are what PyTorch's OneCycleLR does to it
    least_momentum=0.85,
    schedule="one-cycle",
)

# The report's list of future improvements, all of them.
CALTECH256_MODERN = Recipe(
    name="caltech256-modern",
    dataset="caltech256",
    model="se-resnet18",  # a residual network with squeeze-and-excitation attention
    epochs=100,
    batch_size=128,
    optimizer="sgd",
    lr=0.1,
    nesterov=True,
    weight_decay=5e-4,
    schedule="one-cycle",
    label_smoothing=0.1,
    ema=0.999,
    first_size=128,
    crop="random",
    jitter=0.4,
    flip="random",
    views=2,
    precision="bfloat16",
)

CALTECH256_TRANSFER = Recipe(
    name="caltech256-transfer",
    dataset="caltech256",
    model="convnext_base",  # 84.1 % on ImageNet, says torchvision, which has its weights
    pretrained=True,
    epochs=10,
    batch_size=64,
    optimizer="adam",
    lr=1e-3,  # of the new layer alone
    pretrained_lr=0.05,
    weight_decay=0.05,
    schedule="one-cycle",
    label_smoothing=0.1,
    crop="random",
    flip="random",
    views=2,
    precision="bfloat16",
)

# The same on Caltech-101, with the 30 training images a class of its literature, or all that there are: our training
# part is 70 % of each class, and 21 of the 101 have fewer. 2,941 images in all.
CALTECH101: dict[str, Any] = {"dataset": "caltech101", "per_class": 30}
CALTECH101_REPORT = replace(CALTECH256_REPORT, name="caltech101-report", **CALTECH101)
CALTECH101_MODERN = replace(
    CALTECH256_MODERN,
    name="caltech101-modern",
    batch_size=64,
    lr=0.05,
    ema=0.99,  # of 46 steps an epoch; one of a thousand steps is still in the past when the run ends
    **CALTECH101,
)
CALTECH101_TRANSFER = replace(
    CALTECH256_TRANSFER,
    name="caltech101-transfer",
    model="efficientnet-lite0",  # its weights come in a package
    pretrained_lr=0.3,
    precision="float32",  # bfloat16 is slower on a processor that has no instructions for it
    **CALTECH101,
)

# For two processor cores: the same at a smaller size, as their names say.
CALTECH101_REPORT_64 = replace(CALTECH101_REPORT, name="caltech101-report-64", image_size=64)
CALTECH101_MODERN_64 = replace(
    CALTECH101_MODERN, name="caltech101-modern-64", image_size=64, first_size=48, precision="float32"
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        CIFAR10_REPORT,
        CIFAR10_REPORT_50,
        CIFAR10_FAST,
        CIFAR10_BEST,
        CALTECH256_REPORT,
        CALTECH256_MODERN,
        CALTECH256_TRANSFER,
        CALTECH101_REPORT,
        CALTECH101_REPORT_64,
        CALTECH101_MODERN,
        CALTECH101_MODERN_64,
        CALTECH101_TRANSFER,
    )
}

# What others say that such a run gives: test accuracy, on Caltech as the mean over the classes where they say so.
REPORTED = {
    "cifar10-report": "71.5 %; 65 to 75 % (the internship report, in its text and in a table)",
    "cifar10-report-50": "71.5 %; 65 to 75 % (the internship report, in its text and in a table)",
    "cifar10-fast": "94.0 % (Jordan 2024, 8 epochs, mean of 200 runs)",
    "cifar10-best": "96.0 % (Jordan 2024, another network, in 27 s of one A100)",
    "caltech256-report": "44.48 % (the Caltech-256 report, of its validation pictures)",
    "caltech256-modern": "38.8 % (Zeiler and Fergus 2014, from scratch, 60 training pictures a class)",
    "caltech256-transfer": "74.2 % (Zeiler and Fergus 2014, pretrained, 60 training pictures a class)",
    "caltech101-modern": "46.5 % (Zeiler and Fergus 2014, from scratch, 30 training pictures a class)",
    "caltech101-transfer": "86.5 % (Zeiler and Fergus 2014, pretrained, 30 training pictures a class)",
}
