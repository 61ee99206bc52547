"""The command `einfuse`: what it accepts, and what its exit code says.

0: good. 1: the spec, or a check of it, failed. 2: the command was used wrongly (argparse says how).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from einfuse.ir import EinfuseError, SpecError
from einfuse.ir.passes.pipeline import PASSES
from einfuse.runtime.names import NAMES

DTYPES = ("float64", "float32", "bfloat16", "float16")


class Command(Protocol):
    """What a module of `einfuse._cli` holds for each command."""

    def __call__(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (and leaves by SystemExit(2) where argparse finds the usage wrong)."""
    top = parser()
    args = top.parse_args(argv)
    if args.command == "verify" and bool(args.specs) == args.all:
        top.error("verify: name the specs, or give --all")
    try:
        return _command(args)(args)
    except SpecError as error:
        _screen().fault(error)
    except EinfuseError as error:
        _screen().say(f"einfuse {args.command}: {error}")
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a file that cannot be read or written, a full disk
        _screen().say(f"einfuse {args.command}: {error}")
    except KeyboardInterrupt:
        _screen().say("stopped")
        return 130
    return 1


def _screen() -> Any:
    """What shows faults in colour; good news does not wait for it."""
    return importlib.import_module("einfuse._cli.screen")


def _command(args: argparse.Namespace) -> Command:
    """Modules are imported when their command is: `einfuse --help` waits for none of them."""
    module, name = args.run.split(":")
    return cast(Command, getattr(importlib.import_module(f"einfuse._cli.{module}"), name))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="einfuse",
        description="Write attention as a few lines of index notation; get fused, differentiable, verified kernels.",
        epilog="SPEC is the name of a library spec (`einfuse list`) or the path of an .attn file.",
    )
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _text_commands(commands)
    _inside_commands(commands)
    _measuring_commands(commands)
    _machine_commands(commands)
    return top


Commands = argparse._SubParsersAction  # argparse has no public name for it


def commands() -> list[tuple[str, str, argparse.ArgumentParser]]:
    """Every command with what it does and its parser."""
    (found,) = (a for a in parser()._actions if isinstance(a, Commands))
    return [(a.dest, a.help or "", found.choices[a.dest]) for a in found._choices_actions]


def _text_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    check = _add(commands, "check", "texts:check", "find every fault of spec files, by line and column", report=True)
    check.add_argument("files", nargs="+", metavar="FILE")
    _params(check)
    fmt = _add(commands, "fmt", "texts:fmt", "rewrite spec files in the canonical form")
    fmt.add_argument("files", nargs="+", metavar="FILE")
    fmt.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file would change")
    new = _add(commands, "new", "new:new", "write a commented spec, a layer around it and a test of both, to start from")
    new.add_argument("name", metavar="NAME", help="a lower-case identifier")
    new.add_argument("--folder", default=".", metavar="FOLDER", help="where to; the current folder unless given")
    listed = _add(commands, "list", "texts:list_specs", "the specs of the library", report=True)
    listed.add_argument(
        "query", nargs="?", default="", metavar="QUERY", help="only those with this in name, family, paper or formula"
    )
    models = _add(commands, "models", "texts:list_models", "models by name, and what their layers attend with", report=True)
    models.add_argument("query", nargs="?", default="", metavar="QUERY", help="only those with this in name, specs or paper")


def _inside_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    emit = _add(commands, "emit", "inside:emit", "print the generated kernels of a spec")
    _spec(emit)
    emit.add_argument("--backend", choices=NAMES, required=True)
    emit.add_argument("--dtype", choices=DTYPES, default="float32", help="of the tensors; %(default)s unless given")
    emit.add_argument("--backward", action="store_true", help="the backward kernels as well")
    emit.add_argument("--size", action="append", default=[], metavar="NAME=N", type=_size, help="a width; 64 unless given")
    ir = _add(commands, "ir", "cascades:ir", "print the cascade of a spec after a pass of the compiler")
    _spec(ir)
    ir.add_argument("--after", choices=PASSES, default="build", metavar="PASS", help=", ".join(PASSES))
    ir.add_argument(
        "--form", choices=("quadratic", "linear"), default="quadratic", help="the linear form is that of the widths given"
    )
    ir.add_argument("--size", action="append", default=[], metavar="NAME=N", type=_size, help="a width; 64 unless given")
    ir.add_argument("--graph", type=Path, metavar="FILE", help="draw what a training step runs instead, as SVG")
    opt = _add(commands, "opt", "opt:run", "run passes on the text of a cascade, or on a spec")
    opt.add_argument("file", metavar="FILE", help="a cascade as `einfuse ir` prints it, - for stdin, or a SPEC")
    opt.add_argument(
        "--passes", metavar="LIST", help="NAME,NAME{OPTION=VALUE ...}: those named; the whole pipeline unless given"
    )
    opt.add_argument("--print-after-all", action="store_true", help="print the cascade after every pass, on stderr")
    opt.add_argument("--time-passes", action="store_true", help="print the time of every pass, on stderr")
    _params(opt)
    passes = _add(commands, "passes", "cascades:passes", "how often the keys are read, and what forces it", report=True)
    _spec(passes)
    passes.add_argument("--rank", help="another folded rank than the first")
    explain = _add(commands, "explain", "explain:explain", "what the kernels of a spec cost, and what bounds them", report=True)
    _spec(explain)
    explain.add_argument(
        "--shape", type=_shape, default=(1, 16, 4096, 4096), metavar="B,H,Nq,Nk", help="1,16,4096,4096 unless given"
    )
    explain.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the tensors; %(default)s unless given")
    explain.add_argument("--backward", action="store_true", help="the backward kernels as well")
    explain.add_argument("--size", action="append", default=[], metavar="NAME=N", type=_size, help="a width; 64 unless given")
    tiles = _add(
        commands, "tiles", "tiles:tiles", "which tiles of a mask are live, and the loop bounds that say so", report=True
    )
    _spec(tiles)
    tiles.add_argument("--shape", type=_shape, required=True, metavar="B,H,Nq,Nk", help="batch, heads, queries, keys")
    tiles.add_argument(
        "--tile", type=_tile, default=(64, 64), metavar="N[,M]", help="queries and keys of a tile; 64 unless given"
    )
    tiles.add_argument(
        "--limit", type=_positive, default=1, metavar="N", help="heads and batch elements shown; %(default)s unless given"
    )
    tiles.add_argument("--png", type=Path, metavar="FILE", help="a picture as well")


