"""Keep credentials out of what is written for people: logs, errors, settings that are shown.

Secrets travel in files here, and no setting takes one by value. What is hidden is what people put elsewhere all the same: passwords and signatures in
URLs, tokens in queries, an Authorization field that somebody's error quotes, settings of a runtime that are called `password`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["HIDDEN", "fault_without_content", "hide", "hide_named", "is_secret_name"]

HIDDEN: Final = "***"

_WORDS: Final = (
    "token|secret|passw|pwd|signature|sig|credential|api_?key|access_?key|account_?key|private_?key|auth|sas"
)
_NAME: Final = re.compile(rf"(?i)(?:^|[^a-z0-9])(?:{_WORDS})")
# Bounded repeats keep each of these linear in the text, which may be a client's.
_IN_URL: Final = re.compile(r"(?<=://)([^/@\s:'\"]{0,256}):[^/\s'\"]{1,512}@")
"""RFC 3986, 3.2.1: userinfo, up to the last `@`: people leave those of passwords as they are."""
_TOKEN_IN_URL: Final = re.compile(r"(?<=://)[^/@\s:'\"]{16,256}@")
"""A name so long is a token, as GitHub and package indexes take one."""
_IN_TEXT: Final = re.compile(
    r"(?i)(?<![^\s,({\"'])((?:[a-z0-9_]{0,48}_)?(?:password|passwd|pwd|secret|secret_access_key|session_token)=)[^\s,;)}\"']+"
)
"""As connection strings of databases, and settings that an error quotes, have them."""
_IN_QUERY: Final = re.compile(
    rf"(?i)([?&;](?:key|[^=&;?#\s'\"]{{0,48}}?(?:{_WORDS})[^=&;?#\s'\"]{{0,48}})=)[^&;#\s'\"]+"
)
_AUTHORIZATION: Final = re.compile(r"(?i)\b(bearer|basic(?=\s+\S*[0-9=]))(\s+|%20)[A-Za-z0-9._~+/=-]{8,}")
"""RFC 9110, 11.4: scheme and token68; eight characters, so that 'Bearer TOKEN' of our own messages stays."""
_PRIVATE_KEY: Final = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL
)


def hide(text: str) -> str:
    """Take credentials out of a text for people.

    Example:
        >>> hide("https://me:hunter2@models.example/m?X-Amz-Signature=abc&v=1")
        'https://me:***@models.example/m?X-Amz-Signature=***&v=1'
    """
    if "://" in text:
        text = _TOKEN_IN_URL.sub(f"{HIDDEN}@", _IN_URL.sub(rf"\1:{HIDDEN}@", text))
    if "=" in text:
        text = _IN_QUERY.sub(rf"\1{HIDDEN}", text)
        small = text.lower()
        if "passw" in small or "pwd=" in small or "secret" in small or "token=" in small:
            text = _IN_TEXT.sub(rf"\1{HIDDEN}", text)
    if "earer" in text or "asic" in text or "EARER" in text or "ASIC" in text:
        text = _AUTHORIZATION.sub(rf"\1\2{HIDDEN}", text)
    return _PRIVATE_KEY.sub(rf"\1{HIDDEN}\2", text) if "PRIVATE KEY" in text else text


def is_secret_name(name: str) -> bool:
    """Tell whether a setting of this name is likely to hold a credential."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return _NAME.search(spaced) is not None and not spaced.lower().endswith(("file", "path", "routes", "form"))


def hide_named(name: str, value: Any) -> Any:
    """Give a setting's value as it may be shown: nothing of one whose name says that it is secret, and of others what `hide` leaves."""
    if is_secret_name(name) and value not in (None, "", (), [], {}):
        return HIDDEN
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {key: hide_named(str(key), each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_named(name, each) for each in value]
    return value


def fault_without_content(error: Exception) -> str:
    """Say where a file of secrets is damaged, and nothing of what is there; the message of a YAML parser quotes the line.

    Args:
        error: of reading or parsing the file.
    """
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        problem = str(getattr(error, "problem", "") or "damaged").partition("'")[0].strip()  # in quotes: of the file
        return f"not YAML: line {mark.line + 1}, column {mark.column + 1}: {problem}"
    return getattr(error, "strerror", None) or (
        "it is no UTF-8" if isinstance(error, UnicodeDecodeError) else "not YAML"
    )
