"""Shell completion: a real shell reads the script and is asked."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from einfuse._cli.completion import offers
from einfuse.cli import main


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["einfuse", "che"], ["check"]),
        (["einfuse", "passes", "alibi_w"], ["alibi_window"]),
        (["einfuse", "emit", "causal", "--back"], ["--backend", "--backward"]),
        (["einfuse", "cache", "ver"], ["verify"]),
        (["einfuse", "nothing", "x"], []),
    ],
)
def test_bash_completes(words: list[str], offered: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ask = f'{script("bash", capsys)}\nCOMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _einfuse; echo "${{COMPREPLY[@]}}"'
    run = subprocess.run(["bash", "-c", ask], check=True, capture_output=True, text=True)
    assert run.stdout.split() == offered


def test_zsh_takes_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    bash, zsh = (script(s, capsys).split("\n")[1:] for s in ("bash", "zsh"))
    assert zsh == ["autoload -U +X bashcompinit && bashcompinit", *bash]


def test_fish_knows_every_command_and_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    lines = script("fish", capsys).split("\n")
    for name, (text, words) in offers().items():
        assert f"complete -c einfuse -n __fish_use_subcommand -a {name} -d '{text}'" in lines
        for word in words:
            assert any(name in x and word.lstrip("-") in x for x in lines), (name, word)
