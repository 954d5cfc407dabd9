"""The secret that a server asks of every request."""

import hmac
import os
import secrets
from pathlib import Path

SHORTEST = 16
"""Characters of a token that is no guess."""


def new_token() -> str:
    """A token of 256 random bits."""
    return secrets.token_urlsafe(32)


def read_token(file: Path) -> str:
    """The token in a file, which only its owner may read.

    Raises:
        OSError: If there is no such file.
        ValueError: If others can read it, or its token is short or no ASCII.
    """
    if os.name == "posix" and file.stat().st_mode & 0o077:
        raise ValueError(f"others can read {file}; chmod 600 {file}")
    token = file.read_text(encoding="utf-8").strip()
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"{file} holds no token; give {SHORTEST} or more letters and digits in one line, such "
            "as openssl rand -hex 32 prints"
        )
    return token


def same(given: str, token: str) -> bool:
    """Whether they are equal; the time it takes does not tell how much of them is."""
    return hmac.compare_digest(given.encode(), token.encode())
