"""What of a folder stays out of an image that is made of it: what nobody serves, what its owner names, and secrets.

Theory of operation. Whoever has an image reads all files in it. Names that begin with a dot (`.env`, `.git`, `.aws`), caches of Python's, and what a
`.dockerignore` of the folder names are left out, at each depth. A private key, or a file that is called as keys and credentials are, is refused: left out
silently, its owner would look for it; and it is in the wrong place.

Source: docs.docker.com, "Build context", ".dockerignore files" (patterns of Go's `filepath.Match`, and `**`).
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path, PurePosixPath
from typing import Final

from ..errors import ConfigError
from ..small_file import read_text

__all__ = ["IGNORE_FILE", "SECRET_HEAD_BYTES", "LeftOut", "check_no_secret", "check_requirements"]

IGNORE_FILE: Final = ".dockerignore"
_MOST_PATTERNS: Final = 1000
_MOST_STARS: Final = 4
"""`**` of a pattern: each multiplies the places at which a path is tried."""
_NEVER: Final = re.compile(r"\..*|__pycache__|.*\.pyc")
SECRET_HEAD_BYTES: Final = 16384
"""Of a file, that are looked at: a key is the whole of a file, or stands at its beginning."""
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----(?:\\n|\r?\n)[A-Za-z0-9+/=:, -]{16}")
"""RFC 7468, and OpenSSH's; as a file, and as a text of JSON in a service account's."""
_USER: Final = re.compile(r"https?://([^/\s@:]{0,512})(?::([^/\s@]{0,512}))?@")
_FROM_VARIABLE: Final = re.compile(r"(\$\{\w+\})*")
"""As pip takes it (pip.pypa.io, "Using environment variables")."""
_SECRET_NAMES: Final = re.compile(
    r"(?i)id_(rsa|dsa|ecdsa|ed25519)|credentials(\.(json|csv|ini|ya?ml))?|kubeconfig|.*\.kubeconfig|.*\.(p12|pfx|jks|keystore|kdbx|ppk)"
    r"|secrets?\.(json|ya?ml|toml|env)|.*\.env|terraform\.tfstate.*|client_secret.*\.json"
)
"""Names that ssh-keygen, cloud SDKs, kubectl, Terraform, Streamlit and Java give what only its owner may read."""


class LeftOut:
    """What of one folder is left out.

    Args:
        folder: as it was named; None: there is none, and only names count.

    Raises:
        ConfigError: its `.dockerignore` cannot be read.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._rules: list[tuple[re.Pattern[str], bool]] = []
        file = folder / IGNORE_FILE if folder is not None else None
        if file is None or not file.is_file():
            return
        try:
            lines = read_text(file).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read: {error}") from None
        lines = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if len(lines) > _MOST_PATTERNS:
            raise ConfigError(f"{file}: has {len(lines)} patterns; at most {_MOST_PATTERNS} are read")
        self._rules = [(_compiled(line.removeprefix("!").strip(), file), not line.startswith("!")) for line in lines]

    def names(self, path: Path) -> bool:
        """Whether a file or folder is named by what is left out.

        Args:
            path: below the folder.
        """
        if _NEVER.fullmatch(path.name):
            return True
        if not self._rules or self._folder is None:
            return False
        parts = path.relative_to(self._folder).parts
        above = [PurePosixPath(*parts[:count]).as_posix() for count in range(1, len(parts) + 1)]
        out = False
        for pattern, is_out in self._rules:  # the last one that says something of a path holds for it
            if out != is_out and any(map(pattern.fullmatch, above)):
                out = is_out
        return out

    def has(self, path: Path) -> bool:
        """Whether a file, or a folder with all that is in it, is left out: a pattern may take something in a folder back (`!name`)."""
        if not self.names(path):
            return False
        takes_back = not _NEVER.fullmatch(path.name) and any(not is_out for _, is_out in self._rules)
        return not (takes_back and path.is_dir())


def _compiled(pattern: str, file: Path) -> re.Pattern[str]:
    """Translate a pattern; it matches a path from the folder on, and so all below what it matches.

    Raises:
        ConfigError: it is none, or has too many `**`.
    """
    text = PurePosixPath("/" + pattern).as_posix().lstrip("/")
    made, at = "", 0
    if text.count("**") > _MOST_STARS:
        raise ConfigError(f"{file}: {pattern[:80]!r} has more than {_MOST_STARS} times '**'")
    while at < len(text):
        here = text[at]
        if text.startswith("**/", at):
            made, at = made + "(?:.*/)?", at + 3
        elif text.startswith("**", at):
            made, at = made + ".*", at + 2
        elif here in "*?":
            made, at = made + ("[^/]*" if here == "*" else "[^/]"), at + 1
        elif here == "[" and (end := text.find("]", at + 2)) > 0:
            within = re.sub(r"([\\\[&|~])", r"\\\1", text[at + 1 : end])
            made, at = f"{made}(?!/)[{within}]", end + 1
        elif here == "\\" and at + 1 < len(text):
            made, at = made + re.escape(text[at + 1]), at + 2
        else:
            made, at = made + re.escape(here), at + 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # of "[a--b]", which Python may come to read otherwise
            return re.compile(made, re.DOTALL)
    except (re.error, FutureWarning):
        raise ConfigError(f"{file}: {pattern[:80]!r} is no pattern") from None


def check_no_secret(file: Path, head: bytes) -> None:
    """Refuse a secret.

    Args:
        file: that would be copied.
        head: its first bytes.

    Raises:
        ConfigError: it is called as one, or holds a private key.
    """
    what = (
        "is called as keys and credentials are"
        if any(map(_SECRET_NAMES.fullmatch, (file.name, file.resolve().name)))
        else ""
    )
    if _PRIVATE_KEY.search(head[:SECRET_HEAD_BYTES]):
        what = "holds a private key"
    if what:
        raise ConfigError(
            f"{file}: {what}, and whoever has the image could read it; move it out of the folder, or name it in {IGNORE_FILE}. "
            "A secret is given to a container when it is run (a variable, a mounted file)"
        )


def check_requirements(text: str, file: Path, *, base: str) -> None:
    """Refuse credentials in requirements that stay in an image.

    Args:
        text: of the requirements file.
        file: for the message.
        base: the image that it is made from; empty: a stage of its own installs, and nothing of it stays.

    Raises:
        ConfigError: a URL in it has a password or a token.
    """
    for user, password in _USER.findall(text) if base else ():
        if not _FROM_VARIABLE.fullmatch(password or user):
            raise ConfigError(
                f"{file}: a URL in it has credentials, which would stay in an image made with --base: build without --base, where a stage of its own "
                "installs, or have pip read them from a pip.conf of the base"
            )
