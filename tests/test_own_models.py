"""Networks of the reader's own: from code, and from files that run nothing when they are opened."""

import io
import json
import pickle
import sys
import types
import warnings
import zipfile
from dataclasses import asdict

import pytest
import torch

import gradcam_lib as gc
from gradcam_lib.architectures import Preparation

pytestmark = pytest.mark.usefixtures("one_thread")
PREPARE = Preparation(resize=40, size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = gc.build_model("small-resnet", 10).eval()
    model.prepare = PREPARE
    return model


def exported(model, number=2):
    dynamic = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)} if number > 1 else {}
    return torch.export.export(model, (torch.zeros(number, 3, 32, 32),), **dynamic)


@pytest.fixture(scope="module", params=["net.pt2", "scripted.pt", "traced.pt"])
def file(request, model, tmp_path_factory):
    file = tmp_path_factory.mktemp("own") / request.param
    about = {"gradcam_lib.json": json.dumps({"classes": list("abcdefghij"), "prepare": asdict(PREPARE)})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if request.param == "net.pt2":
            torch.export.save(exported(model), file, extra_files=about)
        else:
            script = (
                torch.jit.script(model) if "script" in file.name else torch.jit.trace(model, torch.zeros(1, 3, 32, 32))
            )
            torch.jit.save(script, file, _extra_files=about)
    return file


@pytest.mark.parametrize("method", ["grad-cam", "eigengrad-cam", "ablation-cam", "score-cam", "guided-grad-cam"])
def test_a_network_from_a_file_has_the_maps_of_the_network(model, file, method):
    loaded = gc.load_model(file)
    assert loaded.prepare == PREPARE and loaded.classes == tuple("abcdefghij")
    x = torch.randn(3, 3, 32, 32)  # another number of pictures than it was written with
    ours, theirs = (gc.explain(m, x, method=method, targets=[1, 2, 3]) for m in (loaded, model))
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.maps, theirs.maps, rtol=1e-3, atol=1e-5)


def test_an_exported_network_keeps_the_names_of_its_layers(model, tmp_path):
    torch.export.save(exported(model), tmp_path / "net.pt2")
    with pytest.warns(UserWarning, match="32 pixels and normalised as for ImageNet"):
        loaded = gc.load_model(tmp_path / "net.pt2")
    x = torch.randn(1, 3, 32, 32)
    names = [layer.name for layer in gc.list_layers(loaded, x)]
    assert set(names) <= {name for name, _ in model.named_modules()} and len(names) > 10
    assert names[-1] == gc.list_layers(model, x)[-1].name


class Trap:
    """What runs a function when it is unpickled."""

    sprung = False

    def __reduce__(self):
        return spring, ()


def spring():
    Trap.sprung = True


def pickled(folder):
    torch.save(Trap(), folder / "whole.pt")
    torch.save(Trap(), folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "plain.pkl").write_bytes(pickle.dumps(Trap()))
    return ["whole.pt", "old.pth", "plain.pkl"]


def test_no_pickle_runs_code(tmp_path):
    for name in pickled(tmp_path):
        with pytest.raises(ValueError, match="could run any code .* export the network"):
            gc.load_model(tmp_path / name)
    assert not Trap.sprung


@pytest.mark.parametrize("part", ["sample_inputs", "opaque_obj", "weights", "aotinductor"])
def test_no_pickle_in_an_exported_network_runs_code(model, part, tmp_path):
    good, bad = tmp_path / "good.pt2", tmp_path / "bad.pt2"
    torch.export.save(exported(model), good)
    trap = io.BytesIO()
    torch.save(Trap(), trap)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if part == "sample_inputs" and "sample_inputs" in name:
                content = trap.getvalue()
            if part == "opaque_obj" and "constants_config" in name:
                meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
                content = json.dumps({"config": {"c": meta}}).encode()
                new.writestr("good/data/constants/opaque_obj_0", pickle.dumps(Trap()))
            if part == "weights" and "weights_config" in name:
                config = json.loads(content)
                next(iter(config["config"].values()))["use_pickle"] = True
                content = json.dumps(config).encode()
            if part == "weights" and name.endswith("weights/weight_0"):
                content = trap.getvalue()
            new.writestr(name, content)
        if part == "aotinductor":
            new.writestr("good/data/aotinductor/model/code.so", b"")
    with pytest.raises(ValueError, match="bad.pt2"):
        gc.load_model(bad)
    assert not Trap.sprung


def test_an_exported_network_for_several_pictures_alone_is_refused(model, tmp_path):
    torch.export.save(torch.export.export(model, (torch.zeros(4, 3, 32, 32),)), tmp_path / "net.pt2")
    with pytest.raises(ValueError, match="takes 4 pictures at once .*dynamic"):
        gc.load_model(tmp_path / "net.pt2")


def test_a_function_of_your_own_gives_the_network(model, tmp_path, monkeypatch):
    module = types.ModuleType("nets_of_mine")
    module.build, module.number, module.fails = lambda: model, lambda: 3, lambda: 1 / 0
    monkeypatch.setitem(sys.modules, "nets_of_mine", module)
    loaded = gc.load_model("nets_of_mine:build")
    assert loaded is model and loaded.prepare == PREPARE and loaded.name == "nets_of_mine:build"
    for name, message in {
        "nets_of_mine:number": "gives a int, not a network",
        "nets_of_mine:fails": "ZeroDivisionError: division by zero",
        "nets_of_mine:missing": "AttributeError",
        "no_such_module:build": "Run this in the folder that holds it",
    }.items():
        with pytest.raises(ValueError, match=message):
            gc.load_model(name)


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ("[1]", "its JSON is a list"),
        ('{"classes": [1]}', "its classes are not a list of names"),
        ('{"prepare": {"resize": 40}}', "missing 1 required positional argument"),
        ('{"prepare": {"resize": 40, "size": 100000}}', "no picture can be prepared as it says"),
        ("[" * 50_000, "recursion"),
        (" " * 2**21, "it is too large"),
    ],
    ids=range(6),
)
def test_an_extra_file_that_is_damaged_is_named(about, reason, tmp_path):
    with zipfile.ZipFile(file := tmp_path / "net.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/extra/gradcam_lib.json", about)
    with pytest.raises(ValueError, match=f"net.pt2 has an extra file gradcam_lib.json that is damaged: .*{reason}"):
        gc.load_model(file)


@pytest.mark.parametrize("name", ["missing.pt2", "text.pt", "folder.pt"])
def test_a_file_that_is_none_is_one_sentence(name, tmp_path):
    (tmp_path / "text.pt").write_text("no network")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(ValueError, match=name):
        gc.load_model(tmp_path / name)


def test_a_network_of_timm_is_shown_pictures_as_it_wants_them(model, monkeypatch):
    """As far as it can be tried without its weights: timm is replaced by what is asked of it."""
    timm = types.SimpleNamespace(
        is_model=lambda name: name == "mine_224",
        create_model=lambda name, pretrained: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)) if pretrained else None,
        data=types.SimpleNamespace(
            resolve_model_data_config=lambda model: {
                "input_size": (3, 224, 224), "crop_pct": 0.9, "interpolation": "bicubic",
                "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25),
            }
        ),
    )  # fmt: skip
    torch.nn.Sequential.num_classes = 4
    try:
        monkeypatch.setitem(sys.modules, "timm", timm)
        for name in ("mine_224", "timm/mine_224"):
            prepare = gc.load_model(name).prepare
            assert prepare == Preparation(249, 224, (0.5,) * 3, (0.25,) * 3, "bicubic")
    finally:
        del torch.nn.Sequential.num_classes
