"""Keys and signatures of models, made as the guide says (SECURITY.md, "Signed models")."""

from __future__ import annotations

import subprocess
from pathlib import Path

from deferred import Deferred

__all__ = ["key_pair", "sign"]

model_signing = Deferred("model_signing._cli", "main")


def key_pair(folder: Path, name: str = "signer") -> tuple[Path, Path]:
    """Make a P-256 key pair as the operator's guide does; gives the private key and the public one."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private], check=True, timeout=30
    )
    subprocess.run(
        ["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, timeout=30, capture_output=True
    )
    return private, public


def sign(model: Path, private: Path, signature: Path | None = None, *options: str) -> Path:
    """Run `model_signing sign key`, as documented, in this process."""
    signature = signature or model / "model.sig"
    command = ["sign", "key", str(model), "--private_key", str(private), "--signature", str(signature), *options]
    model_signing(command, standalone_mode=False)
    return signature
