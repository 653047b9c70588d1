"""The ledger: what is measured, what is not, and that the README says the same."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from killing import in_child

import gradcam_lib as gc
from gradcam_lib import records
from gradcam_lib.records import ledger, other_measurements, read_record, records_folder, write_record


def write(folder, **metrics):
    run = {"metrics": metrics, "training_seconds": 90.0, "hardware": "a computer", "threads": 2, "date": "2026-01-02"}
    write_record(folder, run, pd.DataFrame({"epoch": [1]}))


def test_the_ledger_takes_the_mean_and_the_spread_over_the_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "records_folder", lambda: tmp_path)
    for name, accuracy in (("cifar10-fast", 0.94), ("cifar10-fast-seed1", 0.93), ("cifar10-fast-seed2", 0.95)):
        write(tmp_path / name, test_accuracy=accuracy)
    write(tmp_path / "cifar10-report", test_accuracy=0.75)
    write(tmp_path / "caltech101-transfer", test_accuracy=0.95, test_mean_class_accuracy=0.9)
    write_record(tmp_path / "peers", {"hardware": "h", "date": "2026-01-01", "command": "python x.py"}, pd.DataFrame())
    found = ledger().set_index("recipe")
    assert list(found.index) == list(gc.RECIPES)
    fast = found.loc["cifar10-fast"]
    assert (fast["measured"], fast["spread"]) == (pytest.approx(0.94), pytest.approx(0.01))
    assert (fast["seeds"], fast["minutes"], fast["hardware"]) == (3, 1.5, "a computer, 2 threads")
    assert found.loc["cifar10-report", "measured"] == 0.75 and np.isnan(found.loc["cifar10-report", "spread"])
    assert found.loc["cifar10-report-50", "seeds"] == 0  # another recipe, whose name only begins alike
    assert np.isnan(found.loc["cifar10-report-50", "measured"])
    assert found.loc["caltech101-transfer", "measured"] == 0.9  # the mean over the classes
    assert other_measurements().to_dict("records") == [
        {"record": "peers", "hardware": "h", "date": "2026-01-01", "command": "python x.py"}
    ]


def test_the_readme_tells_what_the_records_say():
    readme = (records_folder().parents[1] / "README.md").read_text()
    for row in ledger().itertuples():
        (line,) = (line for line in readme.splitlines() if line.startswith(f"| `{row.recipe}` |"))
        measured = line.split("|")[2]
        if not row.seeds:
            assert measured.strip() == "not measured"
        else:
            assert f" {100 * row.measured:.1f} %" in measured
            assert (f"{row.seeds} seeds" in measured) == (row.seeds > 1)
        assert row.reported.split(" (")[0] in line and f"`{row.command}`" in line


def test_what_is_reported_is_of_recipes_that_exist():
    assert set(gc.recipes.REPORTED) <= set(gc.RECIPES)


def test_every_record_says_what_where_when_and_how():
    for file in records_folder().glob("*/run.json"):
        run = json.loads(file.read_text())
        assert {"command", "date", "hardware", "versions"} <= set(run), file
        assert any(len(pd.read_csv(table)) for table in file.parent.glob("*.csv")), file


@pytest.fixture
def machine(monkeypatch):
    """A function that gives this machine other accelerators: (cuda, mps), each there or not."""

    def with_(cuda, mps):
        gpu = SimpleNamespace(name="Tesla T4", total_memory=15_828_320_256)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * 2**30)

    return with_


def test_an_accelerator_is_named_with_its_memory(machine):
    machine(cuda=True, mps=False)
    assert gc.accelerator_found() == "Accelerator found: Tesla T4, with 15 GiB of memory."
    machine(cuda=False, mps=True)
    assert gc.accelerator_found() == "Accelerator found: this Mac's GPU, with 12 GiB of memory."


def test_without_an_accelerator_a_measured_time_says_what_is_slow(machine, tmp_path, monkeypatch):
    machine(cuda=False, mps=False)
    assert "NVIDIA" not in gc.read_record("cifar10-fast").run["hardware"]  # its time is called one without a GPU
    monkeypatch.setattr(records, "records_folder", lambda: tmp_path)
    run = {"training_seconds": 3000.0, "hardware": "a computer", "threads": 2}
    write_record(tmp_path / "cifar10-fast", run, pd.DataFrame({"epoch": [1]}))
    said = gc.accelerator_found()
    assert said.startswith("No GPU was found.") and "cifar10-fast took 50 min on a computer, 2 threads." in said


def test_a_damaged_record_is_named_by_the_ledger(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "records_folder", lambda: tmp_path)
    write(tmp_path / "cifar10-fast")  # without its test accuracy
    with pytest.raises(ValueError, match="cifar10-fast is damaged .it does not say its 'test_accuracy'"):
        ledger()
    (tmp_path / "cifar10-fast" / "run.json").write_text("[1]")
    for table in (ledger, other_measurements):
        with pytest.raises(ValueError, match="cifar10-fast is damaged .its JSON is a list"):
            table()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", b""),
        ("run.json", b"[1]"),
        ("run.json", b"[" * 50_000),
        ("history.csv", b""),
        ("test_logits.npy", b""),
        ("test_logits.npy", b"PK\3\4"),
    ],
    ids=["empty", "list", "deep", "no table", "no array", "archive"],
)
def test_a_damaged_record_is_named(tmp_path, file, content):
    write_record(tmp_path, {"recipe": "mine"}, pd.DataFrame({"epoch": [1]}), np.zeros((2, 2), np.float16))
    assert read_record(tmp_path).run == {"recipe": "mine"}
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"record in {tmp_path} is damaged \(.*\). Delete it, and measure again"):
        read_record(tmp_path)


def test_a_full_disk_leaves_the_record_that_was_there(tmp_path, full_disk):
    write_record(tmp_path, {"recipe": "mine"}, pd.DataFrame({"epoch": [1]}))
    with full_disk(1_000), pytest.raises(OSError, match=r"history.csv could not be written \(File too large\)"):
        write_record(tmp_path, {"recipe": "another"}, pd.DataFrame({"epoch": range(5000)}))
    assert read_record(tmp_path).run == {"recipe": "mine"} and len(read_record(tmp_path).history) == 1
    assert sorted(f.name for f in tmp_path.iterdir()) == ["history.csv", "run.json"]


def test_tensors_that_a_killed_run_was_writing_are_cleared_away_by_the_next(tmp_path, monkeypatch):
    """As safetensors does: a temporary file of its own, beside the one that it is asked for."""
    file, tensors = tmp_path / "weights.safetensors", {"w": torch.ones(3)}

    def dies(tensors, place, metadata):
        (place.parent / ".tmpAbCdEf").write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(records, "save_file", dies)
        assert in_child(records.write_tensors, file, tensors, {}) == -signal.SIGKILL
    assert not file.exists()
    records.write_tensors(file, tensors, {"b": "2", "a": "1"})
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    content = file.read_bytes()
    records.write_tensors(file, tensors, {"a": "1", "b": "2"})
    assert file.read_bytes() == content
