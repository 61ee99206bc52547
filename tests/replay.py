"""Process replay: the text of every kernel, here and at another commit. A refactoring shows no difference, or those that it states.

    python tests/replay.py origin/main              # the working tree beside a commit: a summary; exit code 1 where texts differ
    python tests/replay.py HEAD~3 --specs causal gla --show 40
    python tests/replay.py --dump texts.json        # the texts of this tree alone

All library specs, the kernels of a training step, on every back end, in fp32 and bf16; with ``--inference`` also the forward that saves
nothing, which is the other without its statistics. Each tree is dumped by a process of its own that imports
that tree's compiler and asks its public interface; half of the specs go to each of two workers.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("cpu", "triton", "torch")
DTYPES = ("float32", "bfloat16")

Texts = dict[str, str]
"""The text of each kernel by ``spec back end dtype direction number name``, or the error in place of it."""


def texts(
    specs: Sequence[str],
    backends: Sequence[str] = BACKENDS,
    dtypes: Sequence[str] = DTYPES,
    directions: Sequence[str] = ("both",),
) -> Iterator[tuple[str, str]]:
    """The kernels of these library specs as this process's compiler prints them, at feature widths of 64."""
    import torch

    import einfuse

    for spec in specs:
        attention = einfuse.compile(spec)
        for backend in backends:
            for dtype in dtypes:
                for direction in directions:
                    name = f"{spec} {backend} {dtype} {direction}"
                    try:
                        found = attention.candidates(backend, getattr(torch, dtype), direction == "both", {})  # type: ignore[arg-type]
                    except Exception as error:  # what one tree refuses and another builds is a difference like any other
                        yield name, f"{type(error).__name__}: {error}"
                        continue
                    for n, kernel in enumerate(found):
                        yield f"{name} {n} {kernel.plan.name}", kernel.source


def dump(tree: Path, specs: Sequence[str], options: Sequence[str], workers: int = 2) -> Texts:
    """The texts of a tree. Raises RuntimeError with what a worker printed where one fails."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(_worker, tree, specs[n::workers], options, Path(folder) / f"{n}.json") for n in range(workers)]
        return {k: x for job in jobs for k, x in job.result().items()}


def _worker(tree: Path, specs: Sequence[str], options: Sequence[str], out: Path) -> Texts:
    if not specs:
        return {}
    command = [sys.executable, __file__, "--dump", str(out), "--specs", *specs, *options]
    env = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the kernels of {tree} cannot be printed:\n{done.stderr[-2000:]}")
    loaded: Texts = json.loads(out.read_text())
    return loaded


def compared(before: Texts, after: Texts, shown: int = 0) -> tuple[int, str]:
    """The number of kernels that differ, and a summary: per kind of difference the specs, then the first lines of ``shown`` diffs."""
    kinds = {
        "changed": [k for k in after if k in before and before[k] != after[k]],
        "new": [k for k in after if k not in before],
        "gone": [k for k in before if k not in after],
    }
    lines = [f"{len(after)} kernels, {sum(map(len, kinds.values()))} differ"]
    for kind, keys in kinds.items():
        count = Counter(k.split()[0] for k in keys)
        if count:
            lines.append(
                f"{kind}: {len(keys)} ({', '.join(f'{n} {c}' for n, c in count.most_common(12))}{', ...' * (len(count) > 12)})"
            )
    for key in kinds["changed"][:shown]:
        diff = difflib.unified_diff(before[key].splitlines(), after[key].splitlines(), "before", "after", lineterm="", n=1)
        lines += [f"--- {key}", *list(diff)[2:42]]
    return sum(map(len, kinds.values())), "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", help="the commit to compare the working tree with")
    parser.add_argument("--dump", type=Path, help="write the texts of this process's einfuse, compare nothing")
    parser.add_argument("--specs", nargs="*", help="library specs (default: all)")
    parser.add_argument("--backends", nargs="*", default=BACKENDS)
    parser.add_argument("--dtypes", nargs="*", default=DTYPES)
    parser.add_argument("--inference", action="store_true", help="the forward that saves nothing too")
    parser.add_argument("--show", type=int, default=3, help="how many differences are printed in full")
    args = parser.parse_args(argv)
    if args.dump:
        import einfuse

        specs = args.specs or [x.name for x in einfuse.list_specs()]
        directions = ("forward", "both") if args.inference else ("both",)
        args.dump.write_text(json.dumps(dict(texts(specs, args.backends, args.dtypes, directions))))
        return 0
    if args.commit is None:
        parser.error("name a commit to compare with, or --dump FILE")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), args.commit], cwd=ROOT, check=True)
        try:
            specs = args.specs or sorted(p.stem for p in (tree / "library" / "specs").rglob("*.attn"))
            options = ["--backends", *args.backends, "--dtypes", *args.dtypes, *["--inference"] * args.inference]
            before, after = (dump(t, specs, options) for t in (tree, ROOT))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    differing, summary = compared(before, after, args.show)
    print(summary)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
