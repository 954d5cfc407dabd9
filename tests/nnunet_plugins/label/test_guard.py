"""The guard and what requests may hold, without any server."""

import asyncio
import json
import os

import pytest

from nnunet_plugins.label.expressions import find_expression
from nnunet_plugins.label.guard import LARGEST_REQUEST, Guard
from nnunet_plugins.label.names import check_name, confined, ending_of
from nnunet_plugins.label.options import flag, read_params, training_options
from nnunet_plugins.label.tokens import new_token, read_token, same
from nnunet_plugins.label.video.choices import read_choices

TOKEN = "a" * 40
LIMIT = 4 * LARGEST_REQUEST


async def echo(scope, receive, send):
    """Reads the whole body and answers with its length."""
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


async def swallow(scope, receive, send):
    """Answers 400 whatever goes wrong while it reads, as FastAPI does."""
    try:
        await receive()
        status = 200
    except Exception:
        status = 400
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def broken(scope, receive, send):
    raise KeyError("secret of the house")


def ask(app=echo, method="GET", path="/", query=b"", headers=(), body=(b"",)):
    """Status, headers and body of a request through the guard."""
    sent, parts = [], list(body)

    async def receive():
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "query_string": query,
        "headers": [(k.encode(), v.encode()) for k, v in headers], "client": ("127.0.0.1", 1),
    }  # fmt: skip
    asyncio.run(Guard(app, TOKEN, LIMIT)(scope, receive, send))
    start, *rest = sent
    return start["status"], dict(start["headers"]), b"".join(m["body"] for m in rest)


BEARER = (("authorization", f"Bearer {TOKEN}"),)


@pytest.mark.parametrize(
    "headers",
    [
        (), (("authorization", "Bearer"),), (("authorization", f"Bearer {TOKEN}x"),),
        (("authorization", f"Basic {TOKEN}"),), (("cookie", f"mambamed_label={TOKEN}"),),
        (("authorization", f"Bearer {TOKEN[:-1]}é"),), (("cookie", f"token={TOKEN}"),),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/info/", "/reload", "/logs/", "/static/x", "/openapi.json"])
def test_without_the_token_nothing_is_served(headers, path):
    status, answered, body = ask(path=path, headers=headers)
    assert status == 401
    assert answered[b"www-authenticate"] == b"Bearer"
    assert "Authorization: Bearer" in json.loads(body)["detail"]


@pytest.mark.parametrize("headers", [BEARER, (("authorization", f"bearer {TOKEN}"),)])
def test_with_the_token_it_is(headers):
    status, answered, _ = ask(headers=headers)
    assert status == 200
    assert answered[b"cache-control"] == b"no-store"
    assert not any(name.startswith(b"access-control") for name in answered)


def test_a_token_in_the_address_opens_nothing():
    for path in ("/", "/info/"):
        assert ask(path=path, query=f"token={TOKEN}".encode())[0] == 401


def test_pages_of_other_origins_are_refused_even_with_the_token():
    host = ("host", "127.0.0.1:8000")
    own = ask(headers=(*BEARER, host, ("origin", "http://127.0.0.1:8000")))
    other = ask(headers=(*BEARER, host, ("origin", "http://evil.example")))
    null = ask(headers=(*BEARER, host, ("origin", "null")))
    assert (own[0], other[0], null[0]) == (200, 403, 403)


@pytest.mark.parametrize("app", [echo, swallow])
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "in pieces"])
def test_large_requests_are_refused(app, announced):
    body = [b"x" * LARGEST_REQUEST, b"y"]
    length = (("content-length", str(LARGEST_REQUEST + 1)),) if announced else ()
    if app is swallow:
        body = [b"".join(body)]
    status, _, said = ask(app, "POST", headers=(*BEARER, *length), body=body)
    assert status == 413
    assert b"1 MiB" in said
    files = (("content-type", "multipart/form-data; boundary=x"),)
    assert ask(echo, "PUT", headers=(*BEARER, *files), body=body)[0] == 200


def test_a_request_that_never_ends_is_ended(monkeypatch):
    monkeypatch.setattr("nnunet_plugins.label.guard.PATIENCE", 0.01)
    sent = []

    async def receive():
        await asyncio.sleep(5)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/", "query_string": b"", "client": None,
        "headers": [(b"authorization", f"Bearer {TOKEN}".encode())],
    }  # fmt: skip
    asyncio.run(Guard(swallow, TOKEN, LIMIT)(scope, receive, send))
    assert sent[0]["status"] == 408


def test_a_length_that_is_no_number_is_refused():
    assert ask(headers=(*BEARER, ("content-length", "²")))[0] == 400


def test_what_fails_inside_is_a_sentence_without_details(caplog):
    status, _, body = ask(broken, headers=BEARER)
    assert status == 500
    assert b"secret" not in body
    assert "secret of the house" in caplog.text


