"""Settings from dataclass, file, profile and flags; later wins, mistakes are named."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apps.common.config import RunConfig, VerbConfig, parse, to_toml
from apps.common.flags import PROGRAM
from tests.apps.common.writing import written

Value = str | int | float | bool


@dataclass(frozen=True)
class Encoder:
    """How text becomes a vector.

    Args:
        dim: of the vector.
    """

    dim: int = 64
    names: tuple[str, ...] = ("a",)
    extra: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Config(RunConfig):
    """A training.

    Args:
        lr: learning rate.
    """

    lr: float = 0.1
    layers: int = 2
    kind: Literal["mlp", "cnn"] = "mlp"
    flag: bool = False
    note: str = "none"
    limit: int | None = None
    folder: Path | None = None
    sizes: tuple[int, ...] = (3, 5)
    options: dict[str, Value] = field(default_factory=dict)
    encoder: Encoder = field(default_factory=Encoder)

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")


@pytest.fixture
def file(tmp_path: Path):
    return partial(written, tmp_path / "config.toml")


texts = st.text(st.characters(codec="utf-8"), max_size=9)
values = (
    st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.booleans() | texts
)
options = st.dictionaries(texts, values, max_size=3)
configs = st.builds(
    Config,
    profile=st.sampled_from(["smoke", "laptop", "full"]),
    seed=st.integers(0, 2**40),
    lr=st.floats(0, allow_nan=False, exclude_min=True),
    layers=st.integers(-9, 2**40),
    kind=st.sampled_from(["mlp", "cnn"]),
    flag=st.booleans(),
    note=texts,
    limit=st.none() | st.integers(0, 9),
    folder=st.none() | st.sampled_from([Path("a/b"), Path("/x y/ü")]),
    sizes=st.lists(st.integers(-5, 5), max_size=3).map(tuple),
    options=options,
    encoder=st.builds(
        Encoder,
        dim=st.integers(-5, 5),
        names=st.lists(texts, max_size=3).map(tuple),
        extra=options,
    ),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configs)
def test_what_is_written_reads_back_the_same(tmp_path_factory, config: Config) -> None:
    path = tmp_path_factory.getbasetemp() / "written.toml"
    path.write_text(to_toml(config), "utf-8", newline="\n")
    found = parse(Config, ["--config", str(path)])
    assert found == config
    assert repr(found) == repr(config)  # also 1 is not 1.0, nor True


def test_out_and_resume_belong_to_one_call() -> None:
    text = to_toml(Config(out=Path("runs/a"), resume=True))
    assert "out" not in text
    assert "resume" not in text


def test_later_wins_default_file_profile_flag(file) -> None:
    path = file(
        "layers = 3\nlr = 0.3\nnote = 'file'\nsizes = [7]\n"
        "[encoder]\ndim = 8\n"
        "[profiles.smoke]\nlr = 0.4\nnote = 'smoke'\n"
        "[profiles.smoke.encoder]\nnames = ['b', 'c']\n"
        "[profiles.full]\nlr = 9\n"
    )
    plain = parse(Config, ["--config", str(path)])
    assert (plain.kind, plain.layers, plain.lr, plain.note) == ("mlp", 3, 0.3, "file")
    assert plain.sizes == (7,)
    assert plain.encoder == Encoder(dim=8)
    smoke = parse(Config, [f"--config={path}", "--profile", "smoke", "--note", "flag"])
    assert (smoke.profile, smoke.layers, smoke.lr) == ("smoke", 3, 0.4)
    assert smoke.note == "flag"
    assert smoke.encoder == Encoder(dim=8, names=("b", "c"))
    full = parse(Config, ["--profile=full", "--config", str(path), "--encoder.dim=1"])
    assert (full.lr, full.encoder.dim) == (9.0, 1)


def test_of_several_files_the_later_wins(tmp_path: Path) -> None:
    """Key by key, tables too; each file's profile belongs to the file."""
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("lr = 1.0\nencoder.dim = 3\n[profiles.smoke]\nlr = 2.0\n")
    two.write_text("encoder.extra.a = 5\n")
    both = ["--config", str(one), f"--config={two}"]
    config = parse(Config, both)
    assert (config.lr, config.encoder.dim, config.encoder.extra) == (1.0, 3, {"a": 5})
    assert parse(Config, [*both, "--profile", "smoke"]).lr == 2.0
    two.write_text("lr = 7.0\n")
    assert parse(Config, [*both, "--profile", "smoke"]).lr == 7.0
    assert parse(Config, [*both, "--lr", "9"]).lr == 9.0


