"""Bearer tokens (RFC 6750): a set of them that may be exchanged while the server runs, and the file that they come from.

Only digests are kept. What a request brings is digested too, and compared with every one of them in constant time: how long an answer takes
tells neither how much of a token was right nor which one it was.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ...errors import ConfigError
from ...small_file import read_text

__all__ = ["Tokens", "check_token", "has_credentials", "read_tokens"]

_LEAST: Final = 16
"""Characters; `openssl rand -hex 16` gives 32."""
_MOST_CHARACTERS: Final = 8192
"""A proxy's and server's usual limit of one header field (nginx, large_client_header_buffers); a JWT has some 1000."""
_MOST: Final = 1024
"""Tokens of a file: each costs a comparison a request (about 0.3 us)."""


class Tokens:
    """Tokens of which a request must carry one.

    Args:
        tokens: in plain text; not kept.
        file: where they come from, to be read again; None: they stay as they are.
        where: names the setting, for messages.
    """

    __slots__ = ("_digests", "file", "where")

    def __init__(self, tokens: Iterable[str] = (), *, file: Path | None = None, where: str = "") -> None:
        self._digests = tuple(map(_digest, tokens))
        self.file = file
        self.where = where

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, authorization: str | None) -> bool:
        """Tell whether a request carries one of them.

        Args:
            authorization: the HTTP field or gRPC metadata of this name; None where there is none.
        """
        scheme, _, given = (authorization or "").partition(" ")
        came = _digest(given.strip())
        good = False
        for known in self._digests:  # all of them, also after one that matches
            good |= hmac.compare_digest(came, known)
        return good and scheme.lower() == "bearer"

    def reload(self) -> None:
        """Read the file again; from the next request on its tokens count. May be called on any thread.

        Raises:
            ConfigError: the file is not there or holds no tokens; those that were read before stay.
        """
        if self.file is not None:
            self._digests = tuple(map(_digest, read_tokens(self.file, self.where)))


def has_credentials(authorization: str | None) -> bool:
    """Tell whether a request brings credentials at all, good or not."""
    return bool((authorization or "").partition(" ")[2])


def read_tokens(file: Path, where: str) -> tuple[str, ...]:
    """Read a file of tokens, one a line; empty lines and those that begin with `#` are none.

    Args:
        file: the file.
        where: begins each message.

    Raises:
        ConfigError: it cannot be read, holds none, or a line is no token. No message tells a token.
    """
    try:
        lines = read_text(file).splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: is no text in UTF-8; one token a line was expected") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None
    tokens = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not 1 <= len(tokens) <= _MOST:
        raise ConfigError(f"{where}: holds {len(tokens)} tokens; 1 to {_MOST} were expected, one a line")
    for number, token in enumerate(tokens, 1):
        check_token(token, f"{where}: token {number}" if len(tokens) > 1 else where)
    return tuple(tokens)


def check_token(token: str, where: str) -> None:
    """Refuse what is too short to be a secret, or cannot be sent.

    Raises:
        ConfigError: which does not tell it.
    """
    if not _LEAST <= len(token) <= _MOST_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{where}: holds {len(token)} characters; a token is one line of at least {_LEAST} ASCII characters without spaces, "
            f"at most {_MOST_CHARACTERS}"
        )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
