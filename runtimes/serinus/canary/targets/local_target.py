"""A service that `serinus up` runs, as a target: asked and told over its control socket.

The socket speaks one JSON object each way (`status`, `traffic`). It stands where canaryTrafficPercent, or an entry of `spec.canary`, is in a
cluster; the manifest itself is the user's and is not touched, so the report says what to write there. The record is a file in the state folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..sources.pod_scrape import Endpoint
from .target import Action, Change, TargetChanged, TargetFailed, TargetGone, TargetState

__all__ = ["LocalTarget"]

_WAIT_S: Final = 60.0


class LocalTarget:
    """One service of a running `serinus up`.

    Args:
        state: its state folder.
        name: `name` or `namespace/name`.
        canary: name of its canary in Standard mode, where there are several.
        warm_s: how long the supervisor keeps the old version after a promotion.
    """

    keeps_warm = True
    lets_go = True
    can_shadow = True
    can_restore = False

    def __init__(self, state: Path, name: str, *, canary: str = "", warm_s: float = 0.0) -> None:
        self._warm_s = warm_s
        self._folder = state
        self._name = name
        self._canary = canary
        self._loaded: bytes | None = None
        self._supervisor: str | None = None
        """Which run of the supervisor was seen first; None: none was."""

    def state(self) -> TargetState:
        """See `Target.state`."""
        return self._read(self._service())

    def _service(self) -> dict[str, Any]:
        status = _ask(self._folder, "status")
        supervisor = str(status.get("id") or "")
        if self._supervisor is None:
            self._supervisor = supervisor
        elif self._supervisor != supervisor:
            raise TargetChanged(
                f"serinus up was started anew in {self._folder}: its revisions are numbered from 1 again and none has the canary's share any more; "
                "nothing was done, begin a new run when there is a canary"
            )
        found = [
            each for each in status["services"] if self._name in (each["name"], f"{each['namespace']}/{each['name']}")
        ]
        if len(found) != 1:
            failure = TargetFailed if found else TargetGone
            known = ", ".join(f"{each['namespace']}/{each['name']}" for each in status["services"]) or "none"
            raise failure(
                f"{self._name}: {'no service is' if not found else 'several are'} called so; running: {known}"
            )
        return found[0]

    def _read(self, service: Mapping[str, Any]) -> TargetState:
        problems = [str(service["problem"])] if service["problem"] else []
        canaries: Mapping[str, int] = service["canaries"]
        shares = {share["tag"]: share for share in service["traffic"]}
        title = self._canary
        if canaries:
            if not title and len(canaries) == 1:
                title = next(iter(canaries))
            if title not in canaries:
                problems.append(f"its canaries are {', '.join(canaries)}; name one with --canary")
            stable, canary = shares.get("latest"), shares.get(title)
            percent = canaries.get(title)
        else:
            stable, canary = shares.get("prev"), shares.get("latest")
            percent = service["canary_percent"]
            if stable is None:
                stable, canary = canary, None
                problems.append(
                    "one revision has all traffic; give the new version canaryTrafficPercent: 0 in the manifest to begin"
                    if not problems
                    else "there is no canary"
                )
        if canary is None and canaries and not problems:
            problems.append(f"canary {title} is not ready")
        return TargetState(
            service=f"{service['namespace']}/{service['name']}",
            mode="local",
            stable=str(stable["revision"]) if stable else "",
            canary=str(canary["revision"]) if canary else "",
            percent=percent if canary else None,
            served_percent=int(canary["percent"]) if canary else None,
            ready=bool(canary and canary["ready"] and service["settled"]),
            model=str(service["model"]),
            version=",".join(sorted(share["revision"] for share in service["traffic"])),
            identity=self._supervisor or "",
            problems=tuple(problems),
            policy=str(service.get("canary_policy") or ""),
            notes=tuple(_affinity_notes(service)),
            warm="" if canary else str(service["warm"]),
            shadow=int(service["mirror"]),
        )

    def planned(self, action: Action, percent: int, seen: TargetState) -> Change:
        """See `Target.planned`; the patch is of the manifest."""
        title = self._title()
        if action == "shadow":
            return Change(
                f"a copy of {percent} % of the requests to {seen.canary}" if percent else "no copies any more"
            )
        if action == "finish":
            return Change("the supervisor lets go of what it keeps warm by itself")
        value = {"percent": percent, "rollback": 0, "promote": 100}[action]
        if title:
            note = f"write it into the manifest: {'make ' + title + ' the predictor' if action == 'promote' else f'trafficPercent: {value}'}"
            index = list(self._service()["canaries"]).index(title)
            patch = [{"op": "replace", "path": f"/spec/canary/{index}/trafficPercent", "value": value}]
            return Change(f"trafficPercent of canary {title}: {value}", patch, (note,) if action != "percent" else ())
        at = "/spec/predictor/canaryTrafficPercent"
        if action == "promote":
            note = "remove canaryTrafficPercent from the manifest, or its next change brings the split back"
            return Change("all traffic to the newest revision", [{"op": "remove", "path": at}], (note,))
        notes = (
            ("put the old version back into the manifest; the newest revision stays at 0 % until then",)
            if action == "rollback"
            else ()
        )
        return Change(f"canaryTrafficPercent: {value}", [{"op": "add", "path": at, "value": value}], notes)

    def change(self, action: Action, percent: int, seen: TargetState) -> Change:
        """See `Target.change`."""
        now = self.state()
        before, after = ((each.stable, each.canary, each.percent, each.version) for each in (seen, now))
        if before != after:
            raise TargetChanged(
                f"{seen.service} was changed by somebody else: stable, canary, percentage were {before[:3]}, and are {after[:3]}; nothing was done"
            )
        change = self.planned(action, percent, seen)
        if action == "shadow":
            _ask(self._folder, "mirror", name=now.service, percent=percent, canary=self._title())
        elif change.patch:
            title = self._title()
            warm_s = self._warm_s if action == "promote" else 0.0
            value: int | None = {"rollback": 0, "promote": 100 if title else None}.get(action, percent)
            _ask(self._folder, "traffic", name=now.service, percent=value, canary=title, wait_s=_WAIT_S, warm_s=warm_s)
        return change

    @property
    def access_log(self) -> Path:
        """The gateway's, from which users are counted."""
        return self._folder / "logs" / "access.log"

    def _title(self) -> str:
        canaries = self._service()["canaries"]
        return self._canary or (next(iter(canaries)) if canaries else "")

    def is_settled(self, action: Action, percent: int) -> bool:
        """See `Target.is_settled`."""
        service = self._service()
        now = self._read(service)
        if action == "shadow":
            return int(service["mirror"]) == percent
        if action in ("promote", "finish"):
            return bool(service["settled"])
        return bool(service["settled"]) and now.served_percent in ((None, 0) if action == "rollback" else (percent,))

    def endpoints(self) -> list[Endpoint]:
        """See `Target.endpoints`: the processes that the gateway sends requests to."""
        service = self._service()
        kinds = {each["component"] for each in service["components"]}
        entry = "transformer" if "transformer" in kinds else "predictor"
        return [
            Endpoint(
                f"{each['revision']}:{each['http_port']}",
                f"http://127.0.0.1:{each['http_port']}/metrics",
                each["revision"],
            )
            for each in service["components"]
            if each["component"] == entry
            and each["ready"]
            and each["container"] in ("kserve-container", "transformer-container")
        ]

    # The record

    @property
    def _file(self) -> Path:
        return self._folder / "canary" / f"{self._name.replace('/', '.')}.json"

    def load_record(self) -> dict[str, Any] | None:
        """See `Target.load_record`."""
        try:
            self._loaded = self._file.read_bytes()
            record = json.loads(self._loaded)
        except FileNotFoundError:
            self._loaded = None
            return None
        except (OSError, ValueError) as error:
            raise TargetFailed(f"{self._file}: is no record of serinus ({error}); remove it to begin anew") from None
        return record

    def save_record(self, record: Mapping[str, Any] | None) -> None:
        """See `Target.save_record`."""
        path = self._file
        try:
            now = path.read_bytes() if path.exists() else None
            if now != self._loaded:
                raise TargetChanged(f"{path}: another controller has written it")
            if record is None:
                path.unlink(missing_ok=True)
                self._loaded = None
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps(record).encode()
            part = path.with_suffix(".part")
            part.write_bytes(content)
            part.replace(path)
            self._loaded = content
        except OSError as error:
            raise TargetFailed(f"{path}: cannot be written: {error.strerror}") from None


