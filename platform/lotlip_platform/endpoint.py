"""Captions by a server that speaks OpenAI's API: vLLM, SGLang, or a company's own."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import openai
from aiolimiter import AsyncLimiter

from lotlip.errors import ClusterError, ConfigError, LotlipError
from lotlip.images import media_type, stored
from lotlip.relabel.asking import Answer, GenerationConfig, Keep, Request
from lotlip_platform.redaction import redacted

KEY = "OPENAI_API_KEY"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_LONGEST_RETRY_AFTER_S = 600.0
_MINUTE_S = 60.0
_CHECK_S = 20.0
_BROKEN_ANSWER = (openai.APIResponseValidationError, json.JSONDecodeError, UnicodeDecodeError)
_REFUSED_ONE = (400, 413, 422)
"""What is wrong with one request; other codes below 500 are about all of them."""


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """A server, and how it is to be treated. The key is taken from OPENAI_API_KEY."""

    url: str = ""
    """Its base, as in http://HOST:8000/v1. Empty: another kind of captioner is used."""
    model: str = ""
    """The model's name there."""
    revision: str = ""
    """What is to be recorded of the model, which the API does not tell: a commit, a date."""
    concurrency: int = 32
    """Requests in flight, those of all workers together."""
    requests_per_minute: float = 0.0
    """Of all workers together; 0: no limit."""
    tokens_per_minute: float = 0.0
    """Of questions and answers, of all workers together; 0: no limit."""
    timeout_s: float = 120.0
    """For one answer."""
    max_attempts: int = 8
    """At a request, with longer and longer pauses: 3 minutes or so with 8."""
    longest_side_px: int = 0
    """Larger images are made smaller before they are sent; 0: sent as they are."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further keys of the request's body, as in {top_k: 1}."""

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"captioner.endpoint.url={self.url} must be http://... or https://..."
            )
        if self.url and not self.model:
            raise ConfigError("captioner.endpoint.model is missing: the name it has at the server")
        for name in ("concurrency", "max_attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"captioner.endpoint.{name}={getattr(self, name)} must be 1 or more"
                )
        for name in ("requests_per_minute", "tokens_per_minute", "longest_side_px"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"captioner.endpoint.{name}={getattr(self, name)} must be 0 or more"
                )
        if self.timeout_s <= 0:
            raise ConfigError(f"captioner.endpoint.timeout_s={self.timeout_s} must be above 0")


def check_endpoint(config: EndpointConfig) -> None:
    """Whether the server is there and has the model.

    Raises: ConfigError if it has not, or refuses the key; ClusterError if it can't be reached.
    """
    where = f"captioner.endpoint.url={config.url}"
    try:
        with openai.OpenAI(
            base_url=config.url, api_key=_key(), timeout=_CHECK_S, max_retries=2
        ) as client:
            names = [model.id for model in client.models.list()]
    except openai.APIConnectionError as error:
        raise ClusterError(
            f"{where} can't be reached ({_reason(error)}): start the server, or correct the address"
        ) from error
    except (openai.OpenAIError, *_BROKEN_ANSWER, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{where} does not list its models ({_reason(error)}): is it the base of an "
            f"OpenAI-compatible API, which ends in /v1, and is {KEY} right?"
        ) from error
    if names and config.model not in names:
        shown = ", ".join(sorted(names)[:8])
        raise ConfigError(f"{where} has no model {config.model!r}; it has: {shown}")


