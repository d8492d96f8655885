"""A model behind an address as judge: chat completions as OpenAI's servers, vLLM, llama.cpp and others have them."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from lenses.judge.questions import INSTRUCTIONS, JudgeError, Question, Verdict, digest
from lenses.judge.render import uri

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""States of a server that pass."""
LONGEST = 60.0
"""Seconds that are waited before a question is sent again, at most."""


class Endpoint:
    """A vision-language model behind an OpenAI-compatible address.

    It is shown the picture with its box, the question and the close-up, in this order.

    Parameters
    ----------
    model
        Its name there.
    url
        Of the server, up to and with the version: ``http://localhost:8000/v1``.
    key
        Name of the environment variable that holds the key.  Where it is not set none is sent.
    timeout
        Seconds for one answer.
    retries
        How often a question is sent again where the server is busy, fails or cannot be reached.
    wait
        Seconds before the first time; each further one takes twice as long, or what the server asks for.
    options
        What else is sent: ``temperature=0``, ``max_tokens=300``, ``reasoning_effort="low"``,
        ``response_format={"type": "json_object"}``, as the server knows them.

    Examples
    --------
    >>> from lenses import judge
    >>> judge.Endpoint("gpt-5", reasoning_effort="low").name                                # doctest: +SKIP
    """

    def __init__(
        self,
        model: str,
        url: str = "https://api.openai.com/v1",
        *,
        key: str = "OPENAI_API_KEY",
        timeout: float = 120,
        retries: int = 5,
        wait: float = 1.0,
        **options: Any,
    ) -> None:
        self.model, self.url, self.key, self.options = model, url.rstrip("/"), key, options
        self.timeout, self.retries, self.wait = timeout, retries, wait
        self.name = f"{model} at {self.url} {digest(INSTRUCTIONS, sorted(options.items()))}"

    def __call__(self, question: Question) -> Verdict:
        content = [
            {"type": "image_url", "image_url": {"url": uri(question.image)}},
            {"type": "text", "text": question.text},
            {"type": "image_url", "image_url": {"url": uri(question.crop)}},
        ]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], **self.options}
        return Verdict.parsed(self._sent(json.dumps(body).encode()))

    def _sent(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json"}
        if secret := os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {secret}"
        wait = self.wait
        for left in range(self.retries, -1, -1):
            request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
            asked = None
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return _answer(response.read(), self.url)
            except urllib.error.HTTPError as error:
                said = error.read()[:300].decode("utf-8", "replace")
                told = f"{error.code} {error.reason}: {said}"
                if error.code not in AGAIN:
                    hint = "" if secret else f" No key was sent: the environment variable {self.key} is not set."
                    raise JudgeError(f"{self.model} at {self.url} refuses the question: {told}.{hint}") from None
                asked = error.headers.get("Retry-After")
            except OSError as error:  # not reached, or not in time
                told = str(getattr(error, "reason", error) or type(error).__name__)
            if not left:
                break
            time.sleep(min(LONGEST, float(asked) if asked and asked.replace(".", "", 1).isdigit() else wait))
            wait *= 2
        raise JudgeError(
            f"{self.model} at {self.url} gave no answer in {1 + self.retries} attempts, the last: {told}. With cache= "
            "what was answered is kept: run the same again later."
        )


def _answer(given: bytes, url: str) -> str:
    """What a completion says; "" where the model refused or said nothing, which is no verdict."""
    try:
        message = json.loads(given)["choices"][0]["message"]
        content = message.get("content")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise JudgeError(
            f"{url} gave no chat completion but {given[:200].decode('utf-8', 'replace')!r}. The address ends with the "
            "version: http://localhost:8000/v1."
        ) from None
    if isinstance(content, list):  # in parts
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or message.get("refusal") or "")
