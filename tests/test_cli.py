"""The command line, through the real executable."""

import json
import subprocess
import sys

import pytest

from gradcam_lib import cli
from gradcam_lib.training import Run


def run(*arguments):
    command = [sys.executable, "-m", "gradcam_lib", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_names_every_command_and_option():
    told = run("train", "--help").stdout
    for option in ("--seed", "--out", "--device", "--compile", "--deterministic", "--tensorboard"):
        assert option in told


def test_a_recipe_that_does_not_exist_is_not_understood():
    done = run("train", "cifar11")
    assert done.returncode == 2 and "cifar10-report" in done.stderr and "Traceback" not in done.stderr


def test_a_checkpoint_of_another_recipe_is_one_sentence_and_no_traceback(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"no checkpoint")
    done = run("train", "cifar10-report", "--out", str(tmp_path), "--device", "cpu")
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

    monkeypatch.setattr(cli, "train", noted)
    assert cli.main(["train", "cifar10-fast", *arguments]) == 0
    assert asked["out"].name == folder
    assert asked["recipe"].seed == (2 if "2" in arguments else 0)
    assert json.loads(capsys.readouterr().out) == {"test_accuracy": 0.5}