class EndpointCaptioner:
    """A `Captioner` that asks a server, with many requests in flight."""

    batch_size = 1

    def __init__(
        self,
        config: EndpointConfig,
        generation: GenerationConfig,
        *,
        system: str,
        num_workers: int = 1,
    ) -> None:
        """`num_workers` share the limits."""
        self._config, self._generation, self._system = config, generation, system
        self._num_workers = num_workers

    def answer(self, batches: Iterable[Sequence[Request]], keep: Keep) -> None:
        """See `Captioner`."""
        try:
            asyncio.run(self._answer(batches, keep))
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def _answer(self, batches: Iterable[Sequence[Request]], keep: Keep) -> None:
        share = max(1, self._config.concurrency // self._num_workers)
        free, source = asyncio.Semaphore(share), iter(batches)
        async with AsyncExitStack() as stack:
            client = openai.AsyncOpenAI(
                base_url=self._config.url,
                api_key=_key(),
                timeout=self._config.timeout_s,
                max_retries=0,
            )
            await stack.enter_async_context(client)
            limits = _Limits(self._config, self._num_workers)

            async def one(request: Request) -> None:
                try:
                    answer = await self._ask(client, limits, request)
                    # In flight until it can't be lost: no more than that is ever spent twice.
                    await asyncio.wrap_future(keep([answer]))
                finally:
                    free.release()

            group = await stack.enter_async_context(asyncio.TaskGroup())
            while True:
                await free.acquire()
                batch = await asyncio.to_thread(next, source, None)
                if batch is None:
                    break
                group.create_task(one(batch[0]))

    async def _ask(self, client: openai.AsyncOpenAI, limits: _Limits, request: Request) -> Answer:
        """The answer, after as many attempts as it takes. Raises: ConfigError, ClusterError."""
        body = await asyncio.to_thread(self._body, request)
        input_tokens, output_tokens, fault = 0, 0, _Fault("")
        attempt = tried = 0
        asked_s = time.monotonic()
        while attempt < self._config.max_attempts:
            if tried:
                await limits.pause(tried, fault)
            await limits.wait()
            completion, fault = await self._attempt(client, body)
            tried += 1
            if fault.is_busy and limits.answered_s > asked_s:
                # Who is told to come back later has not failed, as long as others are answered.
                attempt, asked_s = 0, time.monotonic()
            else:
                attempt += 1
            text = ""
            if not fault.reason:
                used = _used_tokens(completion)
                input_tokens, output_tokens = input_tokens + used[0], output_tokens + used[1]
                limits.answered_s = time.monotonic()
                await limits.spend(sum(used))
                text, fault = _text(completion)
            if text or fault.is_final:
                return Answer(
                    place=request.place,
                    prompt=request.prompt,
                    text=text,
                    is_whole=not text
                    or getattr(completion.choices[0], "finish_reason", "") != "length",
                    error=fault.reason,
                    is_final=fault.is_final,
                    input_tokens=input_tokens,
                    output_tokens=output_tokens,
                    num_attempts=tried,
                )
        is_down = fault.is_outage and limits.answered_s < asked_s
        if fault.is_of_server or is_down:
            raise ClusterError(
                f"captioner.endpoint.url={self._config.url} gave up after "
                f"{self._config.max_attempts} attempts ({fault.reason}): what is answered is kept; "
                "when the server is well, run the same command again"
            )
        return Answer(
            place=request.place,
            prompt=request.prompt,
            error=fault.reason,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            num_attempts=tried,
        )

    async def _attempt(
        self, client: openai.AsyncOpenAI, body: dict[str, Any]
    ) -> tuple[Any, _Fault]:
        """The server's answer, or what went wrong. Raises: ConfigError for what all would meet."""
        try:
            return await client.chat.completions.create(**body), _Fault("")
        except openai.APITimeoutError:
            reason = f"no answer within {self._config.timeout_s:g} s"
            return None, _Fault(reason, is_outage=True)
        except openai.APIConnectionError as error:
            return None, _Fault(_reason(error), is_outage=True)
        except openai.APIStatusError as error:
            code, reason = error.status_code, f"{error.status_code}: {_reason(error)}"
            if code in _REFUSED_ONE:
                return None, _Fault(reason, is_final=True)
            if code < 500 and code not in (408, 409, 429):
                raise ConfigError(
                    f"captioner.endpoint.url={self._config.url} refuses the requests ({reason}): "
                    f"correct captioner.endpoint or {KEY}"
                ) from error
            after_s = _retry_after_s(error.response.headers.get("retry-after", ""))
            return None, _Fault(
                reason,
                is_of_server=code == 429,
                is_busy=code == 429 or after_s > 0,
                is_outage=code >= 500,
                after_s=after_s,
            )
        except _BROKEN_ANSWER as error:
            return None, _Fault(f"an answer that does not parse: {_reason(error)}")
        except openai.OpenAIError as error:
            return None, _Fault(_reason(error))

    def _body(self, request: Request) -> dict[str, Any]:
        """What is sent."""
        image = request.image
        if side_px := self._config.longest_side_px:
            image, _ = stored(image, longest_side_px=side_px)
        url = f"data:{media_type(image)};base64,{base64.b64encode(image).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": request.text},
        ]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self._system:
            messages.insert(0, {"role": "system", "content": self._system})
        settings = self._generation
        return {
            "model": self._config.model,
            "messages": messages,
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": request.seed,
            "extra_body": dict(self._config.extra),
        }


