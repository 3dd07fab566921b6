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

from ...dataplane.access.access_tokens import Tokens, check_token, read_tokens
from ...dataplane.access.repository_access import RepositoryAccess
from ...errors import ConfigError
from ...server.request_access import KINDS, RequestAccess
from ...settings import is_loopback
from .options import Parsed

__all__ = ["TOKEN_VARIABLE", "repository_access", "request_access"]

TOKEN_VARIABLE: Final = "SERINUS_REPOSITORY_TOKEN"  # noqa: S105 # a name
REQUEST_TOKEN_VARIABLE: Final = "SERINUS_TOKEN"  # noqa: S105 # a name
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
    token = _tokens(values["repository_token_file"], "repository_token_file", TOKEN_VARIABLE, environment)
    if chosen == "open":
        if token:
            raise ConfigError(
                "--repository_control open takes no token; use --repository_control on to ask for the one that is set"
            )
        return RepositoryAccess(mode="open")
    every_request = request_access(parsed, environment)
    if not token and every_request is not None and "control" in every_request.kinds:
        token = every_request.tokens
    asked = (
        chosen == "on"
        or bool(values["repository_token_file"] or environment.get(TOKEN_VARIABLE))
        or bool(values["model_repository"])
    )
    if not asked:
        return RepositoryAccess()
    if token:
        return RepositoryAccess(mode="token", tokens=token)
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


def request_access(parsed: Parsed, environment: Mapping[str, str]) -> RequestAccess | None:
    """Settle which requests need a token; None: none does.

    Load and unload ask for their own token alone where they have one, and for none where they are open by the owner's word.

    Raises:
        ConfigError: the token cannot be read, or there is no such kind of request.
    """
    values = parsed.values
    tokens = _tokens(values["token_file"], "token_file", REQUEST_TOKEN_VARIABLE, environment)
    kinds = frozenset(word.strip() for word in values["token_routes"].split(",") if word.strip())
    if wrong := sorted(kinds.difference(KINDS)):
        raise ConfigError(
            f"--token_routes: {wrong[0][:40]!r} is none of {', '.join(KINDS)}; health never needs a token"
        )
    if not kinds:
        raise ConfigError(f"--token_routes names nothing; some of {', '.join(KINDS)} were expected")
    if not tokens:
        if parsed.sources["token_routes"] != "default":  # noqa: S105 # where it came from
            raise ConfigError("--token_routes: which tokens? name their file with --token_file")
        return None
    own = values["repository_token_file"] or environment.get(TOKEN_VARIABLE, "").strip()
    if own or values["repository_control"] == "open":
        kinds -= {"control"}
    return RequestAccess(tokens, kinds)


def _tokens(file: str | None, name: str, variable: str, environment: Mapping[str, str]) -> Tokens:
    """Read tokens from a file or else a variable; none where neither is there."""
    if file is not None:
        where = f"--{name} {file}"
        return Tokens(read_tokens(Path(file), where), file=Path(file), where=where)
    token = environment.get(variable, "").strip()
    if not token:
        return Tokens()
    check_token(token, variable)
    return Tokens([token], where=variable)
