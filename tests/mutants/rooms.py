"""Which tests are a module's own: those of its room."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SOURCE_ROOTS", "Module", "UnknownModule"]

SOURCE_ROOTS = ("runtimes", "transformers")

# The longest prefix of a module's name that is here says where its tests are; a folder, or files of one.
_ROOMS: dict[str, tuple[str, ...]] = {
    "serinus.canary": ("tests/canary",),
    "serinus.client": ("tests/client",),
    "serinus.dataplane": ("tests/dataplane",),
    "serinus.dataplane.joining": ("tests/joining",),
    "serinus.dataplane.large_bodies": ("tests/dataplane", "tests/rest/test_large_bodies.py"),
    "serinus.dataplane.model_files": ("tests/dataplane", "tests/serve/test_worker_records.py"),
    "serinus.hosts": ("tests/hosts",),
    "serinus.loading": ("tests/loading",),
    "serinus.local.plan": (
        *("tests/local/test_*plan*.py", "tests/local/test_envoy*.py", "tests/local/test_rout*.py"),
        *("tests/local/test_arm_choice.py", "tests/local/test_canary_tracks.py", "tests/local/test_local_class.py"),
        *("tests/local/test_manifest_options.py", "tests/local/test_storage_spec.py"),
    ),
    "serinus.local.run": ("tests/local",),
    "serinus.manifests": ("tests/manifests",),
    "serinus.native": ("tests/native",),
    "serinus.protocol": ("tests/protocol",),
    "serinus.protocol.documents.example_values": ("tests/protocol", "tests/rest/test_docs_page.py"),
    "serinus.protocol.proto_census": ("tests/protocol", "tests/grpc/test_large_messages.py"),
    "serinus.server.connections": ("tests/http",),
    "serinus.server.grpc": ("tests/grpc",),
    "serinus.server.http": ("tests/http",),
    "serinus.server.rest": ("tests/rest",),
    "serinus.server": ("tests/serve",),
    "serinus.server.access_log": ("tests/serve", "tests/rest/test_access_log.py", "tests/grpc/test_access_log.py"),
    "serinus.server.refusals": ("tests/serve", "tests/rest/test_refusals.py"),
    "serinus.server.request_access": ("tests/serve", "tests/rest/test_tokens.py", "tests/grpc/test_tokens.py"),
    "serinus.server.request_observer": (
        "tests/serve",
        "tests/rest/test_access_log.py",
        "tests/rest/test_observed_exchanges.py",
        "tests/rest/test_request_ids.py",
    ),
    "serinus.cli": ("tests/serve",),
    "serinus.tuning": ("tests/tuning",),
    "serinus.verification_records": ("tests/engines",),
}


class UnknownModule(Exception):
    """The name is no module of ours, or its room has no folder of tests."""


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the library, an image or a transformer."""

    name: str

    def path(self, root: Path) -> Path:
        """Return its file under a copy of the tree."""
        for source in SOURCE_ROOTS:
            found = root / source / (self.name.replace(".", "/") + ".py")
            if found.is_file():
                return found
        raise UnknownModule(f"no module {self.name!r} under {' or '.join(SOURCE_ROOTS)}; give it as in an import")

    def test_files(self, root: Path) -> list[str]:
        """Return the files of its room's tests, relative to the root, sorted."""
        prefixes = [prefix for prefix in _ROOMS if self.name == prefix or self.name.startswith(prefix + ".")]
        patterns = _ROOMS[max(prefixes, key=len)] if prefixes else (f"tests/{self.name.partition('.')[0]}",)
        found = {
            path
            for pattern in patterns
            for path in root.glob(pattern if pattern.endswith(".py") else pattern + "/test_*.py")
        }
        if not found:
            raise UnknownModule(f"no tests of {self.name!r} at {' '.join(patterns)}; name its room in mutants/rooms.py")
        return sorted(path.relative_to(root).as_posix() for path in found)


def statement_lines(tree: ast.Module, line: int) -> range:
    """Return the lines of the innermost statement around a line; of a compound one, its header's."""
    found = range(line, line + 1)
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or not node.lineno <= line <= (node.end_lineno or node.lineno):
            continue
        body = getattr(node, "body", None)
        end = body[0].lineno if body and body[0].lineno > node.lineno else (node.end_lineno or node.lineno) + 1
        if node.lineno <= line < end:
            found = range(node.lineno, end)  # ast.walk goes outside in: the last one is the innermost
    return found
