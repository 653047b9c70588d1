"""A whole data set in files: the same bytes however many processes made them and however often they were killed."""

import functools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from killing import fork, in_child
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from gradcam_lib import explain, streaming
from gradcam_lib.streaming import explain_dataset, read_maps


class Pictures(Dataset):
    """(image (3, 16, 16), label), each drawn from its own index. Some cannot be read; each takes `seconds` to read."""

    def __init__(self, count=100, bad=(), seconds=0.0, size=16, seed=0):
        self.count, self.bad, self.seconds, self.size, self.seed = count, bad, seconds, size, seed

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i >= self.count:
            raise IndexError(i)
        if i in self.bad:
            raise OSError(f"cannot identify\nimage file {object()!r}")
        time.sleep(self.seconds)
        generator = torch.Generator().manual_seed(1000 * self.seed + i)
        return torch.rand(3, self.size, self.size, generator=generator), i % 4


def make_net(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    net.classes = ("airplane", "bird", "cat", "dog")
    return net


@pytest.fixture
def net():
    return make_net()


@pytest.fixture(autouse=True)
def one_thread():
    """Bits are compared with those of processes that have one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stream(net, data, out, batch_size=16, shard_size=40, num_workers=0, **options):
    loader = DataLoader(data, batch_size, num_workers=num_workers)
    return explain_dataset(net, loader, out, shard_size=shard_size, progress=False, **options)


def files(out):
    """The content of every file in the folder, hidden ones too."""
    return {file.name: file.read_bytes() for file in Path(out).iterdir()}


def explained(net, data, shard_size=40, batch_size=16, **options):
    """The same batches handed to `explain` itself: a batch ends where a part ends."""
    for start in range(0, len(data), shard_size):
        part = range(start, min(start + shard_size, len(data)))
        for k in range(0, len(part), batch_size):
            indices = part[k : k + batch_size]
            images = torch.stack([data[i][0] for i in indices])
            yield indices, explain(net, images, **{n: v(indices) if callable(v) else v for n, v in options.items()})


# --- what the files hold ---


def test_the_files_hold_what_explain_gives(net, tmp_path):
    data = Pictures(100)
    done = stream(net, data, tmp_path)
    assert (done.folder, done.images, done.before, done.failed) == (tmp_path, 100, 0, {})
    assert sorted(files(tmp_path)) == ["part-000000.parquet", "part-000001.parquet", "part-000002.parquet"]
    table, maps = read_maps(tmp_path)
    assert table["index"].tolist() == list(range(100)) and (table["t"] == 0).all()
    assert table["label"].tolist() == [i % 4 for i in range(100)]
    assert maps.shape == (100, 8, 8) and maps.dtype == torch.float32
    for indices, result in explained(net, data):
        rows = table.iloc[list(indices)]
        assert torch.equal(maps[list(indices)], result.maps)
        assert rows["target"].tolist() == rows["predicted"].tolist() == result.targets.tolist()
        assert rows["target_name"].tolist() == [net.classes[c] for c in result.targets]
        assert np.array_equal(rows["score"], result.scores)
        assert np.array_equal(rows["largest"], result.maps.detach().amax((1, 2)))
        assert np.allclose(rows["probability"], result.logits.softmax(1).amax(1), rtol=1e-6)
    assert (table["map_height"] == 8).all() and (table["image_width"] == 16).all() and table["error"].isna().all()


def test_pandas_and_pyarrow_read_the_folder(net, tmp_path):
    stream(net, Pictures(100), tmp_path)
    _, maps = read_maps(tmp_path)
    frame = pd.read_parquet(tmp_path)
    assert np.array_equal(np.stack(frame["map"]).reshape(100, 8, 8), maps)
    arrow = pyarrow.dataset.dataset(tmp_path)
    assert arrow.schema.equals(streaming.SCHEMA)
    assert arrow.to_table(filter=pyarrow.dataset.field("label") == 3)["index"].to_pylist() == list(range(3, 100, 4))
    assert str(frame["index"].dtype) == "int64" and str(frame["score"].dtype) == "float32"


def test_a_file_tells_what_made_it(net, tmp_path):
    stream(net, Pictures(50), tmp_path, method="hires-cam", layer=net[4], targets="cat")
    about = streaming._parts(tmp_path)
    assert sorted(about) == [0, 1]
    run, part = about[1]
    assert (run["method"], run["layer"], run["targets"], run["count"]) == ("hires-cam", "4", "cat", 50)
    assert part == {"layer": "4", "failed": {}}
    stream(net, Pictures(50), tmp_path / "none")
    assert streaming._parts(tmp_path / "none")[0][1]["layer"] == "4"  # the layer that was found


def test_the_order_of_the_loader_does_not_count(net, tmp_path):
    data = Pictures(50)
    stream(net, data, tmp_path / "a")
    shuffled = DataLoader(data, 16, shuffle=True, drop_last=True, num_workers=1)
    explain_dataset(net, shuffled, tmp_path / "b", shard_size=40, progress=False)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_data_set_alone_will_do_and_its_items_may_have_other_forms(net, tmp_path):
    images = torch.stack([image for image, _ in Pictures(9)])
    forms = {
        "alone": images,
        "one": TensorDataset(images),
        "three": TensorDataset(images, torch.arange(9), torch.rand(9)),
        "dict": [{"image": image, "label": i} for i, image in enumerate(images)],
        "other names": [{"pixel_values": image, "labels": i} for i, image in enumerate(images)],
        "no class": TensorDataset(images, torch.rand(9)),
    }
    expected = explain(net, images).maps
    for name, data in forms.items():
        explain_dataset(net, data, tmp_path / name, progress=False)
        table, maps = read_maps(tmp_path / name)
        assert torch.equal(maps, expected)
        has_labels = name in ("three", "dict", "other names")
        assert table["label"].tolist() == list(range(9)) if has_labels else table["label"].isna().all()


@pytest.mark.parametrize("form", ["tensor", "list"])
def test_labels_lists_and_functions_as_targets(net, tmp_path, form):
    data = Pictures(50)
    stream(net, data, tmp_path / "labels", targets="label")
    table, maps = read_maps(tmp_path / "labels")
    assert table["target"].tolist() == table["label"].tolist()
    given = [i % 4 for i in range(50)]
    stream(net, data, tmp_path / "list", targets=torch.tensor(given) if form == "tensor" else given)
    assert torch.equal(read_maps(tmp_path / "list")[1], maps)
    stream(net, data, tmp_path / "function", targets=lambda logits: logits[:, 2])
    table, maps = read_maps(tmp_path / "function")
    assert table["target"].isna().all() and table["target_name"].isna().all()
    assert torch.equal(maps, torch.cat([r.maps for _, r in explained(net, data, targets=lambda indices: 2)]))


def test_several_classes_an_image_have_a_row_each(net, tmp_path):
    data, targets = Pictures(50), torch.randint(0, 4, (50, 3), generator=torch.Generator().manual_seed(0))
    stream(net, data, tmp_path, targets=targets)
    table, maps = read_maps(tmp_path)
    assert table["index"].tolist() == [i for i in range(50) for _ in range(3)]
    assert table["t"].tolist() == 50 * [0, 1, 2]
    assert table["target"].tolist() == targets.flatten().tolist()
    for indices, result in explained(net, data, targets=lambda indices: targets[list(indices)]):
        assert torch.equal(maps.reshape(50, 3, 8, 8)[list(indices)], result.maps)
        assert np.array_equal(table["score"].to_numpy().reshape(50, 3)[list(indices)], result.scores)
    assert (table.groupby("index")["predicted"].nunique() == 1).all()


def test_noise_is_the_same_in_every_run_and_the_callers_generator_is_left_alone(net, tmp_path):
    state = torch.get_rng_state()
    stream(net, Pictures(50), tmp_path, smooth=2)
    whole = files(tmp_path)
    (tmp_path / "part-000000.parquet").unlink()
    torch.rand(7)
    after = torch.get_rng_state()
    stream(net, Pictures(50), tmp_path, smooth=2)
    assert files(tmp_path) == whole
    assert torch.equal(torch.get_rng_state(), after) and not torch.equal(state, after)


def test_a_fast_copy_is_given_batches_of_one_size(net, tmp_path, monkeypatch):
    shapes = []

    @functools.wraps(explain)
    def spy(model, images, *, accelerate, **options):
        shapes.append(tuple(images.shape))
        return explain(model, images, **options)

    data = Pictures(50, bad=(20, 21))
    with pytest.warns(UserWarning, match="2 of 50"):
        stream(net, data, tmp_path / "plain", targets="label")
    monkeypatch.setattr(streaming, "explain", spy)
    with pytest.warns(UserWarning, match="2 of 50"):
        stream(net, data, tmp_path / "fast", targets="label", accelerate=True)
    assert set(shapes) == {(16, 3, 16, 16)}
    (plain, a), (fast, b) = read_maps(tmp_path / "plain"), read_maps(tmp_path / "fast")
    pd.testing.assert_frame_equal(plain, fast)
    assert torch.allclose(a, b, atol=1e-6, equal_nan=True)


def test_the_bar_starts_at_what_is_done(net, tmp_path, capsys):
    data = DataLoader(Pictures(80), 16)
    explain_dataset(net, data, tmp_path, shard_size=40)
    assert "explaining: 100%" in (err := capsys.readouterr().err) and "80/80" in err
    (tmp_path / "part-000001.parquet").unlink()
    done = explain_dataset(net, data, tmp_path, shard_size=40)
    assert (done.images, done.before) == (80, 40)
    assert capsys.readouterr().err.lstrip("\r").startswith("explaining:  50%")


class Counted(Pictures):
    """Counts, for all processes, how many of its images have been read."""

    def __init__(self, count):
        super().__init__(count)
        self.read = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __getitem__(self, i):
        item = super().__getitem__(i)
        self.read += 1
        return item


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_overlaps_the_computing(net, tmp_path, num_workers):
    """While each batch is computed, images of the next one are read: the computing waits here until some have been."""
    data, computed = Counted(96), []

    def waits(*_):
        computed.append(8)
        end = time.monotonic() + 30
        while data.read < min(sum(computed) + 1, 96):
            assert time.monotonic() < end, f"nothing was read while images up to {sum(computed)} were computed"
            time.sleep(0.001)

    net.register_forward_hook(waits)
    stream(net, data, tmp_path, batch_size=8, shard_size=96, num_workers=num_workers, layer="4")
    assert sum(computed) == 96


# --- images that cannot be read ---


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_leaves_its_error_and_ends_nothing(net, tmp_path, num_workers):
    bad = (5, 17, 80, 81, 82, 83)  # the last four are the whole of a batch
    why = "OSError: cannot identify image file <object object>"
    sentence = r"6 of 84 images could not be read, the first of them number 5: OSError: cannot identify image file"
    with pytest.warns(UserWarning, match=sentence):
        done = stream(net, Pictures(84, bad), tmp_path, num_workers=num_workers)
    assert done.failed == dict.fromkeys(bad, why)
    table, maps = read_maps(tmp_path)
    assert table["index"].tolist() == list(range(84))
    failed = table[table["error"].notna()]
    assert failed["index"].tolist() == list(bad) and set(failed["error"]) == {why}
    assert failed.drop(columns=["index", "t", "error"]).isna().all(axis=None)
    good = [i for i in range(84) if i not in bad]
    expected = explain(net, torch.stack([Pictures()[i][0] for i in good])).maps
    assert torch.allclose(maps[good], expected, atol=1e-6) and maps[list(bad)].isnan().all()
    assert streaming._parts(tmp_path)[2][1]["layer"] is None
    whole = files(tmp_path)
    with pytest.warns(UserWarning, match=sentence):  # those of an earlier run are told too
        assert stream(net, Pictures(84, bad), tmp_path).failed == done.failed
    assert files(tmp_path) == whole


def test_a_repaired_image_is_read_once_its_part_is_deleted(net, tmp_path):
    with pytest.warns(UserWarning, match="1 of 84"):
        stream(net, Pictures(84, bad=(0,)), tmp_path / "repaired")
    (tmp_path / "repaired" / "part-000000.parquet").unlink()
    assert stream(net, Pictures(84), tmp_path / "repaired").failed == {}
    stream(net, Pictures(84), tmp_path / "good")
    pd.testing.assert_frame_equal(*(read_maps(tmp_path / name)[0] for name in ("repaired", "good")))


def test_where_nothing_can_be_read_nothing_is_marked_as_done(net, tmp_path):
    """A disk that went away must not leave a million rows of errors."""
    data = Pictures(200, bad=range(16, 200))
    with pytest.raises(RuntimeError, match=r"112 images in a row cannot be read, up to number 127: OSError.*run this"):
        stream(net, data, tmp_path, shard_size=200)
    assert files(tmp_path) == {}


# --- killed, and several processes ---

SLOW = Pictures(400, seconds=0.002)


def slow_stream(out, num_workers=0):
    torch.set_num_threads(1)  # a forked child may not use its parent's OpenMP threads
    stream(make_net(), SLOW, out, shard_size=20, num_workers=num_workers)


def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(tmp_path):
    began = time.monotonic()
    assert in_child(slow_stream, tmp_path / "whole") == 0
    whole, seconds = files(tmp_path / "whole"), time.monotonic() - began
    assert len(whole) == 20
    rng, broken = np.random.default_rng(0), tmp_path / "broken"
    broken.mkdir()
    seen, kills = {}, 0
    while kills < 12:
        kills += (
            in_child(slow_stream, broken, kills % 2, kill_after=rng.uniform(0.05, 0.25) * seconds) == -signal.SIGKILL
        )
        parts = {f.name: f.stat().st_mtime_ns for f in broken.glob("part-*.parquet")}
        assert seen.items() <= parts.items()  # what was there is neither lost nor made twice
        seen = parts
        assert all(file.read_bytes() == whole[file.name] for file in broken.glob("part-*.parquet"))
        if len(parts) == 20:
            break
    assert kills >= 4 and seen, f"{kills} kills, {len(seen)} parts"
    assert in_child(slow_stream, broken) == 0
    assert files(broken) == whole  # and nothing else lies there
    assert all((broken / name).stat().st_mtime_ns == at for name, at in seen.items())


def dies(out, moment, part):
    """Killed at a moment of writing its part of that number."""
    torch.set_num_threads(1)
    left = [part]

    def count_down_to_death(*_):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def half_written(table, opened, original=pq.write_table, **options):
        if left[0] == 0:
            opened.write(b"PAR1 and some more")
            opened.flush()
        count_down_to_death()
        original(table, opened, **options)

    def replaced(a, b, original=os.replace):
        original(a, b)
        count_down_to_death()

    if moment == "half written":
        pq.write_table = half_written
    elif moment == "written":
        os.fsync = count_down_to_death
    else:
        os.replace = replaced
    stream(make_net(), Pictures(100), out)


@pytest.mark.parametrize("moment", ["half written", "written", "replaced"])
def test_killed_while_a_file_is_written(tmp_path, moment):
    stream(make_net(), Pictures(100), tmp_path / "whole")
    out = tmp_path / "broken"
    assert in_child(dies, out, moment, 1) == -signal.SIGKILL
    assert len(list(out.glob("part-*"))) == (2 if moment == "replaced" else 1)
    assert len(list(out.glob(".part-*.partial"))) == (0 if moment == "replaced" else 1)
    assert pd.read_parquet(out)["index"].tolist() == list(range(80 if moment == "replaced" else 40))
    done = stream(make_net(), Pictures(100), out)
    assert done.before == (80 if moment == "replaced" else 40)
    assert files(out) == files(tmp_path / "whole")


def test_a_damaged_file_is_made_again(net, tmp_path):
    stream(net, Pictures(100), tmp_path)
    whole = files(tmp_path)
    (tmp_path / "part-000001.parquet").write_bytes(whole["part-000001.parquet"][:1000])
    (tmp_path / "part-000002.parquet").write_bytes(b"")
    assert stream(net, Pictures(100), tmp_path).before == 40
    assert files(tmp_path) == whole


def test_damage_in_the_middle_of_a_file_is_said(net, tmp_path):
    stream(net, Pictures(60), tmp_path)
    file = tmp_path / "part-000001.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:4] + bytes(400) + whole[404:])
    with pytest.raises(ValueError, match=r"part-000001.parquet is damaged \(.*\). Delete it, and explain its im"):
        read_maps(tmp_path)
    file.write_bytes(whole[:-100])  # as if it was not there
    table, _ = read_maps(tmp_path)
    assert len(table) == 40


@pytest.mark.parametrize("harm", ["map_height", "columns", "failed", "run"])
def test_a_file_that_says_what_does_not_fit_is_refused(net, tmp_path, harm):
    stream(net, Pictures(20), tmp_path)
    file = tmp_path / "part-000000.parquet"
    table = pq.read_table(file)
    about = dict(table.schema.metadata)
    if harm == "map_height":
        table = table.set_column(table.schema.get_field_index(harm), harm, pa.array([3] * 20, pa.int32()))
    elif harm == "columns":
        table = table.drop_columns(["map"])
    elif harm == "failed":
        about[b"gradcam_lib.part"] = b'{"failed": 3}'
    else:
        about[b"gradcam_lib"] = b"[1]"
    pq.write_table(table.replace_schema_metadata(about), file)
    with pytest.raises(ValueError, match="part-000000.parquet is (damaged|not from explain_dataset)"):
        read_maps(tmp_path)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_the_shares_of_several_processes_make_the_files_of_one(net, tmp_path, monkeypatch, world):
    stream(net, Pictures(100), tmp_path / "one", shard_size=20)
    monkeypatch.setenv("WORLD_SIZE", str(world))
    shares = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(stream(net, Pictures(100), tmp_path / "many", shard_size=20).images)
    assert sum(shares) == 100 and max(shares) <= 20 * -(-5 // world)
    assert files(tmp_path / "many") == files(tmp_path / "one")


def test_two_processes_that_do_the_same_share_by_mistake_spoil_nothing(net, tmp_path, monkeypatch):
    """The second one runs from its beginning to its end while the first one writes its second part."""
    stream(net, Pictures(100), tmp_path / "once")
    calls = iter(range(100))

    def meanwhile(descriptor):
        if next(calls) == 1:
            assert stream(net, Pictures(100), tmp_path / "twice").before == 40

    monkeypatch.setattr(os, "fsync", meanwhile)
    stream(net, Pictures(100), tmp_path / "twice")
    assert files(tmp_path / "twice") == files(tmp_path / "once")


def test_torchrun_with_two_processes_makes_the_files_of_one(net, tmp_path):
    script, folders = tmp_path / "script.py", [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script.write_text(f"""
import sys
sys.path[:0] = {folders}
import torch
from test_streaming import Pictures, make_net, stream
torch.set_num_threads(1)
done = stream(make_net(), Pictures(150), sys.argv[1], shard_size=20)
print(f"share of {{done.images}}", flush=True)
""")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        script,
        tmp_path / "two",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(re.findall(r"share of (\d+)", done.stdout)) == ["70", "80"]
    assert sorted(pd.read_parquet(tmp_path / "two")["index"]) == list(range(150))
    stream(net, Pictures(150), tmp_path / "one", shard_size=20)
    assert files(tmp_path / "two") == files(tmp_path / "one")


def watch_memory(out, pipe):
    torch.set_num_threads(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for count in (200, 2000):
        stream(net, Pictures(count, size=128), out / str(count), shard_size=64, targets=1)
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def test_memory_does_not_grow_with_the_data_set(tmp_path):
    """Ten times the images: their maps alone take 118 MB more, the images 354 MB. The peak may grow by 40 MB."""
    here, there = fork.Pipe()
    assert in_child(watch_memory, tmp_path, there) == 0
    few, many = here.recv(), here.recv()
    shutil.rmtree(tmp_path / "2000")
    assert many - few < 40, f"{few:.0f} MB for 200 images, {many:.0f} MB for 2,000"


# --- what is refused ---


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"net": make_net(1)}, "weights '[0-9a-f]{16}' and not '[0-9a-f]{16}'"),
        ({"method": "hires-cam"}, "method 'grad-cam' and not 'hires-cam'"),
        ({"layer": "1"}, "layer None and not '1'"),
        ({"targets": "label"}, "targets None and not 'label'"),
        ({"counterfactual": True}, "counterfactual False and not True"),
        ({"shard_size": 50}, "shard_size 40 and not 50"),
        ({"data": Pictures(101)}, "count 100 and not 101"),
        ({"data": Pictures(100, seed=1)}, "first_image .*, last_image .* and not"),
    ],
)
def test_the_folder_of_another_run_is_refused(net, tmp_path, change, sentence):
    stream(net, Pictures(100), tmp_path)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} holds another run, with .*{sentence}.*Choose another folder"):
        stream(**{"net": net, "data": Pictures(100), "out": tmp_path} | change)
    assert files(tmp_path) == before


def test_a_run_may_go_on_with_other_batches(net, tmp_path):
    stream(net, Pictures(100), tmp_path)
    (tmp_path / "part-000001.parquet").unlink()
    assert stream(net, Pictures(100), tmp_path, batch_size=7, num_workers=1).before == 60
    assert read_maps(tmp_path)[0]["index"].tolist() == list(range(100))


def test_a_folder_with_other_files_is_refused(net, tmp_path):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "part-000000.parquet")
    for call in (lambda: stream(net, Pictures(100), tmp_path), lambda: read_maps(tmp_path)):
        with pytest.raises(ValueError, match=r"part-000000\.parquet is not from explain_dataset"):
            call()


class Endless(IterableDataset):
    def __iter__(self):
        yield from Pictures()


def test_what_does_not_fit_is_refused_in_one_sentence(net, tmp_path):
    data = Pictures(10)
    cases = [
        (Endless(), {}, "Endless has no index, so a run could not go on after a kill"),
        (DataLoader(Endless(), 4), {}, "Endless has no index"),
        (iter(data), {}, ".*iterator has no index"),
        (DataLoader(data, None), {}, "This DataLoader has no batch_size"),
        (
            DataLoader(data, 4, sampler=SubsetRandomSampler([1, 2])),
            {},
            "SubsetRandomSampler.*give torch.utils.data.Subset",
        ),
        (
            DataLoader(data, 4, collate_fn=lambda items: torch.stack([x for x, _ in 2 * items])),
            {},
            "made 8 images of 4",
        ),
        (data, {"targets": [1, 2]}, "There are 2 targets for the 10 images"),
        (data, {"shard_size": 0}, "shard_size must be at least 1, not 0"),
        (data, {"differentiable": True}, "leave out differentiable="),
        (data, {"method": "grad-kam"}, "There is no method 'grad-kam'"),
        (data, {"targets": "fish"}, "There is no class 'fish'"),
        (torch.rand(10, 3, 16, 16), {"targets": "label"}, r"needs a data set whose items are \(image, label\)"),
        (["a.jpg", "b.jpg"], {}, "gives str where an image"),
    ]
    for given, options, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            explain_dataset(net, given, tmp_path, progress=False, **options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'layers'"):
        explain_dataset(net, data, tmp_path, layers="4")
    with pytest.raises(ValueError, match="holds no maps. explain_dataset writes them"):
        read_maps(tmp_path)


def test_maps_of_several_sizes_are_read_with_pandas(net, tmp_path):
    data = [torch.rand(3, 16, 16), torch.rand(3, 20, 16)]
    stream(net, data, tmp_path, batch_size=1)
    frame = pd.read_parquet(tmp_path)
    assert [len(m) for m in frame["map"]] == [64, 80] and frame["map_height"].tolist() == [8, 10]
    with pytest.raises(ValueError, match=r"several sizes: \[\(8, 8\), \(10, 8\)\]. Read them with pandas"):
        read_maps(tmp_path)


def test_an_empty_and_a_smallest_data_set(net, tmp_path):
    assert stream(net, Subset(Pictures(), []), tmp_path / "none").images == 0
    assert stream(net, Pictures(1), tmp_path / "one").images == 1
    assert read_maps(tmp_path / "one")[1].shape == (1, 8, 8)


# --- networks and machines that are not as they should be ---


def test_a_full_disk_is_said_and_loses_nothing_earlier(net, tmp_path, full_disk):
    stream(net, Pictures(100), tmp_path / "whole")
    whole = files(tmp_path / "whole")
    stream(net, Pictures(100), tmp_path / "full")
    for name in ("part-000001.parquet", "part-000002.parquet"):
        (tmp_path / "full" / name).unlink()
    with full_disk(5_000), pytest.raises(OSError, match=r"part-000001.parquet could not be written \(File too large\)"):
        stream(net, Pictures(100), tmp_path / "full")
    assert files(tmp_path / "full") == {"part-000000.parquet": whole["part-000000.parquet"]}
    assert stream(net, Pictures(100), tmp_path / "full").before == 40
    assert files(tmp_path / "full") == whole


def test_a_folder_that_cannot_be_written_to_is_said(net, unprivileged):
    unprivileged.chmod(0o500)
    with pytest.raises(OSError, match=r"maps could not be written \(Permission denied\).*choose a place"):
        stream(net, Pictures(10), unprivileged / "maps")
    with pytest.raises(OSError, match=r"part-000000.parquet could not be written \(Permission denied\)"):
        stream(net, Pictures(10), unprivileged)
    unprivileged.chmod(0o700)
    (unprivileged / "file").write_text("")
    with pytest.raises(OSError, match=r"file could not be written \(File exists\)"):
        stream(net, Pictures(10), unprivileged / "file")


def test_too_little_memory_is_said_with_a_hint(tmp_path, little_memory):
    wide = nn.Sequential(nn.Conv2d(3, 2000, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2000, 4))
    data = Pictures(100)  # feature maps of a batch: 205 MB
    with (
        little_memory(100_000_000),
        pytest.raises(torch.OutOfMemoryError, match="explain fewer than 100 images at once"),
    ):
        stream(
            wide, TensorDataset(torch.stack([data[i][0] for i in range(100)])), tmp_path, batch_size=100, shard_size=100
        )
    assert files(tmp_path) == {}


def test_nan_in_the_weights_is_said(net, tmp_path):
    with torch.no_grad():
        net[0].weight[0] = torch.nan
    with pytest.warns(UserWarning, match="100 maps hold NaN or infinity: look for these in the images, and in the mod"):
        stream(net, Pictures(100), tmp_path)


def test_a_wrong_number_of_names_of_classes_is_said(net, tmp_path):
    net.classes = ("airplane", "bird")
    with pytest.raises(ValueError, match="model.classes has 2 names, and the model gives 4 logits: name each"):
        stream(net, Pictures(100), tmp_path)
    assert files(tmp_path) == {}
    net.classes = None
    assert stream(net, Pictures(100), tmp_path).images == 100
