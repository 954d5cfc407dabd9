"""The names of the server, so that other names that lead here are no way in (DNS rebinding)."""

from collections.abc import Collection
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def host_name(host: str) -> str:
    """The name or address in a header `Host`, without its port; "" if it is none."""
    try:
        parts = urlsplit(f"//{host}")
        return (parts.hostname or "") if parts.netloc == host and "@" not in host else ""
    except ValueError:
        return ""


def is_ours(host: str, names: Collection[str], reached: str | None) -> bool:
    """Whether a request was meant for this server.

    Args:
        host: Its header.
        names: Those of the server, beside the loopback's.
        reached: The address at which it came in, which is no name that others can lend.
    """
    name = host_name(host)
    return bool(name) and name in (*LOOPBACK, *names, reached)


def same_origin(origin: str, host: str | None) -> bool:
    """Whether a page of this origin is one of the server's own."""
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False