def test_one_file_may_serve_several_verbs(file) -> None:
    """Keys of the other verb are checked, and left out; in profiles as well."""
    path = file("seed = 3\nlr = 0.5\n[encoder]\ndim = 2\n[profiles.smoke]\nlr = 0.2\n")
    argv = ["--config", str(path), "--profile", "smoke"]
    assert parse(RunConfig, argv, beside=Config).seed == 3
    with pytest.raises(ValueError, match="unknown key 'lr'"):
        parse(RunConfig, argv)
    with pytest.raises(ValueError, match="unknown key 'lrr'"):
        parse(RunConfig, ["--config", str(file("lrr = 1"))], beside=Config)
    with pytest.raises(ValueError, match="lr must be"):
        parse(RunConfig, ["--config", str(file("lr = 'x'"))], beside=Config)


def test_a_file_may_choose_its_profile_and_a_flag_another(file) -> None:
    path = file(
        "profile = 'smoke'\n[profiles.smoke]\nlr = 2\n[profiles.full]\nlr = 3\n"
    )
    assert parse(Config, ["--config", str(path)]).lr == 2
    assert parse(Config, ["--config", str(path), "--profile", "full"]).lr == 3
    assert parse(Config, ["--config", str(path), "--profile", "laptop"]).lr == 0.1


def test_every_run_takes_these_flags(file) -> None:
    flags = f"--config {file('')} --profile smoke --seed 7 --out runs/a --resume"
    flags += " --sizes 1 2 3"
    config = parse(Config, [*flags.split(), "--limit", "4", "--flag", "--kind", "cnn"])
    assert (config.profile, config.seed, config.out) == ("smoke", 7, Path("runs/a"))
    assert (config.resume, config.sizes, config.limit) == (True, (1, 2, 3), 4)
    assert (config.flag, config.kind) == (True, "cnn")
    assert parse(RunConfig, ["--seed", "3"]) == RunConfig(seed=3)


def test_a_profile_without_a_file_is_refused() -> None:
    """It would change nothing: who asks for a small run would get a large one."""
    for flag in (["--profile", "smoke"], ["--profile=full", "--lr", "2"]):
        with pytest.raises(ValueError, match=r"part of a settings file: give --config"):
            parse(Config, flag)


@dataclass(frozen=True)
class Several(Config):
    """Several trainings."""

    unused: ClassVar[Mapping[str, str]] = {"resume": "it goes on", "note": "give notes"}

    notes: tuple[str, ...] = ()


@pytest.mark.parametrize("flag", ["--resume", "--no-resume", "--resume=True"])
def test_a_flag_without_use_is_refused(flag) -> None:
    given = flag.partition("=")[0]
    with pytest.raises(ValueError, match=f"^{given} has no use here: it goes on$"):
        parse(Several, [flag, "--lr", "2"])


def test_a_flag_without_use_is_not_offered_but_stays_a_key(file, capsys) -> None:
    with pytest.raises(SystemExit):
        parse(Several, ["--help"])
    shown = capsys.readouterr().out
    assert "--resume" not in shown
    assert "--note " not in shown
    assert "--notes" in shown
    assert "learning rate" in shown
    path = file("note = 'x'\n[encoder]\ndim = 3\n[options]\na = 1\n")
    found = parse(Several, ["--config", str(path), "--notes", "y", "--encoder.dim=4"])
    assert found == Several(
        note="x", notes=("y",), encoder=Encoder(dim=4), options={"a": 1}
    )
    assert type(found) is Several
    with pytest.raises(ValueError, match=r"valid: (?!.*--resume)") as caught:
        parse(Several, ["--nope"])
    assert "--notes" in str(caught.value)


def test_a_verb_without_profiles_takes_none(file) -> None:
    @dataclass(frozen=True)
    class Look(VerbConfig):
        """Looks."""

        k: int = 3

    assert parse(Look, ["--config", str(file("k = 5"))]).k == 5
    assert parse(Look, ["--k", "4"]) == Look(k=4)
    for word in ("--profile", "--seed", "--out", "--resume"):
        with pytest.raises(ValueError, match=f"unknown argument '{word}'"):
            parse(Look, [word, "1"])
    for text in ("profile = 'smoke'", "[profiles.smoke]\nk = 1\n"):
        with pytest.raises(ValueError, match="unknown key 'profile"):
            parse(Look, ["--config", str(file(text))])


