"""The page "Coming from another library" is true: its blocks run, and where they make the same map, it is the same."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate

PAGE = (Path(__file__).resolve().parents[1] / "chapters" / "coming-from.md").read_text()
JOBS = dict(re.findall(r"^## (.+?)\n(.+?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r"(?:\*\*(\S+?)\*\*[^\n]*\n)?```python\n(.+?)```", re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the page says that its blocks assume, and what one block leaves for the next."""
    for library in ("captum", "pytorch_grad_cam", "torchcam"):
        pytest.importorskip(library)
    import torchvision

    import gradcam_lib as gc

    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    vit = torchvision.models.vit_b_16()
    torch.nn.init.normal_(vit.heads.head.weight, std=0.1)
    images = torch.rand(2, 3, 224, 224)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=2)
    return {
        **{"gc": gc, "model": model, "vit": vit.eval(), "images": images, "classes": [281, 207], "loader": loader},
        "picture": images[0].permute(1, 2, 0).numpy(),
    }


def same_size(maps):
    """Any library's maps, (M, 224, 224), each from 0 to 1, as two of the peers have them."""
    maps = torch.as_tensor(maps).detach().flatten(0, -3)
    maps = interpolate(maps[:, None], (224, 224), mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


@pytest.mark.parametrize("job", JOBS)
def test_the_blocks_run_and_agree(names, job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers'
        if job != "Grad-CAM for one class of each image":  # a reader comes from there
            for _, code in BLOCK.findall(JOBS["Grad-CAM for one class of each image"]):
                exec(code, names)
            names["result"] = names["gc"].explain(names["model"], names["images"], layer="layer4")
        for library, code in BLOCK.findall(JOBS[job]):
            names.pop("maps", None)
            exec(code, names)
            if "maps" in names and library:
                made[library] = same_size(names["maps"])
    for library, maps in made.items():
        # pytorch-grad-cam scales before it enlarges, with OpenCV, and after: by rounding that is not quite the same.
        assert (maps - made["gradcam_lib"]).abs().max() < (1e-3 if library == "pytorch-grad-cam" else 1e-4), library
