"""The same for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from thalweg.client.wire import (
    PLAIN,
    SESSIONS,
    URL,
    FloatArray,
    Options,
    RemoteSection,
    answer,
    async_pieces,
    check_ended,
    checked,
    headers,
    section_of,
    unreachable,
    vector_of,
    vectors_of,
)


class AsyncClient:
    """`Client` for asyncio: the same methods, as coroutines, and texts that may come from async iterators."""

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout: float = 600.0,
        retries: int = 8,
    ) -> None:
        self._options = Options(model, retries)
        self._http = httpx.AsyncClient(base_url=url, headers=headers(api_key), timeout=timeout)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connections."""
        await self._http.aclose()

    async def embed(
        self, texts: str | Sequence[str], *, prompt_name: str | None = None, dimensions: int | None = None
    ) -> FloatArray:
        """See `Client`."""
        body = self._options.texts(texts, prompt_name, dimensions)
        return vectors_of(await self.request("POST", "/v1/embeddings", json=body), single=isinstance(texts, str))

    async def embed_stream(
        self,
        text: Any,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> FloatArray:
        """See `Client`."""
        query = self._options.query(prompt=prompt, prompt_name=prompt_name, normalize=normalize, dimensions=dimensions)
        try:
            found = await self._http.post("/v1/thalweg/embed", params=query, content=async_pieces(text), headers=PLAIN)
        except httpx.HTTPError as error:
            raise unreachable(error) from error
        return vector_of(checked(found).json()["vector"])

    async def sections(
        self,
        text: Any,
        *,
        by: str = "tokens",
        every: int | None = None,
        mode: str | None = None,
        look_ahead: int = 0,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> AsyncIterator[RemoteSection]:
        """See `Client`."""
        query = self._options.query(
            by=by,
            every=every,
            mode=mode,
            look_ahead=look_ahead,
            prompt=prompt,
            prompt_name=prompt_name,
            normalize=normalize,
            dimensions=dimensions,
        )
        whole = False
        try:
            async with self._http.stream(
                "POST", "/v1/thalweg/sections", params=query, content=async_pieces(text), headers=PLAIN
            ) as response:
                if not response.is_success:
                    await response.aread()
                async for line in checked(response).aiter_lines():
                    section = section_of(line)
                    whole = section is None
                    if section is not None:
                        yield section
        except httpx.HTTPError as error:
            raise unreachable(error) from error
        check_ended(whole=whole)

    async def session(self, *, restore: str | None = None, **options: Any) -> AsyncRemoteSession:
        """See `Client`."""
        body = self._options.of(restore=restore, **options)
        found = await self.request("POST", SESSIONS, twice=False, json=body)
        return AsyncRemoteSession(self, checked(found).json()["id"])

    async def request(self, method: str, path: str, *, twice: bool = True, **arguments: Any) -> httpx.Response:
        """See `Client`."""
        n_tries = 0
        while True:
            response = failure = None
            n_tries += 1
            try:
                response = await self._http.request(method, path, **arguments)
            except httpx.HTTPError as error:
                failure = error
            pause = self._options.pause(response, failure, n_tries, twice=twice)
            if pause is None:
                return answer(response, failure)
            await asyncio.sleep(pause)


class AsyncRemoteSession:
    """`RemoteSession` for asyncio. Made by `AsyncClient.session`."""

    def __init__(self, client: AsyncClient, id: str) -> None:
        self._client, self.id = client, id

    async def append(self, text: str) -> None:
        """Read on."""
        await self._ask("POST", "/append", twice=False, json={"text": text})

    async def vector(self) -> FloatArray:
        """The vector (d,) of the text as if it ended here."""
        return vector_of((await self._ask("GET", "/vector", params={"encoding_format": "base64"}))["vector"])

    async def tokens(self) -> int:
        """Tokens of the text."""
        return int((await self._ask("GET", ""))["tokens"])

    async def fork(self) -> AsyncRemoteSession:
        """Another session at the same point."""
        return AsyncRemoteSession(self._client, (await self._ask("POST", "/fork", twice=False))["id"])

    async def save(self, name: str) -> None:
        """Keep it in the server under a name, for `AsyncClient.session(restore=…)`."""
        await self._ask("POST", "/save", json={"name": name})

    async def delete(self) -> None:
        """Forget it."""
        await self._ask("DELETE", "")

    async def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        response = checked(await self._client.request(method, f"{SESSIONS}/{self.id}{path}", **arguments))
        return response.json() if response.content else None
