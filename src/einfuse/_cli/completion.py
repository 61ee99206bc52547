"""The command completion: what a shell offers behind `einfuse`, made of the parser and the library."""

from __future__ import annotations

import argparse

from einfuse import cli
from einfuse.runtime.specs import library

BASH = """# einfuse for {shell}: source <(einfuse completion {shell})
{before}_einfuse() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" offered
  case "${{COMP_WORDS[1]}}" in
{cases}
    *) offered="" ;;
  esac
  [ "$COMP_CWORD" -eq 1 ] && offered="{commands}"
  COMPREPLY=($(compgen -W "$offered" -- "$word"))
}}
complete -o default -F _einfuse einfuse
"""
SHELLS = ("bash", "zsh", "fish")


def completion(args: argparse.Namespace) -> int:
    """Prints the script of a shell."""
    print(fish() if args.shell == "fish" else bash(args.shell), end="")
    return 0


def offers() -> dict[str, tuple[str, list[str]]]:
    """What every command does, and the words that may follow it."""
    specs = list(library())
    out = {}
    for name, text, command in cli.commands():
        words = [w for a in command._actions for w in (*a.option_strings, *(map(str, a.choices or ())))]
        named = any(a.dest in ("spec", "specs") and not a.option_strings for a in command._actions)
        out[name] = (text, [*words, *(specs if named else ())])
    return out


def bash(shell: str) -> str:
    """Zsh reads the same script."""
    before = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    cases = "\n".join(f'    {name}) offered="{" ".join(words)}" ;;' for name, (_, words) in offers().items())
    return BASH.format(shell=shell, before=before, cases=cases, commands=" ".join(offers()))


def fish() -> str:
    lines = ["# einfuse for fish: einfuse completion fish | source"]
    for name, (text, words) in offers().items():
        lines.append(f"complete -c einfuse -n __fish_use_subcommand -a {name} -d {_quoted(text)}")
        inside = f"-n '__fish_seen_subcommand_from {name}'"
        lines += [f"complete -c einfuse {inside} -l {w[2:]}" for w in words if w.startswith("--")]
        offered = " ".join(w for w in words if not w.startswith("-"))
        lines += [f"complete -c einfuse {inside} -a {_quoted(offered)}"] if offered else []
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"
