"""Models with a signature in OpenSSF's form, checked before anything of them is read.

Theory of operation. `model_signing sign` writes a sigstore bundle whose statement names every file of a folder with its digest
(OpenSSF Model Signing, v1.0). Who may write to the folder while it is checked could give one file to the check and another to the
framework, so what is loaded is a private copy: the files that the signature names are copied, the *copy* is checked by the library that
made the signature, and the copy alone is read from then on, by whoever reads it and however late. It is removed when no settings hold
it any more.

The folder must hold what the signature names and nothing else. What the signer chose to leave out (`--ignore-paths`, and git's files, which
`model_signing` leaves out by itself) may lie there and is not copied, so no framework sees it. Links are refused unless the signer allowed
them, and then only the bytes that they lead to count. Files are opened below the folder's own handle, without following a link, so that
exchanging a folder for a link on the way leads nowhere else.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from ..errors import ConfigError, UntrustedModel
from ..small_file import read_bytes

__all__ = ["PrivateFiles", "SignedModel", "Signers", "verified_copy"]

_log = logging.getLogger("serinus.integrity")

_SIGNATURE_BYTES: Final = 64 << 20
"""Largest signature that is read: some 250 000 files, at about 250 bytes each in base64."""
_GIT: Final = (".git", ".gitattributes", ".github", ".gitignore")
"""What `model_signing` leaves out unless told otherwise (hashing.Config.set_ignored_paths)."""
_PIECE: Final = 1 << 20
_INSTALL: Final = "pip install 'serinus[model-signing]'"


@dataclass(frozen=True, slots=True)
class Signers:
    """Whose signatures are good."""

    key: Path
    """PEM: a public key (NIST P-256, P-384 or P-521), or certificates that sign signers' certificates."""
    signature: str = "model.sig"
    """The signature's name in a model's folder (`model_signing`'s default). Beside a model that is one file: its name and `.sig`."""


class PrivateFiles:
    """A folder that only this user reads, removed with the last object that holds it.

    A copy of this object that has been sent to another process does not remove it.
    """

    def __init__(self, folder: str, *, owned: bool = True) -> None:
        self.folder = folder
        if owned:
            weakref.finalize(self, _remove, folder, os.getpid())

    def __reduce__(self) -> tuple[Any, ...]:
        return _borrowed, (self.folder,)


def _borrowed(folder: str) -> PrivateFiles:
    return PrivateFiles(folder, owned=False)


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a fork has the same finalizers
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class SignedModel:
    """A model whose signature is good."""

    path: Path
    """The private copy: the same name as the original's, file or folder."""
    digest: str
    """Of the signature's manifest, `sha256:` and 64 hex digits: the digest of its subject."""
    files: PrivateFiles
    """Hold it as long as `path` may be read."""


@dataclass(slots=True)
class _Manifest:
    """What a good signature says."""

    names: frozenset[str]
    digest: str
    ignored: tuple[PurePosixPath, ...]
    follow_links: bool


def verified_copy(path: Path, signers: Signers) -> SignedModel:
    """Check a model's signature and give the copy that may be loaded.

    Args:
        path: a model's file or folder.
        signers: whose signature is good.

    Raises:
        UntrustedModel: there is no signature, it is another's, or a file was altered, added or taken away; each is named.
        ConfigError: it cannot be checked: the package is missing, or the copy has no room.
    """
    whole = Path(os.path.realpath(path))
    signature = whole / signers.signature if whole.is_dir() else whole.with_name(f"{whole.name}.sig")
    try:
        signed = read_bytes(signature, most_bytes=_SIGNATURE_BYTES)
    except FileNotFoundError:
        raise UntrustedModel(
            f"{path}: not signed: there is no {signature.name}, and --verify_models wants one; "
            f"sign it with: model_signing sign key {path} --private_key KEY --signature {signature}"
        ) from None
    except OSError as error:
        raise ConfigError(f"{signature}: the signature cannot be read: {error.strerror}") from None
    try:
        folder = tempfile.mkdtemp(prefix="serinus-model-")
    except OSError as error:
        raise ConfigError(
            f"{path}: a model with a signature is loaded from a private copy, and there is no place for one: {error}; "
            "TMPDIR names a writable folder"
        ) from None
    files = PrivateFiles(folder)
    own_signature = Path(folder) / "signature"
    own_signature.write_bytes(signed)
    manifest = _manifest_of(own_signature, signers, signature)
    copy = Path(folder) / "files" / (whole.name or "model")
    try:
        if whole.is_dir():
            _copy_folder(whole, copy, manifest, signers.signature)
        else:
            if manifest.names != {"."}:
                raise UntrustedModel(f"{signature}: signs a folder, and {path} is a file")
            copy.parent.mkdir()
            handle = os.open(whole.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _copy_file(handle, whole.name, copy, follow_links=False, shown=path)
            finally:
                os.close(handle)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be copied for its check: {error.filename}: {error.strerror}; "
            "the copy needs the model's size in TMPDIR"
        ) from None
    _check_copy(copy, own_signature, signers, path)
    _log.info("%s: the signature is good for %s, digest %s", path, signers.key, manifest.digest)
    return SignedModel(copy, manifest.digest, files)


