"""Names of the server: what comes under others, or from malformed origins, is refused."""

import argparse
import asyncio
import json

import pytest

from nnunet_plugins.label.command import add_arguments, server_names
from nnunet_plugins.label.guard import LARGEST_REQUEST, Guard
from nnunet_plugins.label.hosts import host_name
from tests.nnunet_plugins.label.test_guard import BEARER, TOKEN, ask, echo


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1:8000", "127.0.0.1"), ("[::1]:8000", "::1"), ("[::1]", "::1"),
        ("Label.Example", "label.example"), ("a:b@evil.com", ""), ("[::1", ""), ("", ""),
        ("x/y", ""), ("x?y", ""), ("x#y", ""), ("https://x", ""), (":80", ""),
    ],
)  # fmt: skip
def test_names_without_ports(host, name):
    assert host_name(host) == name


def status(host: str, names: tuple[str, ...] = (), reached: str = "127.0.0.1", **more: str):
    """Status and sentence of a request under a name."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    headers = [*BEARER, ("host", host), *more.items()]
    scope = {
        "type": "http", "method": "GET", "path": "/", "query_string": b"", "client": None,
        "server": (reached, 8000), "headers": [(k.encode(), v.encode()) for k, v in headers],
    }  # fmt: skip
    asyncio.run(Guard(echo, TOKEN, 100, ("/",), names)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize("host", ["evil.com", "evil.com:8000", "127.0.0.1.evil.com", "[::1", ""])
def test_other_names_are_refused_even_if_the_origin_fits(host):
    code, said = status(host, origin=f"http://{host}")
    assert code == 421
    assert "--allow-host" in json.loads(said)["detail"]


def test_own_names_pass():
    for host in ("127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000"):
        assert status(host)[0] == 200
    assert status("10.0.0.3:8000", reached="10.0.0.3")[0] == 200
    assert status("10.0.0.3:8000")[0] == 421
    assert status("label.example", ("label.example",), origin="https://label.example")[0] == 200
    assert status("label.example:8443", ("label.example",))[0] == 200


@pytest.mark.parametrize("origin", ["http://[::1", "http://[", "null", "http://evil.com"])
def test_other_origins_are_refused_however_they_look(origin):
    code, said = status("127.0.0.1:8000", origin=origin)
    assert code == 403
    assert "own pages" in json.loads(said)["detail"]


def test_names_are_options():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = ["--studies", ".", "--host", "Box", "--allow-host", "A.example", "--allow-host", "b:1"]
    assert server_names(parser.parse_args(given)) == ["box", "a.example", "b"]
    for wrong in ("https://a.example", "a/b", ""):
        with pytest.raises(ValueError, match="is no name"):
            server_names(parser.parse_args(["--studies", ".", "--allow-host", wrong]))


@pytest.mark.parametrize("kind", ["Multipart/Form-Data", "MULTIPART/FORM-DATA"])
def test_forms_are_known_whatever_their_capitals(kind):
    body = [b"x" * LARGEST_REQUEST, b"y"]
    headers = (*BEARER, ("content-type", f"{kind}; boundary=x"))
    assert ask(echo, "PUT", headers=headers, body=body)[0] == 200