def _affinity_notes(service: Mapping[str, Any]) -> list[str]:
    if not service["affinity"]:
        return ["every request is split at random: requests are counted, not users (annotation serinus.dev/affinity)"]
    return [f"a user stays on one version by {service['affinity']}: a user's requests count as one"]


def _ask(state: Path, operation: str, **fields: Any) -> dict[str, Any]:
    """Ask a supervisor; its protocol is told in `serinus.local.run.control_socket`, which a canary does not import."""
    path = state.resolve() / "control.sock"
    if len(os.fsencode(path)) >= 100:  # too long for a socket address (unix(7)); as the supervisor does
        word = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"serinus-{os.getuid()}-{word}.sock"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_WAIT_S + 30.0)
            connection.connect(str(path))
            connection.sendall(json.dumps({"op": operation, **fields}).encode() + b"\n")
            with connection.makefile("rb") as reader:
                line = reader.readline()
        answer = json.loads(line)
    except (FileNotFoundError, ConnectionRefusedError):
        raise TargetFailed(
            f"nothing runs in {state}; start it with: serinus up PATH, or name the cluster with --namespace"
        ) from None
    except (OSError, ValueError) as error:
        raise TargetFailed(f"the supervisor in {state} did not answer: {error}") from None
    if not isinstance(answer, dict) or not answer.get("ok"):
        raise TargetFailed(f"the supervisor in {state}: {answer.get('error') if isinstance(answer, dict) else answer}")
    return answer
