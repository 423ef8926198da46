"""Classes found by file name, in packages that are written here."""

import importlib
import sys
from pathlib import Path

import pytest

from sparsekit.discovery import class_in, classes_in

BASE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Base:
    rate: float = 0.5
"""
ONE = """
from dataclasses import dataclass
from found_package import Base

@dataclass(frozen=True)
class {name}(Base):
    pass
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch):
    folder = tmp_path / "found_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(BASE)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("found_package")]:
        del sys.modules[name]


def found(folder: Path):
    importlib.invalidate_caches()
    module = importlib.import_module("found_package")
    return classes_in(module, module.Base)


def test_a_file_is_a_class_under_its_name(package: Path) -> None:
    (package / "zig.py").write_text(ONE.format(name="Zig"))
    (package / "ant.py").write_text(ONE.format(name="Anything"))
    names = {name: cls.__name__ for name, cls in found(package).items()}
    assert list(names.items()) == [("ant", "Anything"), ("zig", "Zig")]


def test_what_a_file_imports_is_not_its_own(package: Path) -> None:
    (package / "ant.py").write_text(ONE.format(name="Ant"))
    imports = "from found_package.ant import Ant\n"
    (package / "zig.py").write_text(imports + ONE.format(name="Zig"))
    assert [cls.__name__ for cls in found(package).values()] == ["Ant", "Zig"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "[]"),
        ("from found_package import Base\n", "[]"),
        ("class Base: pass\n", "[]"),
        ("Base = 7\n", "[]"),
        (ONE.format(name="Ant") + ONE.format(name="Bee"), "['Ant', 'Bee']"),
    ],
)
def test_none_and_several_are_errors(package: Path, text: str, names: str) -> None:
    (package / "ant.py").write_text(text)
    with pytest.raises(ValueError, match=r"ant must define exactly one") as raised:
        found(package)
    assert str(raised.value).endswith(f"found_package.Base, found {names}")


def test_a_subclass_that_is_no_dataclass_does_not_count(package: Path) -> None:
    importlib.invalidate_caches()
    module = importlib.import_module("found_package")

    class Plain:
        pass

    Plain.__module__ = module.__name__
    module.Plain = Plain
    with pytest.raises(ValueError, match="exactly one"):
        class_in(module, Plain)
