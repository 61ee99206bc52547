"""Families of transformers on einfuse beside their stock attention, from small random configurations: logits, gradients, tokens.

    python benchmarks/transformers_families.py [--family REGEX] [--kind REGEX] [--out FILE.jsonl]

The stock attention is sdpa, or eager where transformers has no sdpa for a family. Prints a line for each family: `equal`; `refused`, with
the reason; `differs` or `fails`, with where; or why it says nothing: `no interface` (the family computes attention by its own code, or
transformers runs it with eager alone), `not built` (no small configuration runs).
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")
sys.modules["fla"] = None  # type: ignore[assignment]  # its kernels need a GPU; transformers has the same in torch

import harness  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402
from transformers_small import configurations  # noqa: E402

import einfuse.integrations as integrations  # noqa: E402

KINDS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "encoder": "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
    "image": "MODEL_FOR_IMAGE_MAPPING_NAMES",
    "sound": "MODEL_FOR_CTC_MAPPING_NAMES",
}
LENGTH, MOST, SECONDS = 11, 80_000_000, 150
Inputs = dict[str, Any]
Run = Callable[[], torch.Tensor]


def main() -> None:
    parser = harness.options(__doc__, threads=1)
    parser.add_argument("--family", default="", help="families whose name has this in it (a regular expression)")
    parser.add_argument("--kind", default="", help=f"kinds of models: {', '.join(KINDS)}")
    parser.add_argument("--backend", default="torch", help="the back end of einfuse")
    parser.add_argument("--out", type=Path, help="where results are kept; families that it has are not run again")
    args = harness.parsed(parser)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    integrations.transformers.register("einfuse", backend=args.backend)
    kept = args.out.read_text().splitlines() if args.out and args.out.exists() else []
    done = {json.loads(line)["name"] for line in kept}
    verdicts = Counter(json.loads(line)["verdict"] for line in kept)
    for kind, name in chosen(args.kind, args.family):
        if f"{kind} {name}" in done:
            continue
        verdict, why = judged(kind, name)
        verdicts[verdict] += 1
        print(f"{verdict:12} {kind:8} {name:42} {why}", flush=True)
        if args.out:
            with args.out.open("a") as out:
                out.write(json.dumps({"name": f"{kind} {name}", "verdict": verdict, "why": why}) + "\n")
    print(dict(verdicts))


def chosen(kind: str, family: str) -> Iterator[tuple[str, str]]:
    """The classes of models, each once for a kind."""
    for kept, mapping in KINDS.items():
        if re.search(kind, kept):
            found = getattr(modeling_auto, mapping).items()
            names = [n if isinstance(n, str) else n[0] for f, n in found if re.search(family, f)]
            yield from ((kept, n) for n in dict.fromkeys(names))


def judged(kind: str, name: str) -> tuple[str, str]:
    """The verdict on a class of models, and its reason."""
    try:
        with limited(SECONDS):
            model = built(kind, name)
            stock = "sdpa" if type(model)._supports_sdpa else "eager"
            try:
                model.set_attn_implementation("einfuse")
            except ValueError as error:
                return "refused" if stock == "sdpa" else "no interface", str(error)[:160]
            return compared(model, stock, calls(kind, model))
    except Exception as error:
        return "not built", f"{type(error).__name__}: {str(error)[:160]}".replace("\n", " ")


def compared(model: Any, stock: str, runs: Iterator[tuple[str, Run]]) -> tuple[str, str]:
    """Every call by both attentions."""
    same, lost = 0, 0
    said: dict[str, list[str]] = {}
    for what, run in runs:
        right, found = (result(model, name, run) for name in (stock, "einfuse"))
        if isinstance(right, Exception):
            lost += 1
        elif isinstance(found, Exception):
            word = "refused" if isinstance(found, ValueError) else "fails"
            said.setdefault(word, []).append(f"{what}: {type(found).__name__}: {str(found)[:200]}")
        elif difference := apart(right, found) and in_double(model, stock, run):
            said.setdefault("differs", []).append(f"{what}: {difference}")
        else:
            same += 1
    for word in ("differs", "fails", "refused"):
        if word in said:
            return word, "; ".join(said[word])
    if not same:
        return "not built", f"{stock} fails in all {lost} calls"
    return "equal", f"{same} calls of {stock}" + (f"; {stock} itself fails in {lost}" if lost else "")


def in_double(model: Any, stock: str, run: Run) -> str:
    """How results differ in float64: random models may round a lot, sdpa as much as einfuse."""
    model.double()
    right, found = (result(model, name, run) for name in (stock, "einfuse"))
    model.float()
    failed = next((x for x in (right, found) if isinstance(x, Exception)), None)
    return f"in float64 {failed}" if failed is not None else apart(right, found)  # type: ignore[arg-type]  # no exceptions


def result(model: Any, name: str, run: Run) -> torch.Tensor | Exception:
    """What a call gives by an attention."""
    model.set_attn_implementation(name)
    try:
        return run()
    except TimeoutError:
        raise
    except Exception as error:
        return error


def apart(right: torch.Tensor, found: torch.Tensor) -> str:
    """How results differ; empty where they agree but for rounding."""
    if right.shape != found.shape:
        return f"shapes {tuple(right.shape)} and {tuple(found.shape)}"
    if not right.is_floating_point():
        return "" if torch.equal(right, found) else f"{int((right != found).sum())} of {right.numel()} tokens"
    if not torch.equal(right.isfinite(), found.isfinite()):
        return f"{int((~right.isfinite()).sum())} and {int((~found.isfinite()).sum())} numbers that are not finite"
    scale, far = right.nan_to_num().abs().max().item(), (right - found).nan_to_num().abs().max().item()
    return "" if far <= 2e-4 * max(scale, 1e-3) else f"{far:.1e} of {scale:.1e}"


# -- models and calls ----------------------------------------------------------------------------------------------------------------


def built(kind: str, name: str) -> Any:
    """A random model, of the first small configuration that its stock attention runs. Raises the error of the first try."""
    of = getattr(transformers, name)
    first: Exception | None = None
    for make in configurations(of.config_class):
        try:
            config = make()
            with torch.device("meta"):
                many = sum(p.numel() for p in of(config).parameters())
            if many > MOST:
                raise ValueError(f"{many:.0e} parameters")
            torch.manual_seed(0)
            model = of(config).eval().float()
            with torch.no_grad():
                for p in model.parameters():
                    if p.ndim >= 2:
                        p.mul_(3)  # so that tokens differ
                logits(model, inputs(kind, model, 2, "none")[0])
            return model
        except TimeoutError:
            raise
        except Exception as error:
            first = first or error
    assert first is not None, "there is a configuration to try"
    raise first


def kept_logits(kind: str, model: Any, batch: int, pad: str) -> torch.Tensor:
    """Those of real positions."""
    found: torch.Tensor = kept(kind, model, batch, pad).detach()
    return found


def calls(kind: str, model: Any) -> Iterator[tuple[str, Run]]:
    """The calls of a model: logits and gradients of real positions, and greedy tokens with growing and static caches."""
    texts = kind not in ("image", "sound")
    pads = {"image": ("none",), "sound": ("none", "right")}.get(kind, ("none", "left", "right"))
    for batch in (1, 2):
        for pad in pads:
            yield f"logits, batch {batch}, padding {pad}", functools.partial(kept_logits, kind, model, batch, pad)
    if kind in ("causal", "seq2seq"):
        for batch, pad, cache in ((1, "none", None), (2, "left", None), (2, "left", "static")):
            yield (
                f"tokens, batch {batch}, padding {pad}, cache {cache}",
                lambda *x, a=(batch, pad, cache): tokens(kind, model, *a),
            )

    def gradients() -> torch.Tensor:
        loss = kept(kind, model, 2, "left" if texts else "none").square().mean()
        found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    yield "gradients", gradients


def inputs(kind: str, model: Any, batch: int, pad: str) -> tuple[Inputs, torch.Tensor]:
    """The inputs of a call, and which positions of its outputs are real."""
    torch.manual_seed(batch)
    every = torch.ones(batch, dtype=torch.bool)
    if kind == "image":
        size = getattr(model.config, "image_size", 32)
        sizes = (size, size) if isinstance(size, int) else tuple(size)
        return {"pixel_values": torch.randn(batch, getattr(model.config, "num_channels", 3), *sizes, dtype=model.dtype)}, every
    if kind == "sound":
        bins = getattr(model.config, "num_mel_bins", None) if model.main_input_name == "input_features" else None
        sound = torch.randn(batch, 200, bins or 20, dtype=model.dtype)
        sound = sound if bins else sound.flatten(1)
        real = torch.ones(sound.shape[:2], dtype=torch.long)
        real[1:, real.shape[1] // 2 :] = 0
        return {model.main_input_name: sound} | ({} if pad == "none" else {"attention_mask": real}), every[:1]
    real = torch.arange(LENGTH)[None] < torch.tensor([7] if batch == 1 else [LENGTH, 6])[:, None]
    real = {"none": torch.ones_like(real), "left": real.flip(1), "right": real}[pad]
    given: Inputs = {"input_ids": torch.randint(3, 100, (batch, LENGTH))}
    given |= {} if pad == "none" else {"attention_mask": real.long()}
    if kind == "seq2seq":
        given["decoder_input_ids"] = torch.randint(3, 100, (batch, 5))
        real = torch.ones(batch, 5, dtype=torch.bool)
    return given, real


def logits(model: Any, given: Inputs) -> torch.Tensor:
    """The first of what a model gives that has this meaning."""
    out = model(**given)
    for name in ("logits", "last_hidden_state", "prediction_logits"):
        if getattr(out, name, None) is not None:
            return getattr(out, name)  # type: ignore[no-any-return]  # a tensor
    return out[0]  # type: ignore[no-any-return]  # a tensor


def kept(kind: str, model: Any, batch: int, pad: str) -> torch.Tensor:
    """The outputs at real positions."""
    given, real = inputs(kind, model, batch, pad)
    found = logits(model, given)
    return found[real] if real.shape == found.shape[: real.ndim] else found[: len(real)]


def tokens(kind: str, model: Any, batch: int, pad: str, cache: str | None) -> torch.Tensor:
    """Seven tokens, each the likeliest."""
    given, _ = inputs(kind, model, batch, pad)
    given.pop("decoder_input_ids", None)
    given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
    settings = model.generation_config
    settings.eos_token_id, settings.decoder_start_token_id, settings.pad_token_id = None, 1, 0
    more = {"cache_implementation": cache, "disable_compile": True} if cache else {}
    return model.generate(**given, max_new_tokens=7, do_sample=False, **more)  # type: ignore[no-any-return]  # a tensor


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises TimeoutError inside, when the time is over."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    main()
