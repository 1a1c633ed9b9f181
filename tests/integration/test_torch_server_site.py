"""The HTTP side of engine=transformers with a model that is mere arithmetic: no PyTorch, memory at will."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from llmpilot.engine.torch_server.batching import Job
from llmpilot.engine.torch_server.loop import OutOfMemoryError
from llmpilot.engine.torch_server.site import Served, Site

SERVED = Served("sums", 512, 64, 128, 8, 64)
LACK = "CUDA out of memory. Tried to allocate 2.00 GiB"


class Sums:
    """Token k of an answer is the sum of its prompt and k. A prompt with `NO_ROOM` finds no memory, one
    with `LATER_NONE` none for its third token, and one with `BUG` breaks it."""

    NO_ROOM, LATER_NONE, BUG = 501, 502, 503

    def prefill(self, jobs: list[Job]) -> list[int]:
        if any(self.BUG in job.prompt for job in jobs):
            raise ZeroDivisionError("a bug")
        self._require(all(self.NO_ROOM not in job.prompt for job in jobs))
        return [sum(job.prompt) % 512 for job in jobs]

    def decode(self, jobs: list[Job]) -> list[int]:
        self._require(all(self.LATER_NONE not in job.prompt or job.made < 2 for job in jobs))
        return [(sum(job.prompt) + job.made) % 512 for job in jobs]

    def release(self, job: Job) -> None:
        pass

    def _require(self, enough: bool) -> None:
        if not enough:
            raise OutOfMemoryError(LACK)


Asked = Callable[..., Awaitable[httpx.Response]]


def served(test: Callable[[Asked, Site], Awaitable[None]]) -> None:
    async def run() -> None:
        site = Site(SERVED, Sums())
        await site.start("127.0.0.1", 0)
        async with httpx.AsyncClient(base_url=site.url, trust_env=False, timeout=20) as http:

            async def ask(prompt: list[int], **fields: Any) -> httpx.Response:
                body = {"model": "sums", "prompt": prompt, "max_tokens": 4, "return_token_ids": True} | fields
                return await http.post("/v1/completions", json=body)

            try:
                await test(ask, site)
            finally:
                await site.stop()

    asyncio.run(run())


def ids(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    tokens: list[int] = answer.json()["choices"][0]["token_ids"]
    return tokens


def test_many_at_once_get_their_own_tokens() -> None:
    async def test(ask: Asked, site: Site) -> None:
        answers = await asyncio.gather(*(ask([n, 1], max_tokens=10 + n) for n in range(40)))
        for n, answer in enumerate(answers):
            assert ids(answer) == [(n + 1 + k) % 512 for k in range(10 + n)]

    served(test)


def test_lack_of_memory_fails_that_request_and_the_server_lives() -> None:
    async def test(ask: Asked, site: Site) -> None:
        refused = await ask([1, Sums.NO_ROOM])
        assert refused.status_code == 500
        assert refused.json()["error"] == {
            "message": LACK,
            "type": "server_error",
            "param": None,
            "code": "out_of_memory",
        }
        broken = await ask([1, Sums.LATER_NONE], stream=True)
        events = [line.removeprefix("data: ") for line in broken.text.splitlines() if line]
        assert [json.loads(event)["choices"][0]["token_ids"] for event in events[:2]] == [[503], [504]]
        assert json.loads(events[2])["error"]["message"] == LACK
        assert ids(await ask([1, 2])) == [3, 4, 5, 6]
        # What ran when another found no memory is not touched.
        both = await asyncio.gather(ask([7], max_tokens=40), ask([1, Sums.LATER_NONE]))
        assert ids(both[0]) == [7 + k for k in range(40)]

    served(test)


def test_a_bug_of_the_model_is_known_to_the_server(capfd: pytest.CaptureFixture[str]) -> None:
    async def test(ask: Asked, site: Site) -> None:
        lost = asyncio.ensure_future(ask([Sums.BUG]))
        assert isinstance(await asyncio.wait_for(site.ended, 20), ZeroDivisionError)
        lost.cancel()

    served(test)
    assert "ZeroDivisionError: a bug" in capfd.readouterr().err


def test_it_speaks_in_its_own_name() -> None:
    async def test(ask: Asked, site: Site) -> None:
        answer = await ask([1, 2])
        assert answer.headers["server"].startswith("llm-pilot-transformers/")
        assert answer.json()["system_fingerprint"] == "llm-pilot-transformers"
        async with httpx.AsyncClient(base_url=site.url, trust_env=False, timeout=20) as http:
            (card,) = (await http.get("/v1/models")).json()["data"]
            assert card["owned_by"] == "llm-pilot-transformers"
            assert card["meta"] == {"n_vocab": SERVED.vocabulary_size}
            said = [await ask([1], echo=True), await http.get("/metrics"), await http.get("/health")]
            assert [answer.status_code for answer in said] == [400, 200, 200]
            assert not any("emulat" in answer.text + str(answer.headers) for answer in said)
            assert "\nvllm:generation_tokens_total{" in said[1].text
            refused = await http.get("/v1/completions")
            assert (refused.status_code, refused.headers["allow"]) == (405, "POST")

    served(test)
