"""A server's vectors from another process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
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
    check_ended,
    checked,
    headers,
    pieces,
    section_of,
    unreachable,
    vector_of,
    vectors_of,
)


class Client:
    """Asks a server that `thalweg serve` runs. One can be used by several threads.

    Requests that the server has no room for are sent again, as its Retry-After says. Texts that are streamed are not,
    as their pieces are gone.

    Args:
        url: of the server. api_key: what it asks for. model: the name of one of its models; None is its first.
        timeout: seconds without any answer. retries: further tries of one request.
    """

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
        self._http = httpx.Client(base_url=url, headers=headers(api_key), timeout=timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        self._http.close()

    def embed(
        self, texts: str | Sequence[str], *, prompt_name: str | None = None, dimensions: int | None = None
    ) -> FloatArray:
        """The vectors (n, d) of texts, or (d,) of one.

        Raises:
            EndpointError: the server cannot be reached or says no.
        """
        body = self._options.texts(texts, prompt_name, dimensions)
        return vectors_of(self.request("POST", "/v1/embeddings", json=body), single=isinstance(texts, str))

    def embed_stream(
        self,
        text: Any,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> FloatArray:
        """The vector (d,) of a text of any length, which is sent as it comes: pieces of str or UTF-8, or an open file.

        Raises as `embed` does.
        """
        query = self._options.query(prompt=prompt, prompt_name=prompt_name, normalize=normalize, dimensions=dimensions)
        try:
            found = self._http.post("/v1/thalweg/embed", params=query, content=pieces(text), headers=PLAIN)
        except httpx.HTTPError as error:
            raise unreachable(error) from error
        return vector_of(checked(found).json()["vector"])

    def sections(
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
    ) -> Iterator[RemoteSection]:
        """The sections of a text, as `Embedder.encode_sections` gives them. The whole text is sent before the first of
        them is read. Raises as `embed` does."""
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
            with self._http.stream(
                "POST", "/v1/thalweg/sections", params=query, content=pieces(text), headers=PLAIN
            ) as response:
                if not response.is_success:
                    response.read()
                for line in checked(response).iter_lines():
                    section = section_of(line)
                    whole = section is None
                    if section is not None:
                        yield section
        except httpx.HTTPError as error:
            raise unreachable(error) from error
        check_ended(whole=whole)

    def session(self, *, restore: str | None = None, **options: Any) -> RemoteSession:
        """A text that grows in the server. restore: the name of a saved one. The options are those of
        `POST /v1/thalweg/sessions`. Raises as `embed` does."""
        found = self.request("POST", SESSIONS, twice=False, json=self._options.of(restore=restore, **options))
        return RemoteSession(self, checked(found).json()["id"])

    def request(self, method: str, path: str, *, twice: bool = True, **arguments: Any) -> httpx.Response:
        """A request, sent until there is an answer.

        Args:
            twice: whether it may be carried out twice. arguments: of httpx.

        Raises:
            EndpointError: the server cannot be reached.
        """
        n_tries = 0
        while True:
            response = failure = None
            n_tries += 1
            try:
                response = self._http.request(method, path, **arguments)
            except httpx.HTTPError as error:
                failure = error
            pause = self._options.pause(response, failure, n_tries, twice=twice)
            if pause is None:
                return answer(response, failure)
            time.sleep(pause)


class RemoteSession:
    """A session in a server; see `thalweg.Session`. Made by `Client.session`."""

    def __init__(self, client: Client, id: str) -> None:
        self._client, self.id = client, id

    def append(self, text: str) -> None:
        """Read on."""
        self._ask("POST", "/append", twice=False, json={"text": text})

    def vector(self) -> FloatArray:
        """The vector (d,) of the text as if it ended here."""
        return vector_of(self._ask("GET", "/vector", params={"encoding_format": "base64"})["vector"])

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return int(self._ask("GET", "")["tokens"])

    def fork(self) -> RemoteSession:
        """Another session at the same point."""
        return RemoteSession(self._client, self._ask("POST", "/fork", twice=False)["id"])

    def save(self, name: str) -> None:
        """Keep it in the server under a name, for `Client.session(restore=…)`."""
        self._ask("POST", "/save", json={"name": name})

    def delete(self) -> None:
        """Forget it."""
        self._ask("DELETE", "")

    def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        response = checked(self._client.request(method, f"{SESSIONS}/{self.id}{path}", **arguments))
        return response.json() if response.content else None
