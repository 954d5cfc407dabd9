"""What stands before the server: host, token, size and origin of every request, and their log.

Plain ASGI, in front of whatever is served, so that no address is forgotten.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, NoReturn

from nnunet_plugins.label.hosts import is_ours, same_origin
from nnunet_plugins.label.tokens import same

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_REQUEST = 2**20
"""Bytes of a request that carries no file."""
PATIENCE = 60.0
"""Seconds that the next piece of a request may take."""
HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy",
     b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)  # fmt: skip
"""On every answer: patients' data are not kept by browsers, and pages load nothing from outside."""

logger = logging.getLogger(__name__)


class Refusal(Exception):
    """A request that is not served: status, and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Guard:
    """An ASGI application that lets requests with the token through to another.

    The token comes as `Authorization: Bearer TOKEN` alone: a query ends in logs, and browsers send
    the cookies of one server to all that share its host. There is no CORS header, so browsers give
    nothing to pages of other origins, and what these send is refused; so is what comes under
    another name than the server's.

    Args:
        app: What is served.
        token: The secret.
        largest_upload: Bytes of a request with files.
        open_paths: Addresses that are read without the token: files that hold no secret.
        hosts: Names of the server beside the loopback's, in lower case.
    """

    def __init__(
        self,
        app: Application,
        token: str,
        largest_upload: int,
        open_paths: Collection[str] = (),
        hosts: Collection[str] = (),
    ) -> None:
        self.app, self.token, self.largest_upload = app, token, largest_upload
        self.open_paths, self.hosts = frozenset(open_paths), frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(scope, send)
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        try:
            self._check_host(headers, scope)
            if scope["method"] not in ("GET", "HEAD") or scope["path"] not in self.open_paths:
                self._check_token(headers)
            _check_origin(headers)
            counted = _Counted(receive, self._limit(headers), answer)
            await self.app(scope, counted, answer)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except Exception:  # the last word; what raised says more in the log
            logger.exception("%s %s", scope["method"], scope["path"])
            await answer.refuse(Refusal(500, "the server failed at this; its log says where"))
        finally:
            answer.log()

    def _check_host(self, headers: dict[str, str], scope: Scope) -> None:
        """Refuse other names, to which a page may have let its own lead; HTTP/1.0 needs none."""
        host, reached = headers.get("host"), (scope.get("server") or (None,))[0]
        if host is not None and not is_ours(host, self.hosts, reached):
            raise Refusal(
                421,
                f"this server does not know itself as {host[:80]!r}; use the address that it "
                "printed, or start it with --allow-host and that name",
            )

    def _check_token(self, headers: dict[str, str]) -> None:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not same(given.strip(), self.token):
            raise Refusal(
                401,
                "this server wants its token; send the header Authorization: Bearer TOKEN, or open "
                "the address that it printed when it started",
            )

    def _limit(self, headers: dict[str, str]) -> int:
        """Bytes that the body may have.

        Raises:
            Refusal: If it announces more.
        """
        uploads = headers.get("content-type", "").lower().startswith("multipart/form-data")
        limit = self.largest_upload if uploads else LARGEST_REQUEST
        announced = headers.get("content-length", "0")
        if not (announced.isascii() and announced.isdigit()):
            raise Refusal(400, f"Content-Length {announced!r} is no number of bytes")
        if int(announced) > limit:
            raise _too_large(limit)
        return limit


class _Counted:
    """A request's body, of which no more than a limit is read, and not for ever."""

    def __init__(self, receive: Receive, limit: int, answer: "_Answer") -> None:
        self.receive, self.left, self.limit, self.answer = receive, limit, limit, answer
        self.complete = False

    async def __call__(self) -> MutableMapping[str, Any]:
        if self.complete:  # what comes now is the end of the connection
            return await self.receive()
        try:
            message = await asyncio.wait_for(self.receive(), PATIENCE)
        except TimeoutError:
            self._end(Refusal(408, f"nothing came for {PATIENCE:.0f} seconds; send it again"))
        self.complete = not message.get("more_body", False)
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            self._end(_too_large(self.limit))
        return message

    def _end(self, refusal: Refusal) -> NoReturn:
        self.answer.instead = refusal  # whatever the application makes of the exception
        raise refusal


class _Answer:
    """The way of an answer: our headers are added, and a refusal takes its place."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self.send = scope, send
        self.status = 0
        self.instead: Refusal | None = None
        self.began = time.monotonic()

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if self.instead is not None and not self.status:
            raise self.instead
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await self.send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with a sentence, unless an answer is on its way."""
        if self.status:
            return
        self.instead = None
        body = json.dumps({"detail": refusal.sentence}).encode()
        headers = [(b"content-type", b"application/json")]
        if refusal.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})

    def log(self) -> None:
        """One line; never the query, which may name a patient."""
        client = (self.scope.get("client") or ("?",))[0]
        milliseconds = 1000 * (time.monotonic() - self.began)
        path = self.scope["path"].encode("unicode_escape").decode()
        logger.info("%s %s %s %d %.0f ms", client, self.scope["method"], path, self.status,
                    milliseconds)  # fmt: skip


def _check_origin(headers: dict[str, str]) -> None:
    """Refuse what a page of another origin sends; programs send no origin."""
    origin = headers.get("origin")
    if origin is not None and not same_origin(origin, headers.get("host")):
        raise Refusal(403, f"a page of {origin[:80]} sent this; use the server's own pages")


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the request is larger than {limit / 2**20:.0f} MiB, the most taken here")
