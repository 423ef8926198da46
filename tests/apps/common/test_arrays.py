"""Files of arrays that somebody else wrote."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.common import arrays
from apps.common.arrays import open_arrays


def test_arrays_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.ones(2))
    with open_arrays(tmp_path / "a.npz", "x", "y") as found:
        assert found["x"].tolist() == [0, 1, 2]
        assert found["y"].tolist() == [1, 1]


def test_a_missing_array_and_a_missing_file_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    with (
        pytest.raises(ValueError, match=r"a\.npz: lacks y; it has \['x'\]"),
        open_arrays(tmp_path / "a.npz", "x", "y"),
    ):
        pass
    with (
        pytest.raises(FileNotFoundError, match=r"no such file: .*b\.npz"),
        open_arrays(tmp_path / "b.npz"),
    ):
        pass


class Runs:
    """What a hostile pickle does when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["npy", "pickle", "npz"])
def test_a_pickle_does_not_run(tmp_path: Path, form: str) -> None:
    ran, path = tmp_path / "ran", tmp_path / "a.npz"
    hostile = np.array([Runs(ran)], object)
    if form == "npz":
        np.savez(path, x=hostile)
    elif form == "npy":
        with path.open("wb") as file:
            np.save(file, hostile)
    else:
        path.write_bytes(pickle.dumps(Runs(ran)))
    ran.unlink(missing_ok=True)
    with (
        pytest.raises(ValueError, match=r"a\.npz: "),
        open_arrays(path) as found,
    ):
        found["x"]
    assert not ran.exists()


def test_a_bomb_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10_000_000, np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < 20_000
    monkeypatch.setattr(arrays, "memory", lambda: 9_000_000)
    with (
        pytest.raises(ValueError, match=r"holds 0\.0 GB of arrays, more than"),
        open_arrays(tmp_path / "a.npz"),
    ):
        pass


def test_a_header_that_claims_too_much_is_damage(tmp_path: Path) -> None:
    header = io.BytesIO()
    claim = {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**20)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"few bytes")
    with (
        pytest.raises(ValueError, match=r"a\.npz: "),
        open_arrays(tmp_path / "a.npz") as found,
    ):
        found["x"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_damage_gives_the_array_or_an_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("damage") / "a.npz"
    np.savez(path, x=np.arange(20))
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place] = value
    path.write_bytes(content[:place] if cut else content)
    try:
        with open_arrays(path, "x") as found:
            found["x"]
    except ValueError as raised:
        error = str(raised)
    else:
        error = f"{path}: "
    assert error.startswith(f"{path}: ")
