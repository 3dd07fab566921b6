"""The few calls of the Kubernetes API that a canary needs: get, list, patch, server-side apply.

Sources: kubernetes.io/docs/reference/using-api/api-concepts ("Resource versions", "Patches"), .../server-side-apply ("Conflicts").
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

from .kubeconfig import Access
from .target import TargetChanged, TargetFailed

__all__ = ["FIELD_MANAGER", "FieldConflict", "KubernetesClient", "NotThere", "Refused"]

FIELD_MANAGER: Final = "serinus-canary"
_TIMEOUT_S: Final = 30.0


class NotThere(TargetFailed):
    """No such object (404)."""


class Refused(TargetFailed):
    """Admission, the schema or the authorisation has refused (400, 401, 403, 422); asking again does not help."""


class FieldConflict(TargetFailed):
    """Other field managers own what was to be applied."""

    def __init__(self, message: str, managers: Sequence[str]) -> None:
        super().__init__(message)
        self.managers = tuple(managers)


class KubernetesClient:
    """One API server. A connection for each request: looks are seconds apart, and proxies drop idle ones."""

    def __init__(self, access: Access) -> None:
        self.access = access

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """Read an object or a list.

        Raises:
            NotThere, Refused, TargetFailed: see the classes.
        """
        return self._ask("GET", path, query)

    def apply(self, path: str, body: Mapping[str, Any], *, force: bool = False) -> dict[str, Any]:
        """Apply on the server's side; `metadata.resourceVersion` in the body makes it conditional.

        Raises:
            FieldConflict: others own a field, and it was not forced.
            TargetChanged: the object has another resource version.
            NotThere, Refused, TargetFailed: see the classes.
        """
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict", **({"force": "true"} if force else {})}
        return self._ask("PATCH", path, query, body, "application/apply-patch+yaml")

    def patch(self, path: str, operations: Sequence[Mapping[str, Any]], resource_version: str) -> dict[str, Any]:
        """Apply a JSON patch, if the object still has this resource version.

        Raises:
            TargetChanged: it has another.
            NotThere, Refused, TargetFailed: see the classes.
        """
        condition = {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version}
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        return self._ask("PATCH", path, query, [condition, *operations], "application/json-patch+json")

    def delete(self, path: str) -> None:
        """Delete an object; one that is not there is fine.

        Raises:
            Refused, TargetFailed: see the classes.
        """
        try:
            self._ask("DELETE", path, {})
        except NotThere:
            return

    def _ask(
        self, method: str, path: str, query: Mapping[str, str], body: Any = None, content_type: str = ""
    ) -> dict[str, Any]:
        access = self.access
        headers = {"Accept": "application/json"}
        if content_type:
            headers["Content-Type"] = content_type
        authorization = access.authorization()
        if authorization is not None:
            headers["Authorization"] = authorization
        target = f"{access.prefix}{path}" + (f"?{urlencode(query)}" if query else "")
        connection = (
            http.client.HTTPConnection(access.host, access.port, timeout=_TIMEOUT_S)
            if access.tls is None
            else http.client.HTTPSConnection(access.host, access.port, timeout=_TIMEOUT_S, context=access.tls)
        )
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise TargetFailed(
                f"{access.host}:{access.port} does not answer: {error or type(error).__name__}"
            ) from None
        finally:
            connection.close()
        try:
            document = json.loads(content) if content else {}
        except ValueError:
            document = {}
        if not isinstance(document, dict):
            document = {}
        if answer.status >= 300:
            raise _failure(method, path, answer.status, document, content)
        return document


def _failure(method: str, path: str, status: int, document: Mapping[str, Any], content: bytes) -> TargetFailed:
    told = str(document.get("message") or content[:300].decode("utf-8", "replace").strip() or "no message")
    text = f"{method} {path}: {status}: {told}"
    if status == 404:
        return NotThere(text)
    if status == 409:
        details = document.get("details")
        causes = details.get("causes") if isinstance(details, dict) else None
        conflicts = [each for each in causes or () if each.get("reason") == "FieldManagerConflict"]
        if conflicts:
            # "conflict with \"argocd-controller\" using serving.kserve.io/v1beta1" (managedfields/conflict.go)
            managers = [str(each.get("message", "")).partition('"')[2].partition('"')[0] or "?" for each in conflicts]
            return FieldConflict(text, managers)
        return TargetChanged(text)
    # A server-side apply of a field that the schema has not is told as 500 (structured-merge-diff, "field not declared in schema").
    refused = status in (400, 401, 403, 422) or (status == 500 and "failed to create typed patch object" in told)
    return Refused(text) if refused else TargetFailed(text)
