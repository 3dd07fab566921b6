"""What `serinus up` and `status` write of services whose manifests have Secrets: nothing of those."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from local_support import manifest, up

SECRET = "s3cret-of-a-manifest"
STORED = "s3cret-of-a-store"


@pytest.mark.slow
def test_values_of_secrets_are_in_nothing_that_the_runner_writes(tmp_path: Path) -> None:
    secret = f"apiVersion: v1\nkind: Secret\nmetadata: {{name: own}}\nstringData: {{password: {SECRET}}}\n---\n"
    variables = "[{name: PASSWORD, valueFrom: {secretKeyRef: {name: own, key: password}}}, "
    (tmp_path / "isvc.yaml").write_text(secret + manifest().replace("[{name: PROTOCOL", variables + "{name: PROTOCOL"))
    (tmp_path / "storage.json").write_text(json.dumps({"default": {"type": "s3", "secret_access_key": STORED}}))
    with up(tmp_path, "isvc.yaml", "--storage-config", "storage.json") as running:
        environment = Path(f"/proc/{running.row['pid']}/environ").read_bytes()
        assert SECRET.encode() in environment, "the process has it"
        said = [running.cli("status").stdout, running.cli("status", "-o", "json").stdout, running.output()]
        said += [running.cli("up", "isvc.yaml", "--storage-config", "storage.json", check=False).stdout]
        (tmp_path / "isvc.yaml").write_text(secret + manifest().replace("kind: Inf", "kind: [Inf"))
        ended = running.cli("up", "isvc.yaml", check=False)
        said += [ended.stdout, ended.stderr, running.cli("status", check=False).stdout, running.output()]
    said += [running.output()]
    written = [
        file.read_bytes().decode("utf-8", "replace")
        for file in tmp_path.rglob("*")
        if file.is_file() and file.name not in ("isvc.yaml", "storage.json")
    ]
    assert len(written) > 2
    for text in (*said, *written):
        assert SECRET not in text
        assert STORED not in text
