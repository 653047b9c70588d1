"""The command line: some of it through the real executable, the rest in this process."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import gradcam_lib as gc
from gradcam_lib import cli, datasets, pictures, training
from gradcam_lib.recipes import RECIPES
from gradcam_lib.training import Run

COMMANDS = "explain layers describe train evaluate audit results doctor data-get data-verify data-list".split()
SMALL = ["--model", "cifar10-report", "--device", "cpu"]


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What a command sets for its process is undone."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(sys, "path", [*sys.path])


def run(*arguments, input=None, **options):
    """The real executable."""
    command = [sys.executable, "-m", "gradcam_lib", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, input=input, timeout=300, **options)


def invoke(*arguments):
    """In this process: exit code, standard output and standard error."""
    return CliRunner().invoke(cli.app, [*map(str, arguments)], prog_name="gradcam-lib")


def picture(file, seed=0, side=32):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(file)
    return file


# --- help ---


def test_help_and_completion_are_there_without_pytorch():
    code = "import sys; from gradcam_lib.cli import main; main(['explain', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Example: gradcam-lib explain" in done.stdout
    asked = {"_GRADCAM_LIB_COMPLETE": "complete_bash", "COMP_WORDS": "gradcam-lib train cifar10-r", "COMP_CWORD": "2"}
    done = run(env=os.environ | asked, text=True)
    assert done.stdout.split() == [name for name in RECIPES if name.startswith("cifar10-r")]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_an_example_of_its_own(command):
    told = invoke(*command.split("-"), "--help")
    assert told.exit_code == 0
    assert f"Example: gradcam-lib {command.replace('-', ' ')}" in told.stdout


def test_help_names_every_option_of_train():
    told = invoke("train", "--help").stdout
    for option in ("--seed", "--out", "--device", "--compile", "--deterministic", "--tensorboard"):
        assert option in told


def test_the_names_that_help_shows_are_those_of_the_package():
    assert cli.METHODS == list(gc.METHODS) and cli.DATASETS == list(datasets.DATASETS) and cli.GRIDS == pictures.GRIDS
    known = {*RECIPES, "efficientnet-lite0", *gc.architectures.torchvision_networks()}
    assert set(cli.MODELS) <= known


# --- explain ---


def test_a_folder_is_explained_and_what_cannot_be_read_is_said(tmp_path):
    for name in ("a.png", "deep/b c.png", "deep/ü\n[1].png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in/notes.txt").write_text("no picture")
    done = run("explain", "in", *SMALL, "-o", "out", "--raw", "--json", cwd=tmp_path)
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert (found["written"], found["existing"], found["skipped"]) == (3, 0, 1)
    assert b"in/notes.txt" in done.stderr and b"text" in done.stderr and b"Traceback" not in done.stderr
    written = {p["image"]: p for p in found["pictures"] if p["state"] == "written"}
    assert set(written) == {"in/a.png", "in/deep/b c.png", "in/deep/ü\n[1].png"}
    model = gc.load_model("cifar10-report")
    for image, each in written.items():
        result = gc.explain(model, model.prepare(gc.load_image(tmp_path / image)))
        np.testing.assert_allclose(np.load(tmp_path / each["map"]), result.maps[0], atol=1e-4)
        assert each["found"]["class"] == model.classes[result.targets[0]]
        assert (tmp_path / each["overlay"]).is_file()


def test_one_picture_from_standard_input(tmp_path):
    content = picture(tmp_path / "x.png").read_bytes()
    done = run("explain", "-", *SMALL, "-o", tmp_path / "out.png", "--class", "ship", "--layer=-2", input=content)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"-: ship (")
    with Image.open(tmp_path / "out.png") as image:
        said = json.loads(image.info["gradcam_lib"])["found"]
    assert said["layer"] == "features.conv3" and said["target"] == 8


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal on Windows")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_run_that_was_stopped_goes_on(how, tmp_path):
    for n in range(400):
        picture(tmp_path / f"in/{n:03}.png", n)
    arguments = ["explain", "in", *SMALL, "-o", "out", "--method", "score-cam"]
    started = subprocess.Popen(
        [sys.executable, "-m", "gradcam_lib", *arguments],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while len(list(tmp_path.glob("out/*.png"))) < 3 and started.poll() is None:
        time.sleep(0.01)
    started.send_signal(getattr(signal, how))
    said = started.communicate(timeout=60)[1]
    assert started.returncode == (130 if how == "SIGINT" else -signal.SIGKILL)
    assert how == "SIGKILL" or b"goes on from here" in said
    there = {file: file.stat().st_mtime_ns for file in tmp_path.glob("out/*.png")}
    assert 3 <= len(there) < 400
    for file in there:
        with Image.open(file) as image:
            image.load()  # whole
    for n in range(8, 400):  # the rest would take long
        (tmp_path / f"in/{n:03}.png").unlink()
    again = run(*arguments, "--json", cwd=tmp_path)
    found = json.loads(again.stdout)
    assert again.returncode == 0 and found["existing"] == len([f for f in there if f.name < "008"])
    assert found["written"] == 8 - found["existing"]
    assert all(file.stat().st_mtime_ns == before for file, before in there.items())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["in/x.png", "--method", "grad-cams", "-o", "out"], 2, "grad-cam"),
        (["in/x.png", "--method", "grad-cam", "--method", "layer-cam", "-o", "out"], 2, "--grid"),
        (["in/x.png", "-", "-o", "out"], 2, "comes alone"),
        (["in/x.png", "--raw", "--grid", "methods", "-o", "out"], 2, "--raw"),
        (["in/x.png", "-o", "in/x.png"], 1, "is one of the pictures"),
        (["in/x.png", "-o", "out.jpg"], 1, "out.png"),
        (["in", "-o", "in"], 1, "name another folder"),
        (["missing.png", "-o", "out"], 1, "there is no such file"),
        (["in/x.png", "--class", "shipp", "-o", "out"], 1, "Did you mean: ship"),
        (["in/x.png", "--layer", "features.relu", "-o", "out"], 1, "Did you mean: features.relu"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_an_exit_code(arguments, code, message, tmp_path, monkeypatch):
    before = picture(tmp_path / "in/x.png").read_bytes()
    monkeypatch.chdir(tmp_path)
    done = invoke("explain", *arguments, *SMALL)
    assert done.exit_code == code and message in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "in/x.png").read_bytes() == before and not list(tmp_path.glob("out*"))


def test_an_error_that_nobody_foresaw_is_one_sentence_unless_it_is_asked_for(monkeypatch):
    def fails():
        raise KeyError("x")

    monkeypatch.setattr("gradcam_lib.records.ledger", fails)
    done = invoke("results")
    assert done.exit_code == 1 and done.stderr == "gradcam-lib: KeyError: 'x' (gradcam-lib --debug … shows where)\n"
    assert isinstance(invoke("--debug", "results").exception, KeyError)


def test_a_network_of_your_own_may_print_and_the_json_stays_json(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import gradcam_lib as gc\nprint('imported')\n"
        "def net():\n    print('built')\n    return gc.load_model('cifar10-report')\n"
    )
    done = run("layers", "-m", "mine:net", "--json", cwd=tmp_path, text=True)
    assert done.returncode == 0 and "imported" in done.stderr and "built" in done.stderr
    rows = json.loads(done.stdout)["layers"]
    expected = {"layer": "features.relu3", "maps": 128, "height": 8, "width": 8, "receptive field": 18}
    assert rows[-1] == expected


# --- data, records ---


def test_describe_says_what_the_package_says(tmp_path):
    for n in range(3):
        picture(tmp_path / f"cats/{n}.png", n % 2)
    found = json.loads(invoke("describe", tmp_path, "--json").stdout)
    described = gc.describe(tmp_path)
    assert found["pictures"] == 3 and found["classes"] == {"cats": {"pictures": 3}}
    assert [p["kind"] for p in found["problems"]] == described.problems["kind"].tolist()
    assert invoke("describe", tmp_path).stdout == f"{described}\n"
    assert invoke("describe", tmp_path / "missing").exit_code == 1


def test_a_data_set_is_fetched_verified_and_found_damaged(cache, monkeypatch):
    monkeypatch.setitem(datasets.DATASETS, "shapes", replace(datasets.DATASETS["shapes"], images=500, test_images=100))
    got = json.loads(invoke("data", "get", "shapes", "--json").stdout)
    assert [got[0][part] for part in ("train", "validation", "test")] == [340, 60, 100]
    (verified,) = json.loads(invoke("data", "verify", "shapes", "--json").stdout)
    assert verified["intact"] and verified["sha256"] == got[0]["sha256"]
    pixels = np.load(cache / "shapes/images.npy")
    pixels[77, 3, 4] ^= 1
    np.save(cache / "shapes/images.npy", pixels)
    done = invoke("data", "verify", "shapes")
    assert done.exit_code == 1 and "damaged" in done.stdout
    assert invoke("data", "verify", "shapes64").exit_code == 1  # not stored
    at_hand = {row["name"]: row["at hand"] for row in json.loads(invoke("data", "list", "--json").stdout)}
    assert at_hand["shapes"] and not at_hand["cifar10"]


def test_evaluate_gives_the_figures_of_the_record():
    found = json.loads(invoke("evaluate", "cifar10-report", "--json").stdout)
    figures = {row["figure"]: row for row in found["figures"]}
    record = gc.read_record("cifar10-report")
    assert figures["accuracy"]["value"] == pytest.approx(record.run["metrics"]["test_accuracy"], abs=1e-9)
    assert figures["accuracy"]["low"] < figures["accuracy"]["value"] < figures["accuracy"]["high"]
    assert {found["confused"][0]["first"], found["confused"][0]["second"]} == {"cat", "dog"}


def test_a_run_in_a_folder_of_your_own_is_evaluated_and_what_is_none_is_said(tmp_path):
    record = gc.read_record("cifar10-report")
    (tmp_path / "run.json").write_text(json.dumps(record.run))
    record.history.to_csv(tmp_path / "history.csv")
    done = invoke("evaluate", tmp_path)
    assert done.exit_code == 1 and "no predictions" in done.stderr
    np.save(tmp_path / "test_logits.npy", record.test_logits)
    assert "accuracy" in invoke("evaluate", tmp_path).stdout
    assert "has not been measured" in invoke("evaluate", "cifar10-bets").stderr


def test_results_are_the_ledger():
    rows = json.loads(invoke("results", "--json").stdout)
    ledger = gc.records.ledger()
    assert [row["recipe"] for row in rows] == list(ledger["recipe"])
    for row, measured in zip(rows, ledger["measured"], strict=True):
        assert row["measured"] == (None if pd.isna(measured) else measured)  # JSON has no NaN
    text = invoke("results").stdout
    assert all(row["recipe"] in text for row in rows)


def test_audit_writes_its_report_of_a_data_set_or_a_folder(tmp_path):
    options = ["--images", "12", "--device", "cpu", "--json"]
    found = json.loads(invoke("audit", "cifar10-report", "cifar10", "-o", tmp_path / "a.html", *options).stdout)
    expected = gc.audit(gc.load_model("cifar10-report"), gc.load_dataset("cifar10").test, images=12).verdicts
    assert {row["test"]: row["verdict"] for row in found["verdicts"]} == expected["verdict"].to_dict()
    assert "<h1>Audit of cifar10-report</h1>" in (tmp_path / "a.html").read_text()
    for n in range(12):
        picture(tmp_path / "in" / ("cat", "dog")[n % 2] / f"{n}.png", n)
    found = json.loads(invoke("audit", "cifar10-report", tmp_path / "in", *options).stdout)
    assert {row["label"] for row in found["suspects"]} <= {"cat", "dog"}
    assert "ImageFolder of 12 images" in found["about"]["data set"]
    assert invoke("audit", "cifar10-report", "nothing").exit_code == 2


def test_the_doctor_says_what_is_missing_and_its_exit_code_whether_that_matters(monkeypatch):
    from gradcam_lib import doctor

    found = {row["what"]: row for row in json.loads(invoke("doctor", "--json").stdout)}
    assert found["Python"]["state"] == "good" and "torch" in found["packages"]["found"]
    assert found["cifar10"]["state"] == "good" or found["cifar10"]["mend"] == "gradcam-lib data get cifar10"

    def broken(name):
        raise OSError("libcudart.so: no such file")

    monkeypatch.setattr(doctor, "import_module", broken)
    done = invoke("doctor")
    assert done.exit_code == 1 and "libcudart" in done.stdout and "pip install" in done.stdout


# --- train ---


def test_a_recipe_that_does_not_exist_is_not_understood():
    done = run("train", "cifar11", text=True)
    assert done.returncode == 2 and "cifar10-report" in done.stderr and "Traceback" not in done.stderr


def test_a_checkpoint_of_another_recipe_is_one_sentence_and_no_traceback(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"no checkpoint")
    done = run("train", "cifar10-report", "--out", tmp_path, "--device", "cpu", text=True)
    assert done.returncode == 1
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("gradcam-lib: "))
    assert "Delete it to start afresh" in said and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "folder"), [([], "cifar10-fast"), (["--seed", "2"], "cifar10-fast-seed2"), (["--out", "x"], "x")]
)
def test_each_seed_has_a_record_of_its_own(arguments, folder, monkeypatch, capsys):
    asked = {}

    def noted(recipe, **options):
        asked.update(options, recipe=recipe)
        return Run(None, None, {"metrics": {"test_accuracy": 0.5}})

    monkeypatch.setattr(training, "train", noted)
    assert cli.main(["train", "cifar10-fast", *arguments]) == 0
    assert asked["out"].name == folder
    assert asked["recipe"].seed == (2 if "2" in arguments else 0)
    assert json.loads(capsys.readouterr().out) == {"test_accuracy": 0.5}


def test_of_many_workers_one_prints(monkeypatch, capsys):
    monkeypatch.setattr(training, "train", lambda recipe, **_: Run(None, None, None))
    assert cli.main(["train", "cifar10-fast"]) == 0
    assert capsys.readouterr().out == ""