def test_the_log_never_holds_the_token(caplog):
    caplog.set_level("INFO")
    ask(query=f"token={TOKEN}".encode())
    ask(path="/info\n/x", headers=BEARER)
    assert TOKEN not in caplog.text
    assert "/info\\n/x 200" in caplog.text


def test_websockets_are_closed():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(echo, TOKEN, LIMIT)({"type": "websocket"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    "value",
    [
        "$__import__('os').system('id')", " \t$x", "@network", "%/etc/passwd", {"a": ["b", ["$x"]]},
        {"a": {"$x": 1}}, '{"a": "$x"}', ' ["@a"]', '"%b"', {"p": '{"q": "[\\"$x\\"]"}'},
        {"_target_": "os.system"}, '{"_target_": "os.system"}', {"a": 1, "b": ("c", "$")},
    ],
)  # fmt: skip
def test_expressions_are_found_wherever_they_are(value):
    assert find_expression(value) is not None


@pytest.mark.parametrize(
    "value",
    [
        None, 3, "liver", "costs 5$", "a@b", "50%", {"a": [1, 2.5, True]}, "{no json", "",
        "[" * 10**5,
    ],
)  # fmt: skip
def test_harmless_values_pass(value):
    assert find_expression(value) is None


def test_depth_does_not_matter():
    value: object = "$x"
    for _ in range(100_000):
        value = [value]
    assert find_expression(value) == "$x"


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "a..b", "x" * 129, "a\n",
        "a\x00", "ä", "a.nii.gz", "a.mp4", "a b", "-a", "a.nii",
    ],
)  # fmt: skip
def test_names_that_are_paths_or_worse_are_refused(name):
    with pytest.raises(ValueError, match=r"cannot be the name|holds the ending"):
        check_name(name, "a study")


@pytest.mark.parametrize("name", ["a", "case_01-b", "1.2.840.113", "Anna_2", "a.niix"])
def test_plain_names_pass(name):
    assert check_name(name, "a study") == name


def test_nothing_leads_out_of_the_folder(tmp_path):
    inside = tmp_path / "studies"
    inside.mkdir()
    (tmp_path / "secret").touch()
    (inside / "file").touch()
    os.symlink(tmp_path / "secret", inside / "link")
    os.symlink(tmp_path, inside / "folder")
    os.symlink("loop", inside / "loop")
    os.symlink(inside / "file", inside / "good")
    assert confined(inside, "file") == inside / "file"
    assert confined(inside, "good") == inside / "file"
    for parts in (
        ("link",), ("folder", "secret"), ("..", "secret"), ("/etc/passwd",), (".",), ("",),
        ("a\x00b",),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="name a study"):
            confined(inside, *parts)


def test_endings_are_those_allowed():
    assert ending_of("A.NII.GZ", (".nii.gz", ".nii")) == ".nii.gz"
    for name in ("a.exe", "a.nii.gz.sh", "", "nii"):
        with pytest.raises(ValueError, match="not of a type"):
            ending_of(name, (".nii.gz", ".nii"))


def test_tokens(tmp_path):
    assert len(new_token()) >= 40
    assert new_token() != new_token()
    assert same("a", "a")
    assert not same("é", "a")
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    assert read_token(file) == TOKEN
    file.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        read_token(file)
    file.chmod(0o600)
    for content in ("short", "", "two words of a token", "ü" * 20):
        file.write_text(content)
        with pytest.raises(ValueError, match="no token"):
            read_token(file)


@pytest.mark.parametrize(
    "params",
    [
        {"max_epochs": 0}, {"max_epochs": 1.5}, {"max_epochs": True}, {"max_epochs": "3"},
        {"max_epochs": 10**9}, {"learning_rate": -1}, {"learning_rate": float("nan")},
        {"learning_rate": float("inf")}, {"learning_rate": [1]}, {"learning_rate": 10**400},
        {"learning_rate": -(10**400)},
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(params):
    with pytest.raises(ValueError, match=next(iter(params))):
        training_options(params)
    if "learning_rate" in params:
        with pytest.raises(ValueError, match="learning_rate"):
            read_choices(params)


def test_of_a_request_only_the_options_are_taken():
    params = {
        "max_epochs": 3,
        "learning_rate": 0.1,
        "gpus": "0",
        "bundle_path": "/tmp",
        "device": 1,
    }
    assert training_options(params) == {"max_epochs": 3, "learning_rate": 0.1}
    assert read_params("") == {}
    assert flag({"save_label": "True"}, "save_label")
    assert not flag({}, "save_label")
    for text in ("[1]", "{", "3", "[" * 100_000):
        with pytest.raises(ValueError, match="params"):
            read_params(text)
    with pytest.raises(ValueError, match="save_label"):
        flag({"save_label": 3}, "save_label")