def _config(signers: Signers, where: object) -> Any:
    """Make the library's verifier of the operator's key.

    Raises:
        ConfigError: the library is missing, or the file is no key.
    """
    try:
        from model_signing import verifying
    except ImportError:
        raise ConfigError(f"{where}: --verify_models needs the package model-signing; {_INSTALL}") from None
    try:
        is_certificate = b"-----BEGIN CERTIFICATE-----" in read_bytes(signers.key)
        if is_certificate:
            return verifying.Config().use_certificate_verifier(certificate_chain=[signers.key])
        return verifying.Config().use_elliptic_key_verifier(public_key=signers.key)
    except OSError as error:
        raise ConfigError(f"--verify_models {signers.key}: cannot be read: {error.strerror}") from None
    except Exception as error:  # noqa: BLE001 # whatever the library says of a file that is none of these
        raise ConfigError(
            f"--verify_models {signers.key}: neither a PEM public key on a NIST curve nor PEM certificates: {_said(error)}"
        ) from None


def _manifest_of(own: Path, signers: Signers, signature: Path) -> _Manifest:
    """Read what is signed, once it is known by whom.

    Raises:
        ConfigError: it is no signature of a model, or another's.
    """
    config = _config(signers, signature)
    try:
        from model_signing._signing import sign_sigstore_pb

        # The public `verify` hashes the folder in the same call; what the signature names must be known before that.
        manifest = config._verifier.verify(sign_sigstore_pb.Signature.read(own))
        descriptors = list(manifest.resource_descriptors())
        how = manifest.serialization_type
        names = frozenset(descriptor.identifier for descriptor in descriptors)
        root = hashlib.sha256(b"".join(descriptor.digest.digest_value for descriptor in descriptors)).hexdigest()
        ignored = tuple(PurePosixPath(text) for text in (*how.get("ignore_paths", ()), *_GIT))
        follow_links = how.get("allow_symlinks") is True
    except Exception as error:  # noqa: BLE001 # the bytes are anybody's, and the library's parsers raise what they like
        raise UntrustedModel(
            f"{signature}: not a signature of this model by the key of --verify_models {signers.key}: {_said(error)}"
        ) from None
    if how.get("method") != "files":
        raise UntrustedModel(
            f"{signature}: signs {str(how.get('method'))[:40]!r} of files; whole files were expected: sign it with model_signing's command"
        )
    for name in names:
        parts = PurePosixPath(name).parts
        if name != "." and (not parts or name.startswith("/") or ".." in parts or "\0" in name):
            raise UntrustedModel(f"{signature}: names {name[:200]!r}, which is no file below the model's folder")
    return _Manifest(names, f"sha256:{root}", ignored, follow_links)


def _check_copy(copy: Path, own: Path, signers: Signers, shown: Path) -> None:
    """Have the library compare the copy with what is signed."""
    try:
        _config(signers, shown).verify(copy, own)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 # as above
        raise UntrustedModel(f"{shown}: altered since it was signed: {_said(error)}") from None


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip()[:2000]


def _copy_folder(root: Path, copy: Path, manifest: _Manifest, signature: str) -> None:
    """Copy what is signed, and refuse what else is there.

    Raises:
        ConfigError: with every file that was added or is missing.
        OSError: a file cannot be read or written.
    """
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        there: set[str] = set()
        problems: list[str] = []
        for name, mode in _walk(top, ""):
            if name in manifest.names:
                there.add(name)
                if stat.S_ISLNK(mode) and not manifest.follow_links:
                    problems.append(f"{root / name}: a link, and the signature allows none")
            elif name != signature and not _is_ignored(name, manifest.ignored):
                problems.append(f"{root / name}: added since it was signed: the signature does not name it")
        problems += [
            f"{root / name}: missing: the signature names it" for name in sorted(manifest.names.difference(there))
        ]
        if problems:
            raise UntrustedModel(problems)
        copy.mkdir(parents=True)
        for name in sorted(manifest.names):
            *folders, last = PurePosixPath(name).parts
            (copy.joinpath(*folders)).mkdir(parents=True, exist_ok=True)
            handle = _descend(top, folders)
            try:
                _copy_file(handle, last, copy / name, follow_links=manifest.follow_links, shown=root / name)
            finally:
                os.close(handle)
    finally:
        os.close(top)


def _walk(folder: int, prefix: str) -> Iterator[tuple[str, int]]:
    """Give every name below a folder that is no folder itself, with its mode; no link is followed."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            name = prefix + entry.name
            mode = entry.stat(follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode):
                yield name, mode
                continue
            below = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                yield from _walk(below, f"{name}/")
            finally:
                os.close(below)


def _descend(top: int, folders: Sequence[str]) -> int:
    """Open a folder below another, no link on the way; the caller closes it."""
    handle = os.dup(top)
    for folder in folders:
        try:
            below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
        finally:
            os.close(handle)
        handle = below
    return handle


def _copy_file(folder: int, name: str, target: Path, *, follow_links: bool, shown: Path) -> None:
    """Copy one regular file: no more bytes than it had when it was opened.

    Raises:
        ConfigError: it is no regular file.
        OSError: it cannot be read or written.
    """
    links = 0 if follow_links else os.O_NOFOLLOW
    try:  # O_NONBLOCK: a FIFO opens at once, and is told by its mode
        handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | links, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UntrustedModel(f"{shown}: a link, and the signature allows none") from None
        raise
    with os.fdopen(handle, "rb", buffering=0) as source:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedModel(f"{shown}: is no regular file")
        left = status.st_size
        own = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(own, "wb", buffering=0) as written:
            while left > 0 and (piece := source.read(min(left, _PIECE))):
                left -= written.write(piece)
        # Several workers have a copy each, and tell large files from others by their times (`dataplane.model_files`).
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _is_ignored(name: str, ignored: Sequence[PurePosixPath]) -> bool:
    """Whether the signer left a path, or a folder that it lies in, out of the signature."""
    path = PurePosixPath(name)
    return any(path == one or one in path.parents for one in ignored if one.parts)
