"""HTTP in the form of OpenAI's completions: `application` is an ASGI application over an engine that steps in a thread of its own."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import functools
import json
import queue
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as Http
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serve.engine import Engine
from serve.request import Request

MODEL = "llama-random"
END = 256
"""The token that ends a text. The others are bytes."""
NEUTRAL = {"best_of": 1, "echo": False, "frequency_penalty": 0, "presence_penalty": 0, "top_p": 1}
"""What the form has and this server does not, with the values that ask for nothing."""
KNOWN = {"model", "prompt", "max_tokens", "n", "temperature", "seed", "stream", "user", "stream_options"}


class Steps(threading.Thread):
    """Steps an engine while there is work. Others hand it what they want done between two steps: an engine is for one thread."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(name="steps", daemon=True)
        self.engine = engine
        self._wanted: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()

    def do(self, wanted: Callable[[], Any] | None) -> None:
        """Does it before the next step; None: no step more."""
        self._wanted.put(wanted)

    def run(self) -> None:
        busy = False
        while True:
            try:
                wanted = self._wanted.get(block=not busy)
                if wanted is None:
                    return
                wanted()
                busy = True
            except queue.Empty:
                try:
                    busy = self.engine.step()
                except Exception as error:  # its requests have ended with "error"; others go on
                    print(f"a step failed: {error}")


@dataclass(frozen=True, slots=True)
class Wish:
    """A checked body of a request."""

    prompts: list[list[int]]
    most: int
    n: int
    temperature: float
    seed: int
    stream: bool

    @staticmethod
    def of(body: Any) -> Wish:
        """Raises ValueError for what is malformed, or would be answered as if it were not there."""
        if not isinstance(body, dict):
            raise ValueError("the body is an object of JSON")
        for name, value in body.items():
            if name not in KNOWN and value is not None and value != NEUTRAL.get(name):
                raise ValueError(f"{name} is not supported here, found {value!r}")
        prompt = body.get("prompt")
        many = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        prompts = [tokens(p) for p in (prompt if many else [prompt])]  # type: ignore[union-attr]  # a list, where there are many
        numbers: dict[str, Any] = {"max_tokens": 16, "n": 1, "temperature": 1.0, "seed": 0}
        given = {n: usual if body.get(n) is None else body[n] for n, usual in numbers.items()}
        for name, usual in numbers.items():
            kinds = (int,) if isinstance(usual, int) else (int, float)
            if type(given[name]) not in kinds or given[name] < 0:
                raise ValueError(f"{name} is a number from 0 on, found {given[name]!r}")
        if not given["n"]:
            raise ValueError("n is 1 at least")
        stream = bool(body.get("stream"))
        return Wish(prompts, given["max_tokens"], given["n"], given["temperature"], given["seed"], stream)


def tokens(prompt: Any) -> list[int]:
    """The tokens of a prompt: the bytes of a text, or as they are."""
    if isinstance(prompt, str):
        return list(prompt.encode())
    if isinstance(prompt, list) and all(type(t) is int and 0 <= t <= END for t in prompt):
        return prompt
    raise ValueError(f"prompt is a text, tokens from 0 to {END}, or a list of these")


@dataclass(eq=False)
class Choice:
    """One completion on its way: tokens come in, text goes out when its bytes are whole characters."""

    index: int
    request: Request
    sent: int = 0
    _bytes: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def more(self, generated: list[int], finish: str | None) -> dict[str, Any]:
        """What the tokens since the last time add."""
        new = bytes(t for t in generated[self.sent :] if t != END)
        self.sent = len(generated)
        return {"index": self.index, "text": self._bytes.decode(new, bool(finish)), "logprobs": None, "finish_reason": finish}


def application(steps: Steps) -> Starlette:
    """``POST /v1/completions`` and ``GET /v1/models``. A client that goes away ends its requests, and no others."""

    async def completions(http: Http) -> Response:
        try:
            wish = Wish.of(json.loads(await http.body()))
            answer = Answer(steps, wish)
        except ValueError as error:
            return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, 400)
        if wish.stream:
            return StreamingResponse(answer.events(), media_type="text/event-stream")
        whole = asyncio.ensure_future(answer.whole())
        gone = asyncio.ensure_future(http.receive())  # after the body: that the client is gone
        await asyncio.wait((whole, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not whole.done():
            whole.cancel()
            return Response(status_code=499)
        return JSONResponse(whole.result())

    async def models(http: Http) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "einfuse"}]})

    return Starlette(routes=[Route("/v1/completions", completions, methods=["POST"]), Route("/v1/models", models)])


class Answer:
    """The completions that one call asked for."""

    def __init__(self, steps: Steps, wish: Wish) -> None:
        self.steps, self.wish = steps, wish
        self.head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": MODEL}
        self.choices: list[Choice] = []
        for prompt in wish.prompts:
            first: Request | None = None
            for n in range(wish.n):
                request = Request(prompt, wish.most, frozenset({END}), wish.temperature, wish.seed + n, after=first)
                steps.engine.check(request)
                first = first or request
                self.choices.append(Choice(len(self.choices), request))

    async def _parts(self) -> AsyncGenerator[dict[str, Any]]:
        """What each step adds to a choice, until all have ended; the requests end with it."""
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[tuple[Choice, list[int], str | None]] = asyncio.Queue()

        def listen_to(choice: Choice) -> Callable[[Request], None]:
            def listen(request: Request) -> None:  # in the thread of the engine
                loop.call_soon_threadsafe(news.put_nowait, (choice, request.generated, request.finish))

            return listen

        engine = self.steps.engine
        for choice in self.choices:
            choice.request.listen = listen_to(choice)
            self.steps.do(functools.partial(engine.submit, choice.request))
        left = len(self.choices)
        try:
            while left:
                choice, generated, finish = await news.get()
                left -= finish is not None
                yield choice.more(generated, finish)
        finally:
            for choice in self.choices if left else ():
                self.steps.do(functools.partial(engine.cancel, choice.request))

    async def events(self) -> AsyncIterator[str]:
        """Events as they are sent."""
        async with contextlib.aclosing(self._parts()) as parts:
            async for part in parts:
                yield f"data: {json.dumps(self.head | {'choices': [part]})}\n\n"
        yield "data: [DONE]\n\n"

    async def whole(self) -> dict[str, Any]:
        """All that there is to say, at the end."""
        found: dict[int, dict[str, Any]] = {}
        async with contextlib.aclosing(self._parts()) as parts:
            async for part in parts:
                before = found.get(part["index"], {"text": ""})
                found[part["index"]] = part | {"text": before["text"] + part["text"]}
        prompt, made = sum(map(len, self.wish.prompts)), sum(c.sent for c in self.choices)
        usage = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
        return self.head | {"choices": [found[n] for n in sorted(found)], "usage": usage}
