"""Connections without a request, and those with one, over the loopback interface."""

import asyncio
import contextlib
import socket

import pytest

from tests.nnunet_plugins.label.conftest import needs_monai_label

pytestmark = needs_monai_label

ASKED = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HALF = b"GET / HTTP/1.1\r\nHost: x\r\nX-"


async def application(scope, receive, send):
    """Answers after a second where it is asked to, and reads no body."""
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


def served(visit, **options):
    """What a visitor, told the port, gives back."""
    import uvicorn

    from nnunet_plugins.label.server.connections import Connection

    async def run():
        listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            application, http=Connection, ws="none", lifespan="off", log_config=None, **options
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            return await asyncio.wait_for(visit(listening.getsockname()[1]), 20)
        finally:
            server.should_exit = True
            await serving

    return asyncio.run(run())


async def begin(port: int, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    return reader, writer


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection is closed."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


async def trickle(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("sent", [b"", HALF])
@pytest.mark.parametrize("goes_on", [False, True])
def test_headers_that_do_not_end_end_the_connection(monkeypatch, sent, goes_on):
    monkeypatch.setattr("nnunet_plugins.label.server.connections.PATIENCE", 0.3)

    async def visit(port):
        reader, writer = await begin(port, sent)
        task = asyncio.create_task(trickle(writer)) if goes_on else None
        answer = await asyncio.wait_for(reader.read(), 5) if not goes_on else await all_of(reader)
        if task:
            task.cancel()
        writer.close()
        return answer

    assert served(visit) == b""


def test_what_trickles_in_after_an_answer_ends_the_connection():
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"

    async def visit(port):
        reader, writer = await begin(port, request)
        first = await reader.readuntil(b"200")
        task = asyncio.create_task(trickle(writer))
        await asyncio.wait_for(all_of(reader), 10)
        task.cancel()
        writer.close()
        return first

    assert b"200" in served(visit, timeout_keep_alive=1)


def test_a_request_at_work_is_waited_for(monkeypatch):
    monkeypatch.setattr("nnunet_plugins.label.server.connections.PATIENCE", 0.2)

    async def visit(port):
        reader, writer = await begin(port, ASKED.replace(b"/ ", b"/slow ", 1))
        answer = await reader.readuntil(b"done")
        writer.write(ASKED)
        again = await reader.readuntil(b"done")
        writer.close()
        return answer, again

    assert all(b"200" in answer for answer in served(visit))


def test_crowds_without_a_request_make_room(monkeypatch):
    monkeypatch.setattr("nnunet_plugins.label.server.connections.MOST", 5)

    async def visit(port):
        working, worker = await begin(port, ASKED.replace(b"/ ", b"/slow ", 1))
        await asyncio.sleep(0.1)
        crowd = [await begin(port, HALF) for _ in range(20)]
        await asyncio.sleep(0.1)
        reader, writer = await begin(port, ASKED)
        answers = [await working.readuntil(b"done"), await reader.readuntil(b"done")]
        gone = sum(other.at_eof() or other.exception() is not None for other, _ in crowd)
        for _, end in (*crowd, (working, worker), (reader, writer)):
            end.close()
        return answers, gone

    answers, gone = served(visit)
    assert all(b"200" in answer for answer in answers)
    assert gone >= 16