def test_options_change_keys_and_keep_the_files_others(file) -> None:
    path = file("[options]\na = 1\nb = 'x'\nc = 0.5\n[encoder.extra]\nk = 1\n")
    given = ["--config", str(path), "--options", "a=2", "b", "75%", "c="]
    assert parse(Config, given).options == {"a": 2, "b": "75%"}
    assert parse(Config, [*given, "--lr", "3", "--options", "d=-1.5"]).options == {
        "a": 2, "b": "75%", "d": -1.5,
    }  # fmt: skip
    config = parse(Config, [*given[:2], "--encoder.extra", "k=true", "--lr", "1"])
    assert config.encoder.extra == {"k": True}
    assert config.options == {"a": 1, "b": "x", "c": 0.5}
    assert parse(Config, ["--options=a=x=y", "b", "2 epochs"]).options == {
        "a": "x=y", "b": "2 epochs",
    }  # fmt: skip
    assert Config().encoder.extra == Config().options == {}  # no shared default


def test_flags_may_complete_what_the_file_leaves_invalid(file) -> None:
    path = file("lr = -1.0\n")
    with pytest.raises(ValueError, match="lr must be positive, got -1"):
        parse(Config, ["--config", str(path)])
    assert parse(Config, ["--config", str(path), "--lr", "2"]).lr == 2
    with pytest.raises(ValueError, match="lr must be positive, got -2"):
        parse(Config, ["--lr", "-2"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lrr = 1", r"unknown key 'lrr'; did you mean 'lr'\? valid: profile, seed"),
        ("zzz = 1", "unknown key 'zzz'; valid: profile, seed, out"),
        ("lr = '1'", "lr must be a number, got '1'"),
        ("lr = 1" + "0" * 400, "lr must be a number, got 1000"),
        ("layers = 1.5", "layers must be an integer, got 1.5"),
        ("seed = true", "seed must be an integer, got True"),
        ("seed = -1", "seed must be at least 0, got -1"),
        ("kind = 'rnn'", "'mlp', 'cnn', got 'rnn'; did you mean 'cnn'"),
        ("kind = 'MPL'", r"one of 'mlp', 'cnn', got 'MPL'; did you mean 'mlp'\?"),
        ("profile = 'huge'", "profile must be one of 'smoke', 'laptop', 'full'"),
        ("profile = []", "profile must be one of"),
        ("sizes = 3", "sizes must be a list of integers, got 3"),
        ("encoder = 3", "encoder must be a table, got 3"),
        ("[encoder]\ndin = 3", r"\[encoder\]: unknown key 'din'; did you mean 'dim'"),
        ("[options]\na = [1]", "options must be a table whose a is text or"),
        ("options = 5\n[profiles.smoke.options]\na = 1", "options must be a table of"),
        ("profiles = 3", r"profiles must be tables, \[profiles.smoke\]"),
        ("[profiles.huge]\nlr = 1", r"\[profiles.huge\] is not known; use \[prof"),
        ("[profiles.full]\nlr = 'x'", r"\[profiles.full\]: lr must be a number"),
        ("[options" + ".a" * 20_000 + "]", "a name of more than 64 parts"),
        ("[encoder" + ".a" * 20_000 + "]", "a name of more than 64 parts"),
        ("a = " + "{a=" * 20_000, "is not valid TOML"),
        (b"lr = 1 # \xe9", "is not valid TOML"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)  # fmt: skip
def test_a_mistake_in_the_file_is_named(file, text, words) -> None:
    path = file(text)
    for profile in ([], ["--profile", "smoke"]):
        with pytest.raises(ValueError, match=words) as caught:
            parse(Config, ["--config", str(path), *profile])
        assert len(str(caught.value)) < 500
        assert str(path) in str(caught.value) or text == "seed = -1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lrr", "1"], r"unknown argument '--lrr'; did you mean '--lr'\?"),
        (["--zzz=1"], "unknown argument '--zzz=1'; valid: --config, --json, --profile"),
        (["--encoder.din", "1"], r"did you mean '--encoder.dim'\?"),
        (["stray"], "unknown argument 'stray'"),
        (["--profile", "smok"], "'full', got 'smok'; did you mean 'smoke'"),
        (["--kind", "rnn"], "--kind must be one of 'mlp', 'cnn', got 'rnn'; did you"),
        (["--config"], "--config needs a value"),
        (["--config", "--lr", "1"], "--config needs a value"),
        (["--options", "a"], "'a' has no value; write a=VALUE"),
        (["--options", "=5"], "'=5' has no key; write KEY=VALUE"),
        (["--seed", "-3"], "seed must be at least 0, got -3"),
        (["--seed", str(2**63)], "seed must be below 2.63, got 9223372036854775808"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_flags_is_named(arguments, words) -> None:
    with pytest.raises(ValueError, match=words):
        parse(Config, arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "many"], "^--lr must be a number, got 'many'$"),
        (["--kind", "rnn"], "--kind must be one of 'mlp', 'cnn', got 'rnn'"),
        (["--profile", "huge"], "smoke"),
        (["--layers"], "Missing value for argument '--layers'"),
        (["--seed", "1.5"], "^--seed must be an integer, got '1.5'$"),
        (["--encoder.dim", "1.5"], "^--encoder.dim must be an integer, got '1.5'$"),
    ],
)
def test_a_malformed_flag_is_named_in_one_line(arguments, words, capsys) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse(Config, arguments)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_options_take_the_type_of_their_values() -> None:
    @dataclass(frozen=True)
    class Texts(RunConfig):
        """Texts."""

        tags: dict[str, str] = field(default_factory=dict)
        counts: dict[str, int] = field(default_factory=dict)

    config = parse(Texts, ["--tags", "a=1", "b=true", "--counts", "a", "3"])
    assert config.tags == {"a": "1", "b": "true"}
    assert config.counts == {"a": 3}
    with pytest.raises(ValueError, match=r"--counts: a must be an integer, got '0\.5'"):
        parse(Texts, ["--counts", "a=0.5"])


