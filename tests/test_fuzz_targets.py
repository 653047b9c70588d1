"""What the fuzzer reads (`make fuzz`): good files are read, changed ones give what they hold or a sentence."""

import json
import pickle
import random
import warnings

import pytest
from fuzz.formats import KINDS, changed
from fuzz.targets import TARGETS, Fault, Target, Trap, checked

SLOW = ("exported", "scripted", "own-file")  # to make their files takes PyTorch half a minute; see test_own_models.py


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in SLOW])
def test_good_files_are_read(name, tmp_path):
    said = [checked(name, file, tmp_path / "scratch") for file in TARGETS[name].files()]
    assert not said[0] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in SLOW])
def test_changed_files_give_what_they_hold_or_a_sentence(name, tmp_path):
    target, rng = TARGETS[name], random.Random(0)
    for data in target.files()[:2]:
        for _ in range(3):
            data = changed(data, rng, lambda part: part[: rng.randrange(len(part) + 1)], target.folder)
            checked(name, data, tmp_path / "scratch")


def test_files_taken_apart_and_put_together_hold_the_same():
    for name in ("packages", "checkpoint", "stored-arrays", "pictures-read"):
        for data in TARGETS[name].files():
            _, apart, together = next((kind for kind in KINDS if kind[0](data)), (None, bytes, bytes))
            assert apart(together(apart(data))) == apart(data)


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (lambda data, folder: {}["x"], "KeyError: 'x'"),
        (lambda data, folder: json.loads("{"), "JSONDecodeError"),  # a ValueError, and not in the package's words
        (lambda data, folder: warnings.warn("x", stacklevel=1), "UserWarning: x"),
        (lambda data, folder: (folder.parent / "x").write_bytes(b""), "open .*/x outside of its folder"),
        (lambda data, folder: pickle.loads(pickle.dumps(Trap())), "os.mkdir / outside of its folder"),
    ],
    ids=["another error", "a library's words", "a warning", "a file elsewhere", "code that is run"],
)
def test_faults_are_noticed(monkeypatch, tmp_path, read, fault):
    monkeypatch.setitem(TARGETS, "faulty", Target(read, list, (ValueError,), folder=False, lines=1))
    with pytest.raises(Fault, match=fault):
        checked("faulty", b"", tmp_path / "scratch")