class _Fault(NamedTuple):
    """Why an attempt brought no caption."""

    reason: str
    is_final: bool = False
    """Trying again would not help."""
    is_of_server: bool = False
    """It is the server's state, not this request."""
    is_busy: bool = False
    """There is too much to do at present."""
    is_outage: bool = False
    """It may be the server's state, if it answers nobody else either."""
    after_s: float = 0.0
    """The server asked for a pause of so long."""


class _Limits:
    """What requests of this worker wait for."""

    def __init__(self, config: EndpointConfig, num_workers: int) -> None:
        self._requests = _limiter(config.requests_per_minute / num_workers)
        self._tokens = _limiter(config.tokens_per_minute / num_workers)
        self._not_before = 0.0
        self.answered_s = 0.0
        """When any of the requests was last answered."""

    async def wait(self) -> None:
        """Until another request may be sent."""
        while (left := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left)
        if self._requests:
            await self._requests.acquire()

    async def spend(self, tokens: int) -> None:
        """Wait until so many tokens fit: that holds back the next request."""
        while self._tokens and tokens > 0:
            some = min(tokens, self._tokens.max_rate)
            await self._tokens.acquire(some)
            tokens -= int(some)

    async def pause(self, attempt: int, fault: _Fault) -> None:
        """Before another attempt. Where the server asked for it, all wait with this one."""
        if fault.after_s:
            self._not_before = max(self._not_before, time.monotonic() + fault.after_s)
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(attempt - 1, 10))
        # Never all at once when the pause is over.
        await asyncio.sleep(fault.after_s + longest * random.uniform(0.25, 1.0))


def _limiter(per_minute: float) -> AsyncLimiter | None:
    """Evenly over the minute, but for a second's worth at once."""
    if not per_minute:
        return None
    at_once = max(1.0, per_minute / _MINUTE_S)
    return AsyncLimiter(at_once, at_once * _MINUTE_S / per_minute)


def _used_tokens(completion: Any) -> tuple[int, int]:
    """Of the question and of the answer, as far as the server tells."""
    usage = getattr(completion, "usage", None)
    found = (getattr(usage, name, 0) for name in ("prompt_tokens", "completion_tokens"))
    asked, answered = (value if isinstance(value, int) else 0 for value in found)
    return asked, answered


def _text(completion: Any) -> tuple[str, _Fault]:
    """The caption in an answer, or what is wrong with that."""
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or len(choices) != 1:
        found = len(choices) if isinstance(choices, list) else "no"
        return "", _Fault(f"an answer with {found} choices where one was asked for")
    message = getattr(choices[0], "message", None)
    text = getattr(message, "content", None)
    if isinstance(text, str) and text.strip():
        return text.strip(), _Fault("")
    if refusal := getattr(message, "refusal", None):
        return "", _Fault(f"refused: {refusal}"[:300], is_final=True)
    return "", _Fault("an answer without text")


def _retry_after_s(text: str) -> float:
    """Seconds, if the server gave them as a number."""
    try:
        return min(max(float(text), 0.0), _LONGEST_RETRY_AFTER_S)
    except ValueError:
        return 0.0


def _key() -> str:
    return os.environ.get(KEY) or "none"  # servers of one's own want no key, but the client does


def _reason(error: BaseException) -> str:
    """One line of what happened, without what the client adds."""
    cause = error.__cause__ or error
    return redacted(" ".join(str(cause).split()))[:200] or type(cause).__name__


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of errors that came together, ours if there is one."""
    flat: list[BaseException] = []
    for error in group.exceptions:
        flat += [_first(error)] if isinstance(error, BaseExceptionGroup) else [error]
    return next((error for error in flat if isinstance(error, LotlipError)), flat[0])