def _measuring_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    verify = _add(commands, "verify", "measure:verify", "compare kernels and gradients with the float64 oracle", report=True)
    verify.add_argument("specs", nargs="*", metavar="SPEC")
    verify.add_argument("--all", action="store_true", help="every spec of the library")
    verify.add_argument("--backend", action="append", choices=NAMES, help="again for more; cpu and triton unless given")
    verify.add_argument("--dtype", action="append", choices=DTYPES, help="again for more; float32 and bfloat16 unless given")
    verify.add_argument("--seed", type=int, default=0, help="of the inputs; %(default)s unless given")
    verify.add_argument("--cross", action="store_true", help="compile every Triton kernel for sm_80, sm_90 and gfx942 as well")
    verify.add_argument(
        "--target", action="append", metavar="GPU", help="compile for this kind as well, such as sm_120; again for more"
    )
    verify.add_argument("--forward-only", action="store_true", help="leave the gradients out")
    _params(verify)
    bench = _add(commands, "bench", "measure:bench", "time specs beside scaled_dot_product_attention, in one run", report=True)
    bench.add_argument("specs", nargs="*", metavar="SPEC", help="every spec of the library unless given")
    bench.add_argument("--dtype", action="append", choices=DTYPES, help="again for more; float32 unless given")
    for name, default in (("batch", 1), ("heads", 8), ("length", 2048), ("width", 64), ("repeats", 7)):
        bench.add_argument(f"--{name}", type=_positive, default=default, metavar="N", help="%(default)s unless given")
    bench.add_argument("--backward", action="store_true", help="forward and backward together")
    _params(bench)


def _machine_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    lsp = _add(commands, "lsp", "lsp:lsp", "serve an editor on stdin and stdout (docs/editor.md)")
    lsp.add_argument("--stdio", action="store_true", help="what editors may add; there is no other way")
    page = _add(commands, "playground", "playground:playground", "open the playground, served to this machine (docs/editor.md)")
    page.add_argument("--port", type=int, default=8080, metavar="N", help="%(default)s unless given; 0 takes a free one")
    page.add_argument("--no-open", action="store_true", help="open no browser")
    page.add_argument("--folder", type=Path, metavar="FOLDER", help="the built page; that of this checkout unless given")
    _add(commands, "doctor", "doctor:doctor", "what einfuse finds on this machine, and what to do about the rest", report=True)
    kept = _add(commands, "cache", "cache:cache", "what is kept on disk: look at it, check it, remove it", report=True)
    kept.add_argument("action", choices=("info", "verify", "clear"), help="count entries; find damaged ones; remove all")
    completion = _add(commands, "completion", "completion:completion", "print what makes a shell complete commands and specs")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    demo = _add(commands, "demo", "demo:demo", "one spec from its text to a verified, timed kernel")
    demo.add_argument("spec", nargs="?", default="alibi_window", metavar="SPEC", help="%(default)s unless given")
    demo.add_argument("--length", type=_positive, default=2048, metavar="N", help="tokens to time; %(default)s unless given")
    _params(demo)


def _add(
    commands: Commands[argparse.ArgumentParser], name: str, run: str, text: str, report: bool = False
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run, json=False)
    if report:
        command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return command


def _spec(command: argparse.ArgumentParser) -> None:
    command.add_argument("spec", metavar="SPEC", help="a name of the library, or a path")
    _params(command)


def _params(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-p", "--param", action="append", default=[], metavar="NAME=VALUE", type=assignment, help="a parameter of the spec"
    )


def assignment(text: str) -> tuple[str, int | float | bool | str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    if value in ("true", "false"):
        return name, value == "true"
    for number in (int, float):
        try:
            return name, number(value)
        except ValueError:
            continue  # not a number of this kind
    return name, value


def _size(text: str) -> tuple[str, int]:
    name, value = assignment(text)
    return name, _positive(str(value))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _shape(text: str) -> tuple[int, int, int, int]:
    parts = [_positive(n.strip()) for n in text.split(",")]
    if len(parts) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not B,H,Nq,Nk")
    return parts[0], parts[1], parts[2], parts[3]


def _tile(text: str) -> tuple[int, int]:
    parts = [_positive(n.strip()) for n in text.split(",")]
    if len(parts) > 2 or any(n % 16 and n & (n - 1) for n in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not one or two powers of two or multiples of 16")
    return parts[0], parts[-1]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"einfuse {version('einfuse')}"
    except PackageNotFoundError:
        return "einfuse (not installed)"


if __name__ == "__main__":
    sys.exit(main())