def test_presets_by_name_and_files_first(tmp_path: Path, monkeypatch) -> None:
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "small.toml").write_text("layers = 1")
    (presets / "large.toml").write_text("layers = 9")
    monkeypatch.chdir(tmp_path)
    assert parse(Config, ["--config", "large"], presets=presets).layers == 9
    Path("mine.toml").write_text("layers = 4")
    assert parse(Config, ["--config", "mine.toml"], presets=presets).layers == 4
    with pytest.raises(
        FileNotFoundError,
        match=r"smal; did you mean 'small'\? presets: large, small",
    ):
        parse(Config, ["--config", "smal"], presets=presets)
    for hidden in ("../mine", str(presets), "large.toml"):
        with pytest.raises(FileNotFoundError, match="no such config file"):
            parse(Config, ["--config", hidden], presets=presets)


def test_a_required_setting_comes_from_file_or_flag(file) -> None:
    @dataclass(frozen=True)
    class Needs(RunConfig):
        """Needs."""

        data: str
        other: int = field(default=1, kw_only=True)

    assert parse(Needs, ["--data", "x"]).data == "x"
    assert parse(Needs, ["--config", str(file("data = 'y'"))]).data == "y"
    with pytest.raises(ValueError, match="--data"):
        parse(Needs, ["--other", "2"])


@pytest.mark.parametrize("before", [[], ["--options", "a=1"], ["--lr", "2"]])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_exits_with_0_and_lists_every_flag(
    flag, before, capsys, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").touch()
    words = [*before, flag]
    token = PROGRAM.set("sparsekit demo train")
    with pytest.raises(SystemExit) as stop:
        parse(Config, words, presets=tmp_path)
    PROGRAM.reset(token)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: sparsekit demo train [")
    names = [f.name for f in fields(Config) if f.name != "encoder"]
    for name in (*names, "config", "encoder.dim", "encoder.names", "encoder.extra"):
        assert re.search(rf"--{re.escape(name)}\b", text), name
    for words in ("A training.", "learning rate", "of the vector", "tiny", "Args"):
        assert (words in text) == (words != "Args")


def test_values_that_toml_can_say_but_json_cannot(file) -> None:
    config = parse(Config, ["--config", str(file("lr = inf\n[options]\na = nan"))])
    assert config.lr == math.inf
    assert math.isnan(config.options["a"])


def test_none_that_a_file_cannot_say_is_refused() -> None:
    @dataclass(frozen=True)
    class Limited(RunConfig):
        """Limited."""

        limit: int | None = 5

    with pytest.raises(ValueError, match="limit is None, which TOML cannot say"):
        to_toml(Limited(limit=None))
    assert "limit = 3" in to_toml(Limited(limit=3))
