"""Any server that speaks OpenAI's chat API."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import openai

from datakit.errors import BuildError, DatakitError, UserError
from datakit.recipe import OpenAIEngine
from datakit.synthesis import prompts
from datakit.synthesis.engines import REFUSED, Answer, Batch, Conversation, Desk, Request, request_key

log = logging.getLogger(__name__)

# Seconds.
FIRST_PAUSE, LONGEST_PAUSE, CONNECT_TIMEOUT = 0.5, 30.0, 10.0
# Attempts at a server that has not answered anything yet: a wrong address should not cost minutes.
FIRST_CONTACT_ATTEMPTS = 3
# A client looks through all its connections for each request, and keeps no more than a hundred of them.
WORKERS_OF_A_CLIENT = 64
# 408 and 409 say "again", 429 "later"; 5xx may pass.
RATE_LIMITED, SERVER_ERROR, CONNECTION, TIMEOUT, MALFORMED = "rate_limited", "server_error", "connection", "timeout", "malformed"
_AGAIN = {408: TIMEOUT, 409: SERVER_ERROR, 429: RATE_LIMITED}
# What servers say of one prompt: a filter of contents stands before the model, or the prompt is too long for it.
_OF_THE_PROMPT = {400, 413, 422}
# Codes that are never about a prompt, whatever the status: the account, the key, the model, a field of the request.
_OF_ALL_REQUESTS = {
    "billing_hard_limit_reached", "insufficient_quota", "invalid_api_key", "model_not_found", "unsupported_parameter",
    "unsupported_value",
}  # fmt: skip
# So many refusals with no answer between them are no chance: the server takes none of these requests, or none any more.
REFUSALS_IN_A_ROW = 20
# Of the environment, for OpenAI itself.
_OF_OPENAI = ("OpenAI-Organization", "OpenAI-Project")

# Addresses that this process has had an answer from, whatever it said. Each step has an engine of its own.
_reached: set[str] = set()


class Failed(Exception):
    """An attempt that may be made again, after `pause` seconds if the server named them."""

    def __init__(self, kind: str, text: str, pause: float | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.pause = pause


class Refused(Exception):
    """The server does not take this prompt."""


class OpenAIChat:
    """Requests to a server, `concurrency` at a time. Each is its own batch: nothing that stands beside it decides its answer.

    A prompt that the server refuses is answered with REFUSED and the server's words, where the server answers others. Until that
    is known refusals are held back: one that is kept is never asked for again.
    """

    def __init__(self, name: str, config: OpenAIEngine, identity: Mapping[str, Any]) -> None:
        self.name = name
        self.config = config
        self.identity = identity
        self.loading_seconds = 0.0
        self._held: list[tuple[str, Answer]] = []
        self._refused_in_a_row = 0
        self._usage_missing = False
        self._only_thought = False
        self._warned_of_refusal = False

    def batches(self, conversations: Sequence[Conversation]) -> list[Batch]:
        return [
            [Request(number, request_key(self.identity, conversation), conversation)]
            for number, conversation in enumerate(conversations)
        ]

    def ask(self, batches: Sequence[Batch], desk: Desk) -> None:
        run_to_end(lambda stop: self._ask(iter([request for batch in batches for request in batch]), desk, stop))

    def close(self) -> None:
        return

    async def _ask(self, requests: Iterator[Request], desk: Desk, stop: asyncio.Event) -> None:
        """Workers take one request after the other. The first error stops them all; what is on its way is finished first."""
        errors: list[DatakitError] = []
        # Without a key in the recipe none is sent: a key from the environment would go to a server that nobody meant.
        key = self.config.api_key.reveal() if self.config.api_key is not None else "none"

        async def work(client: openai.AsyncOpenAI) -> None:
            for request in requests:
                if stop.is_set() or not desk.may_ask(1):
                    return
                try:
                    answer = await self._answer(client, request, desk, stop)
                    if answer is not None:
                        self._tell(desk, request.key, answer)
                except DatakitError as error:
                    errors.append(error)
                    stop.set()

        limits = openai.Timeout(self.config.timeout, connect=min(CONNECT_TIMEOUT, self.config.timeout))
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    openai.AsyncOpenAI(
                        base_url=self.config.base_url, api_key=key, max_retries=0, timeout=limits, default_headers=self._headers()
                    )
                )
                for _ in range(0, self.config.concurrency, WORKERS_OF_A_CLIENT)
            ]
            async with asyncio.TaskGroup() as group:
                for number in range(self.config.concurrency):
                    group.create_task(work(clients[number // WORKERS_OF_A_CLIENT]))
        self._tell_held(desk, stopped=bool(errors))
        if errors:
            raise errors[0]

    def _headers(self) -> dict[str, Any]:
        """Takes out what the client reads from the environment: it is OpenAI's, and would go to a server that nobody meant."""
        of_openai = urlsplit(self.config.base_url).hostname == "api.openai.com"
        return {} if of_openai else {name: openai.Omit() for name in _OF_OPENAI}

    def _tell(self, desk: Desk, key: str, answer: Answer) -> None:
        """Tells the desk of an answer, and of the refusals before it. Raises a UserError where there are only refusals."""
        self._held.append((key, answer))
        if answer.finish_reason != REFUSED:
            self._refused_in_a_row = 0
            self._hand_over(desk)
            return
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= REFUSALS_IN_A_ROW:
            raise self._refused(answer.text)

    def _tell_held(self, desk: Desk, *, stopped: bool) -> None:
        """Tells the desk of the refusals after the last answer; without any answer they say nothing of their prompts."""
        if self._held and self._refused_in_a_row < REFUSALS_IN_A_ROW:
            if desk.has_answers():
                self._hand_over(desk)
            elif not stopped:
                raise self._refused(self._held[-1][1].text)

    def _hand_over(self, desk: Desk) -> None:
        """Tells the desk of all that is held."""
        held, self._held = self._held, []
        refused = [answer.text for _, answer in held if answer.finish_reason == REFUSED]
        if refused and not self._warned_of_refusal:
            log.warning("%s: the server refuses a prompt (%s). Work goes on without such prompts.", self.name, refused[0])
            self._warned_of_refusal = True
        desk.answered(held)

    async def _answer(self, client: openai.AsyncOpenAI, request: Request, desk: Desk, stop: asyncio.Event) -> Answer | None:
        """The answer to one request, after as many attempts as it takes; None when everything was stopped in between."""
        for attempt in range(1, self.config.attempts + 1):
            try:
                return await self._attempt(client, request.conversation)
            except Refused as refusal:
                return Answer(str(refusal), REFUSED, 0, 0)
            except Failed as failure:
                desk.failed(request.key, failure.kind)
                log.debug("%s: attempt %d of %d: %s: %s", self.name, attempt, self.config.attempts, failure.kind, failure)
                nobody = failure.kind == CONNECTION and self.config.base_url not in _reached
                if attempt == self.config.attempts or (nobody and attempt >= FIRST_CONTACT_ATTEMPTS):
                    raise self._given_up(attempt, failure, nobody) from failure
                growing = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                # What the server asked for is the least; the share at random keeps requests from coming back all at once.
                pause = growing if failure.pause is None else failure.pause + 0.1 * growing
                if pause > 60:
                    log.warning("%s: the server at '%s' asks for a pause of %.0f s.", self.name, self.config.base_url, pause)
            if await _stopped_within(stop, pause):
                return None
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, client: openai.AsyncOpenAI, conversation: Conversation) -> Answer:
        try:
            # The client's own limit is on each read; a server that trickles would never meet it.
            async with asyncio.timeout(self.config.timeout):
                # The library's own typed call takes half of its time to check the body and to build objects of the answer.
                answer = await client.post("/chat/completions", cast_to=bytes, body=self._body(conversation))
        except (TimeoutError, openai.APITimeoutError) as error:
            if type(error.__cause__).__name__ == "ConnectTimeout":
                raise Failed(CONNECTION, "the connection is not accepted") from error
            raise Failed(TIMEOUT, f"no answer within {self.config.timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise Failed(CONNECTION, str(error.__cause__ or error)) from error
        except openai.APIStatusError as error:
            _reached.add(self.config.base_url)
            kind = _AGAIN.get(error.status_code) or (SERVER_ERROR if error.status_code >= 500 else None)
            words = f"HTTP {error.status_code}: {_message(error)}"
            if error.status_code in _OF_THE_PROMPT and error.code not in _OF_ALL_REQUESTS:
                raise Refused(words) from error
            if kind is None or error.code in _OF_ALL_REQUESTS:
                raise self._refused(words) from error
            raise Failed(kind, _message(error), _retry_after(error.response.headers)) from error
        except openai.APIError as error:
            _reached.add(self.config.base_url)
            raise Failed(MALFORMED, f"the body is no answer: {error}") from error
        _reached.add(self.config.base_url)
        return self._read(answer, conversation)

    def _body(self, conversation: Conversation) -> dict[str, Any]:
        config = self.config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": conversation.as_dicts(),
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.max_tokens,
        }
        if config.structured == "json_schema":
            wanted = {"name": "queries", "strict": True, "schema": prompts.schema(conversation)}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        return {name: value for name, value in {**body, **config.extra_body}.items() if value is not None}

    def _read(self, body: bytes, conversation: Conversation) -> Answer:
        """The answer in a body. Servers send what they like, so nothing is taken for granted."""
        try:
            response = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Failed(MALFORMED, f"the body is no JSON: {error}") from error
        choices = _member(response, "choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = _member(choice, "message")
        if not isinstance(message, dict):
            raise Failed(MALFORMED, "the answer has no choices")
        text = _text(message.get("content"))
        if text is None:
            raise Failed(MALFORMED, "the content of the answer is no text")
        thought = message.get("reasoning_content") or message.get("reasoning")
        if not text and thought and not self._only_thought:
            log.warning("%s: the model thinks, and no tokens are left to answer. Raise 'max_tokens', or turn it off.", self.name)
            self._only_thought = True
        usage = _member(response, "usage")
        prompt, completion = _member(usage, "prompt_tokens"), _member(usage, "completion_tokens")
        if not isinstance(prompt, int) or not isinstance(completion, int):
            if not self._usage_missing:
                log.warning("%s: the server tells no tokens; they are counted as a quarter of the characters.", self.name)
            self._usage_missing = True
            prompt, completion = sum(len(turn.content) for turn in conversation.messages) // 4, len(text) // 4
        return Answer(text, "length" if _member(choice, "finish_reason") == "length" else "stop", prompt, completion)

    def _refused(self, words: str) -> UserError:
        return UserError(
            f"engines.{self.name}: the server at '{self.config.base_url}' refuses requests for the model '{self.config.model}' "
            f"({words}). Check base_url, model, api_key and the sampling fields."
        )

    def _given_up(self, attempts: int, failure: Failed, nobody: bool) -> DatakitError:
        if nobody:
            return UserError(
                f"engines.{self.name}: no server answers at '{self.config.base_url}' ({attempts} attempts, the last one: "
                f"{failure.kind}: {failure}). Check base_url, and that the server runs. Finished answers are kept."
            )
        return BuildError(
            f"engines.{self.name}: a request to '{self.config.base_url}' failed {attempts} times (the last time: {failure.kind}: "
            f"{failure}). Finished answers are kept: run the same command again, or raise 'attempts' or 'timeout'."
        )


def run_to_end(make: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Runs a coroutine that heeds a stop signal, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(_with_signal(make, []))
        return
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(asyncio.run, _with_signal(make, running))
        try:
            future.result()
        except KeyboardInterrupt:
            for loop, stop in running:
                loop.call_soon_threadsafe(stop.set)
            raise


async def _with_signal(
    make: Callable[[asyncio.Event], Coroutine[Any, Any, None]], running: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]
) -> None:
    stop = asyncio.Event()
    running.append((asyncio.get_running_loop(), stop))
    await make(stop)


async def _stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _text(content: Any) -> str | None:
    """The text of a content: a string, nothing, or parts, of which those of type "text" count; None where it is none of these."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return None
    texts = [part.get("text") for part in content if part.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str))


def _message(error: openai.APIStatusError) -> str:
    """What the server says, in one short line."""
    body = error.body
    text = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(text or error.message).split())[:300]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: Retry-After as a number or a date (RFC 9110, 10.2.3), or OpenAI's retry-after-ms."""
    try:
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    except (KeyError, ValueError):
        pass
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        date = email.utils.parsedate_tz(value)
        return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
