"""Images in folders, as torchvision lays them out, and Tiny-ImageNet's own form.

ROOT/CLASS/*.png                                    parts are drawn
ROOT/train/CLASS/*.png, ROOT/test/CLASS/*.png       (or val) the test part is kept
ROOT/train/CLASS/images/*.JPEG, ROOT/val/val_annotations.txt      Tiny-ImageNet

Classes in the order of their names, and of each the files in the order of theirs;
`listed` tells which file stands at which index.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg")
OTHERS = (".bmp", ".gif", ".tif", ".tiff", ".webp")  # not to be left out in silence
LARGEST = 512  # pixels of a side: the images are held in memory, uncompressed
LEAST_PER_CLASS = 10  # so that every class is in every part
Labelled = list[tuple[Path, str]]


class Folder(NamedTuple):
    """x: [N, 3, S, S] uint8; y: [N] int64, indices of `names`; n_train: so many, from
    the beginning, are the official training part, None if there is none."""

    x: np.ndarray
    y: np.ndarray
    names: tuple[str, ...]
    n_train: int | None


def read(root: Path) -> Folder:
    """All images of a folder, RGB, which must have one size.

    Raises ValueError that names the image or folder and the fix.
    """
    trains, tests = _parts(root)
    names = sorted({label for _, label in trains})
    unknown = sorted({label for _, label in tests} - set(names))
    if unknown:
        raise ValueError(f"{root}: class {unknown[0]!r} has no training images")
    if len(names) < 2:
        raise ValueError(f"{root} has {len(names)} class folder; two are needed")
    x = _images([path for path, _ in (*trains, *tests)])
    y = np.array([names.index(label) for _, label in (*trains, *tests)])
    counts = np.bincount(y[: len(trains)], minlength=len(names))
    if counts.min() < LEAST_PER_CLASS:
        raise ValueError(
            f"{root}: class {names[counts.argmin()]!r} has {counts.min()} images; "
            f"{LEAST_PER_CLASS} are needed"
        )
    return Folder(x, y.astype(np.int64), tuple(names), len(trains) if tests else None)


def listed(root: Path) -> list[Path]:
    """The file of each index, the official test part last."""
    return [path for part in _parts(Path(root)) for path, _ in part]


def state(root: Path) -> int:
    """Another number when a file was added, changed or removed."""
    stats = [(path, path.stat()) for path in listed(root)]
    return hash(tuple((p, stat.st_mtime_ns, stat.st_size) for p, stat in stats))


def _parts(root: Path) -> tuple[Labelled, Labelled]:
    """Files with their classes: to learn from, and of the official test part."""
    tests: Labelled = []
    if (root / "train").is_dir():
        trains = _by_class(root / "train")
        held = next((root / n for n in ("test", "val") if (root / n).is_dir()), None)
        annotations = root / "val" / "val_annotations.txt"
        if annotations.is_file():
            tests = _annotated(annotations)
        elif held is not None:
            tests = _by_class(held)
    else:
        trains = _by_class(root)
    return trains, tests


def _by_class(root: Path) -> Labelled:
    found: Labelled = []
    folders = (path for path in root.iterdir() if path.is_dir())
    for folder in sorted(path for path in folders if not path.name.startswith(".")):
        inner = folder / "images" if (folder / "images").is_dir() else folder
        files = sorted(inner.iterdir())
        images = [path for path in files if path.suffix.lower() in SUFFIXES]
        for path in files:
            if path.suffix.lower() in OTHERS:
                raise ValueError(f"{path} is neither PNG nor JPEG: convert it")
        odd = next((path for path in images if not path.is_file()), None)
        if odd is not None:  # a pipe would be waited for
            raise ValueError(f"{odd} is no file")
        if not images:
            raise ValueError(f"{inner} holds no image ({', '.join(SUFFIXES)})")
        found += [(path, folder.name) for path in images]
    if not found:
        raise ValueError(f"{root} has no class folders: put images into ROOT/CLASS/")
    return found


def _annotated(path: Path) -> Labelled:
    """Tiny-ImageNet's validation part: lines of file name, class, box."""
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines() if line]
    for row in rows:
        if len(row) < 2 or "/" in row[0] or "\\" in row[0] or row[0].startswith("."):
            raise ValueError(f"{path}: a line is FILE<tab>CLASS<tab>..., got {row!r}")
    return [(path.parent / "images" / row[0], row[1]) for row in rows]


def _images(paths: list[Path]) -> np.ndarray:
    """[N, 3, S, S] uint8."""
    from PIL import Image

    x = None
    for i, path in enumerate(paths):
        try:
            with Image.open(path, formats=["PNG", "JPEG"]) as image:
                size = image.size
                if x is None:
                    _require_small_square(path, size)
                    x = np.empty((len(paths), 3, size[1], size[0]), np.uint8)
                if size != (x.shape[3], x.shape[2]):
                    raise ValueError(
                        f"{path} is {size[0]}x{size[1]}, {paths[0].name} is "
                        f"{x.shape[3]}x{x.shape[2]}: bring all images to one size"
                    )
                x[i] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is no image, or damaged: {error}") from error
    assert x is not None
    return x


def _require_small_square(path: Path, size: tuple[int, int]) -> None:
    if size[0] != size[1] or size[0] > LARGEST:
        raise ValueError(
            f"{path} is {size[0]}x{size[1]}: images must be square, of at most "
            f"{LARGEST} pixels a side"
        )
