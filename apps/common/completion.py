"""`sparsekit completion SHELL`: what the Tab key offers, for bash, zsh and fish.

The words are those of the helps, read once: the Tab key starts no Python.
"""

import contextlib
import io
import re
from unittest.mock import patch

from sparsekit import cli

SHELLS = ("bash", "zsh", "fish")
BASH = """\
_sparsekit() {{
  local words="" typed="${{COMP_WORDS[*]:1:$((COMP_CWORD - 1))}}"
  case "$typed" in
{cases}  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o bashdefault -o default -F _sparsekit sparsekit
"""
ZSH = """\
whence compdef >/dev/null || { autoload -U compinit && compinit; }
autoload -U bashcompinit && bashcompinit
"""
FISH = """\
function __sparsekit
  switch (string join ' ' -- (commandline -opc)[2..-1])
{cases}  end
end
complete -c sparsekit -a '(__sparsekit)'
"""


def script(shell: str) -> str:
    """Text to be sourced by the shell; where no word fits it offers files."""
    rows = [(typed, " ".join(words)) for typed, words in offered()]
    if shell == "fish":
        cases = (f"    case '{t}'\n      string split ' ' -- '{w}'\n" for t, w in rows)
        return FISH.format(cases="".join(cases))
    quoted = [(re.sub(r"[^*]+", r'"\g<0>"', typed) or '""', w) for typed, w in rows]
    text = BASH.format(cases="".join(f'    {t}) words="{w}" ;;\n' for t, w in quoted))
    return ZSH * (shell == "zsh") + text


def offered() -> list[tuple[str, list[str]]]:
    """(what was typed, with * for anything; what may follow); the first that fits."""
    commands = _listed()
    rows = [("", [*commands, "help"]), ("help", commands)]
    for command in commands:
        verbs = _listed(command)
        rows += [(f"{start}{command}", verbs) for start in ("", "help ") if verbs]
        for verb in verbs or [""]:
            rows += _flags(f"{command} {verb}".strip())
    return rows


def _flags(typed: str) -> list[tuple[str, list[str]]]:
    """Values of the flags that take one of a few, and all flags."""
    text = _help(*typed.split()).partition("examples:")[0]
    chosen = re.findall(r"^ +(--[\w.-]+) \[?\{([^}]*)\}", text, re.MULTILINE)
    chosen += re.findall(r"(--config) FILE.*? one of (.*)", text)
    rows = [(f"{typed}* {flag}", re.split(", ?", words)) for flag, words in chosen]
    flags = re.findall(r"^ +(--.*?)(?:  |$)", text, re.MULTILINE)
    names = re.findall(r"--[a-z][\w.-]*", " ".join(flags))
    return [*rows, (typed, names), (f"{typed} *", names)]


def _listed(*words: str) -> list[str]:
    """Commands or verbs that a help lists; none if it is that of a verb."""
    text = _help(*words)
    is_list = re.match(r"usage: sparsekit .*\[--help\] \.\.\.", text)
    return re.findall(r"^  ([a-z][\w-]*) ", text, re.MULTILINE) if is_list else []


def _help(*words: str) -> str:
    """A help; none if a command lacks the packages that it needs."""
    if not words:
        return cli.usage(cli.commands())
    shown = io.StringIO()
    wide = patch.dict("os.environ", COLUMNS="9999")
    ends = contextlib.suppress(SystemExit, ImportError)
    with wide, contextlib.redirect_stdout(shown), ends:
        points = cli.commands()
        run = points[words[0]].load() if words[0] in points else cli.methods
        run([*words[1:], "--help"])
    return shown.getvalue()
