"""The Tab key, in a real bash, against what the commands themselves accept."""

import re
import shutil
import subprocess

import pytest

from apps.common import completion
from sparsekit.cli import commands, main

bash = shutil.which("bash")
pytestmark = pytest.mark.skipif(bash is None, reason="needs bash")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """tab(line) -> words that bash offers for the last, maybe empty, word of a line."""
    path = tmp_path_factory.mktemp("completion") / "sparsekit.bash"
    path.write_text(completion.script("bash"))

    def offered(line: str) -> list[str]:
        words = " ".join(f"'{word}'" for word in line.split(" "))
        code = f"""source {path}
        [[ "$(complete -p sparsekit)" == *"-F _sparsekit"* ]] || exit 3
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _sparsekit; printf "%s\\n" "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            [bash, "--norc", "-u", "-c", code], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    return offered


def test_commands_and_verbs(tab) -> None:
    assert tab("sparsekit ") == [*sorted([*commands(), "methods"]), "help"]
    assert tab("sparsekit c") == ["claims", "classify", "completion", "continual"]
    assert tab("sparsekit data ") == ["list", "fetch"]
    assert tab("sparsekit classify co") == ["compare"]
    assert tab("sparsekit help classify ch") == ["check"]
    assert tab("sparsekit classify nope ") == []


@pytest.mark.parametrize(
    "verb",
    ["methods", "claims", "data fetch", "classify train", "recsys serve",
     "continual compare", "unlearning run", "unlearning verify receipt.json"],
)  # fmt: skip
def test_flags_are_those_that_the_verb_names(tab, capsys, verb) -> None:
    assert main([*verb.split(), "--nope"]) == 2
    valid = re.findall(r"--[\w.-]+", capsys.readouterr().err.partition("valid:")[2])
    found = tab(f"sparsekit {verb} --")
    assert {flag for flag in found if not flag.startswith("--no-")} == (
        set(valid) - {"--help"}
    )
    assert tab(f"sparsekit {verb} word --x y --") == found


def test_values_of_flags(tab) -> None:
    line = "sparsekit classify train --lr 1"
    assert tab(f"{line} --profile ") == ["smoke", "laptop", "full"]
    assert tab(f"{line} --config m") == ["mlp-mnist5k"]
    assert tab(f"{line} --model r") == ["resnet"]
    assert tab("sparsekit continual train --model r") == ["resnet18"]
    assert tab(f"{line} --out runs/") == []  # then bash offers files


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_take_their_scripts(shell, tmp_path) -> None:
    program = shutil.which(shell)
    path = tmp_path / "script"
    path.write_text(completion.script(shell))
    assert "'classify" in path.read_text() or '"classify' in path.read_text()
    if program is not None:
        subprocess.run([program, "-n", str(path)], check=True, timeout=60)
