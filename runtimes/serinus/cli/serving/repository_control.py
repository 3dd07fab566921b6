"""From the settings to who may load and unload models by request.

`auto` is off unless a model repository is named. On loopback that is enough. Elsewhere a token is wanted, or the word `open`: models
that anybody may exchange are nobody's wish, and no default.

MLServer's variables are the exception, because Seldon Core and KServe set them: `MLSERVER_LOAD_MODELS_AT_STARTUP=false` beside a repository is
how they start a server that their agent, in the same pod, fills by load requests without a token, while the kubelet probes the pod's
address. Whoever sets it asks for that; it counts as `open`, and a NetworkPolicy must keep others from these ports. The same in a file
does not count: what lies beside models must not open the server that serves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ...dataplane.repository_access import RepositoryAccess
from ...errors import ConfigError
from ...settings import is_loopback
from .options import Parsed

__all__ = ["TOKEN_VARIABLE", "repository_access"]

TOKEN_VARIABLE: Final = "SERINUS_REPOSITORY_TOKEN"  # noqa: S105 # a name
_LEAST_TOKEN: Final = 16
"""Characters; `openssl rand -hex 16` gives 32."""
_OWNERS: Final = ("repository_control", "repository_token_file")


def repository_access(parsed: Parsed, environment: Mapping[str, str]) -> RepositoryAccess:
    """Settle it.

    Args:
        parsed: all settings.
        environment: may hold the token.

    Raises:
        ConfigError: the settings contradict each other, ask for what is not safe without saying so, or the token cannot be read.
    """
    values = parsed.values
    chosen, host = values["repository_control"], values["host"]
    _check_sources(parsed)
    if chosen == "off":
        return RepositoryAccess(reason="it was switched off with --repository_control off")
    token = _token(values["repository_token_file"], environment)
    if chosen == "open":
        if token:
            raise ConfigError(
                "--repository_control open takes no token; use --repository_control on to ask for the one that is set"
            )
        return RepositoryAccess(mode="open")
    asked = chosen == "on" or bool(token) or bool(values["model_repository"])
    if not asked:
        return RepositoryAccess()
    if token:
        return RepositoryAccess(mode="token", token=token)
    if is_loopback(host):
        return RepositoryAccess(mode="loopback")
    empty = not values["load_models_at_startup"]
    if chosen == "auto" and empty and parsed.sources["load_models_at_startup"].startswith("MLSERVER_"):
        return RepositoryAccess(mode="open")
    reason = f"the server listens on {host}, where load and unload need --repository_token_file FILE, or --repository_control open"
    if chosen == "on" or empty:
        why = (
            "--repository_control on"
            if chosen == "on"
            else "--load_models_at_startup false leaves all models to load requests"
        )
        raise ConfigError(f"{why}: {reason}")
    return RepositoryAccess(reason=reason)


def _check_sources(parsed: Parsed) -> None:
    """Refuse to be opened by a file that was found beside the models: who brings a model does not own the server."""
    if parsed.values["settings"]:
        return
    for name in _OWNERS:
        source = parsed.sources[name]
        if source.endswith("settings.json"):
            raise ConfigError(
                f"{source}: {name} is not taken from a file beside the models; give --{name}, or name the file with --settings"
            )


def _token(file: str | None, environment: Mapping[str, str]) -> str:
    """Read the token; empty where there is none."""
    if file is not None:
        where = f"--repository_token_file {file}"
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    else:
        where = TOKEN_VARIABLE
        token = environment.get(TOKEN_VARIABLE, "").strip()
        if not token:
            return ""
    if len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{where}: holds {len(token)} characters; a token is one line of at least {_LEAST_TOKEN} ASCII characters without spaces"
        )
    return token
