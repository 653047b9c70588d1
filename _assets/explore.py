"""What the page Explore needs beside its scripts: two networks that explain themselves, their runtime, and samples.

The networks are exported from the book's weights when the book is built. What takes long is kept in data/cache/explore.
"""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from PIL import Image
from skimage import data

import gradcam_lib as gc
from gradcam_lib import export
from gradcam_lib.datasets import data_cache
from gradcam_lib.export import export_explainer
from gradcam_lib.npm import npm_files

MODELS = {
    "efficientnet-lite0": (
        "EfficientNet-Lite0, trained on ImageNet",
        ["features.stage2", "features.stage3", "features.stage4", "features.stage5", "features.stage6", "features"],
    ),
    "cifar10-fast": (
        "This book’s CIFAR-10 network",
        ["features.group1", "features.group2", "features.group3.conv1", "features.group3"],
    ),
}
# ONNX Runtime Web for WebAssembly on one thread, without WebGPU: what a page loads of it.
RUNTIME, RUNTIME_BYTES = "onnxruntime-web@1.30.0", 33_106_585
RUNTIME_FILES = "ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
PHOTOGRAPHS = {"cat": "Cat", "coffee": "Cup of coffee", "rocket": "Rocket", "astronaut": "Astronaut"}
SMALL = {"cat": 0, "ship": 1, "frog": 4, "automobile": 6, "airplane": 10, "horse": 13}  # of the test pictures


def add_explore(folder: Path) -> None:
    """Fill the folder of the built book that the page's scripts read: manifest.json and what it names."""
    for part in ("ort", "samples"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    paths = [f"dist/{name}" for name in RUNTIME_FILES]
    runtime = npm_files(RUNTIME, RUNTIME_BYTES, paths, data_cache() / "explore" / RUNTIME)
    for name in RUNTIME_FILES:
        shutil.copyfile(runtime / name, folder / "ort" / name)
    manifest = {
        "runtime": {"bytes": sum((folder / "ort" / name).stat().st_size for name in RUNTIME_FILES)},
        "models": [described(name, folder) for name in MODELS],
        "samples": [*samples(folder)],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def described(name: str, folder: Path) -> dict:
    """Copy a model into the folder, and say what the page has to know of it."""
    title, layers = MODELS[name]
    model = gc.load_model(name)
    file = shutil.copyfile(exported(name, model, layers), folder / f"{name}.onnx")
    shapes = {layer.name: layer.shape for layer in gc.list_layers(model, model.prepare(data.coffee()))}
    return {
        "id": name, "title": title, "file": file.name, "bytes": file.stat().st_size,
        "resize": model.prepare.resize, "size": model.prepare.size, "interpolation": model.prepare.interpolation,
        "layers": [{"name": layer, "shape": shapes[layer]} for layer in layers], "classes": list(model.classes),
    }  # fmt: skip


def exported(name: str, model: torch.nn.Module, layers: list[str]) -> Path:
    """The ONNX file, made once for these weights, these layers and this way of exporting."""
    made_of = hashlib.sha256(f"{layers} {torch.__version__}".encode())
    made_of.update(Path(export.__file__).read_bytes())
    for weight in model.state_dict().values():
        made_of.update(weight.numpy().tobytes())
    file = data_cache() / "explore" / f"{name}-{made_of.hexdigest()[:16]}.onnx"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        print(f"exporting {name} for the page Explore", flush=True)
        export_explainer(model, file, layers=layers)
    return file


def samples(folder: Path):
    for name, title in PHOTOGRAPHS.items():
        picture = Image.fromarray(getattr(data, name)())
        picture.save(folder / "samples" / f"{name}.jpg", quality=90)
        yield {"file": f"samples/{name}.jpg", "title": title, "model": "efficientnet-lite0"}
    test = gc.load_dataset("cifar10").test
    for name, n in SMALL.items():
        Image.fromarray(test.data[n]).save(folder / "samples" / f"cifar-{name}.png")
        yield {"file": f"samples/cifar-{name}.png", "title": name.capitalize(), "model": "cifar10-fast"}
