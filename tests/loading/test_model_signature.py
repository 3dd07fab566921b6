"""Models with a signature: real signatures, made by `model_signing`, and every way that we know to cheat with one."""

from __future__ import annotations

import base64
import gc
import importlib
import json
import os
import pickle
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from deferred import Deferred
from representative import every
from serinus.errors import ConfigError
from serinus.loading.model_signature import Signers, verified_copy
from signing_support import key_pair, sign

model_signing = Deferred("model_signing._cli", "main")
serialization = Deferred("cryptography.hazmat.primitives.serialization")
hashes = Deferred("cryptography.hazmat.primitives.hashes")
ec = Deferred("cryptography.hazmat.primitives.asymmetric.ec")


@pytest.fixture(scope="module", autouse=True)
def _what_others_imported_is_not_collected() -> None:
    """These tests collect garbage, to see what is removed with it: without all frameworks that the process holds, which takes a fifth of a second."""
    gc.freeze()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return key_pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture(scope="module")
def signature(keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The signature of `model`, which is the same for each: to sign takes a third of a second."""
    return sign(written(tmp_path_factory.mktemp("signed")), keys[0]).read_bytes()


def written(parent: Path) -> Path:
    folder = parent / "fraud"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "model.json").write_bytes(b"the weights" * 1000)
    (folder / "deep" / "er" / "labels.txt").write_bytes(b"ham\nspam\n")
    (folder / "empty.txt").write_bytes(b"")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_what_is_loaded_is_a_private_copy_of_what_was_signed(model: Path, keys: tuple[Path, Path]):
    before = contents(model)
    signature = sign(model, keys[0])
    signed = verified_copy(model, Signers(keys[1]))
    assert contents(signed.path) == before
    assert signed.path.name == "fraud"
    assert model not in signed.path.parents
    assert (signed.path / "model.json").stat().st_mtime_ns == (model / "model.json").stat().st_mtime_ns
    assert (Path(signed.files.folder).stat().st_mode & 0o777) == 0o700
    payload = json.loads(base64.b64decode(json.loads(signature.read_text())["dsseEnvelope"]["payload"]))
    assert signed.digest == "sha256:" + payload["subject"][0]["digest"]["sha256"]
    (model / "model.json").write_bytes(b"others")
    assert contents(signed.path) == before


@pytest.mark.slow
def test_the_copy_goes_with_the_last_that_holds_it_and_not_with_a_copy_in_another_process(
    model: Path, keys: tuple[Path, Path]
):
    sign(model, keys[0])
    signed = verified_copy(model, Signers(keys[1]))
    folder = Path(signed.files.folder)
    travelled = pickle.loads(pickle.dumps(signed.files))
    assert travelled.folder == str(folder)
    del travelled
    gc.collect()
    assert folder.exists()
    del signed
    gc.collect()
    assert not folder.exists()


def alter(model: Path) -> str:
    body = bytearray((model / "model.json").read_bytes())
    body[5000] ^= 1
    (model / "model.json").write_bytes(body)
    return r"altered since it was signed: .*model\.json"


def alter_below(model: Path) -> str:
    (model / "deep" / "er" / "labels.txt").write_bytes(b"spam\nham\n")
    return r"altered .*deep/er/labels\.txt"


def add(model: Path) -> str:
    (model / "deep" / "extra.pkl").write_bytes(b"x")
    return r"deep/extra\.pkl: added since it was signed"


def add_link(model: Path) -> str:
    (model / "away").symlink_to("/etc")
    return r"/away: added since it was signed"


def add_pipe(model: Path) -> str:
    os.mkfifo(model / "pipe")
    return r"/pipe: added since it was signed"


def take_away(model: Path) -> str:
    (model / "empty.txt").unlink()
    return r"/empty\.txt: missing: the signature names it"


def take_away_the_signature(model: Path) -> str:
    (model / "model.sig").unlink()
    return r"not signed: there is no model\.sig.*model_signing sign key"


def link_to_the_same_bytes(model: Path) -> str:
    (model / "model.json").rename(model.parent / "elsewhere")
    (model / "model.json").symlink_to(model.parent / "elsewhere")
    return r"/model\.json: a link, and the signature allows none"


def link_a_folder(model: Path) -> str:
    (model / "deep").rename(model.parent / "moved")
    (model / "deep").symlink_to(model.parent / "moved")
    return r"/deep: added .*\n?.*"


def pipe_in_its_place(model: Path) -> str:
    (model / "model.json").unlink()
    os.mkfifo(model / "model.json")
    return r"/model\.json: is no regular file"


def folder_in_its_place(model: Path) -> str:
    (model / "model.json").unlink()
    (model / "model.json").mkdir()
    return r"/model\.json: missing"


def swap_names(model: Path) -> str:
    (model / "a").write_bytes((model / "model.json").read_bytes())
    (model / "model.json").write_bytes((model / "empty.txt").read_bytes())
    (model / "a").rename(model / "empty.txt")
    return r"altered .*empty\.txt"


def cut_the_signature(model: Path) -> str:
    whole = (model / "model.sig").read_bytes()
    (model / "model.sig").write_bytes(whole[: len(whole) // 2])
    return r"model\.sig: not a signature of this model"


def empty_signature(model: Path) -> str:
    (model / "model.sig").write_bytes(b"")
    return r"model\.sig: not a signature"


def deep_signature(model: Path) -> str:
    (model / "model.sig").write_bytes(b"[" * 200_000)
    return r"model\.sig: not a signature"


def no_signatures_in_it(model: Path) -> str:
    bundle = json.loads((model / "model.sig").read_text())
    bundle["dsseEnvelope"]["signatures"] = []
    (model / "model.sig").write_text(json.dumps(bundle))
    return r"model\.sig: not a signature"


def other_statement(model: Path) -> str:
    """The manifest of the altered model under the signature of the first one."""
    bundle = json.loads((model / "model.sig").read_text())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    payload["predicate"]["resources"][0]["name"] = "model2.json"
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    (model / "model.sig").write_text(json.dumps(bundle))
    return r"model\.sig: not a signature"


def pipe_for_a_signature(model: Path) -> str:
    (model / "model.sig").unlink()
    os.mkfifo(model / "model.sig")
    return r"model\.sig: the signature cannot be read: is no regular file"


CHEATS = [
    alter,
    alter_below,
    add,
    add_link,
    add_pipe,
    take_away,
    take_away_the_signature,
    link_to_the_same_bytes,
    link_a_folder,
    pipe_in_its_place,
    folder_in_its_place,
    swap_names,
    cut_the_signature,
    empty_signature,
    deep_signature,
    no_signatures_in_it,
    other_statement,
    pipe_for_a_signature,
]


@pytest.mark.slow
@pytest.mark.parametrize("cheat", every(3, CHEATS), ids=lambda cheat: cheat.__name__)
def test_a_model_that_is_not_what_was_signed_is_refused_by_name(
    cheat: Callable[[Path], str],
    model: Path,
    signature: bytes,
    keys: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    (model / "model.sig").write_bytes(signature)
    expected = cheat(model)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with pytest.raises(ConfigError, match=expected) as caught:
        verified_copy(model, Signers(keys[1]))
    assert "Traceback" not in str(caught.value)
    del caught
    gc.collect()
    assert not list((tmp_path / "temporary").iterdir()), "a refused copy stays behind"


def test_the_signature_of_another_folder_or_of_another_signer_is_refused(model: Path, keys: tuple[Path, Path]):
    signature = sign(model, keys[0])
    other = model.parent / "other"
    other.mkdir()
    (other / "model.json").write_bytes(b"other weights")
    (other / "model.sig").write_bytes(signature.read_bytes())
    with pytest.raises(ConfigError, match="missing: the signature names it"):
        verified_copy(other, Signers(keys[1]))
    stranger, _ = key_pair(model.parent, "stranger")
    sign(model, stranger)
    with pytest.raises(ConfigError, match=r"not a signature of this model by the key of --verify_models .*signer\.pub"):
        verified_copy(model, Signers(keys[1]))


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "deep/../../outside", "deep/../model.json", "deep\0er", "..", ""]
)
def test_a_name_that_leads_out_is_refused_even_where_the_signer_wrote_it(
    name: str, model: Path, keys: tuple[Path, Path]
):
    """Such a signature is made by hand, with the good key."""
    (model.parent / "outside").write_bytes(b"outside")
    bundle = json.loads(sign(model, keys[0]).read_text())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    payload["predicate"]["resources"][0]["name"] = name
    body, kind = json.dumps(payload).encode(), bundle["dsseEnvelope"]["payloadType"].encode()
    # DSSE, "Signature Definition": PAE(type, body)
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)
    private = serialization.load_pem_private_key(keys[0].read_bytes(), None)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(body).decode()
    bundle["dsseEnvelope"]["signatures"] = [
        {"sig": base64.b64encode(private.sign(signed, ec.ECDSA(hashes.SHA256()))).decode(), "keyid": ""}
    ]
    (model / "model.sig").write_text(json.dumps(bundle))
    with pytest.raises(ConfigError, match=r"no file below the model's folder|added since|missing"):
        verified_copy(model, Signers(keys[1]))


def test_what_the_signer_left_out_may_be_there_and_is_not_loaded(model: Path, keys: tuple[Path, Path]):
    (model / "notes").mkdir()
    (model / "notes" / "a.txt").write_text("a")
    sign(model, keys[0], None, "--ignore-paths", str(model / "notes"))
    (model / "notes" / "b.pkl").write_text("added later")
    (model / ".gitattributes").write_text("*.bin filter=lfs")
    signed = verified_copy(model, Signers(keys[1]))
    assert set(contents(signed.path)) == {"model.json", "deep/er/labels.txt", "empty.txt"}
    (model / "notes.pkl").write_text("beside it")
    with pytest.raises(ConfigError, match=r"notes\.pkl: added"):
        verified_copy(model, Signers(keys[1]))


def test_links_that_the_signer_allowed_are_followed_to_the_bytes_that_were_signed(model: Path, keys: tuple[Path, Path]):
    (model / "model.json").rename(model.parent / "blob")
    (model / "model.json").symlink_to("../blob")
    sign(model, keys[0], None, "--allow_symlinks")
    signed = verified_copy(model, Signers(keys[1]))
    assert (signed.path / "model.json").read_bytes() == (model.parent / "blob").read_bytes()
    assert not (signed.path / "model.json").is_symlink()
    (model.parent / "blob").write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"altered .*model\.json"):
        verified_copy(model, Signers(keys[1]))


def test_a_model_of_one_file_has_its_signature_beside_it(tmp_path: Path, keys: tuple[Path, Path]):
    file = tmp_path / "iris.json"
    file.write_bytes(b"weights")
    sign(file, keys[0], tmp_path / "iris.json.sig")
    assert verified_copy(file, Signers(keys[1])).path.read_bytes() == b"weights"
    file.write_bytes(b"weightz")
    with pytest.raises(ConfigError, match="altered since it was signed"):
        verified_copy(file, Signers(keys[1]))


def test_a_signature_over_pieces_of_files_is_refused_in_words(model: Path, keys: tuple[Path, Path]):
    """`model_signing`'s command makes none, and its 1.1.1 cannot check its own: the pieces' size comes back as 1000.0."""
    library = importlib.import_module("model_signing")
    hashing = library.hashing.Config().use_shard_serialization(shard_size=1000)
    signing = library.signing.Config().use_elliptic_key_signer(private_key=keys[0])
    signing.set_hashing_config(hashing).sign(model, model / "model.sig")
    with pytest.raises(ConfigError, match=r"signs 'shards' of files; whole files were expected"):
        verified_copy(model, Signers(keys[1]))


@pytest.mark.parametrize("body", [b"", b"no key", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_key_that_is_none_is_refused_by_the_flag(body: bytes, model: Path, keys: tuple[Path, Path], tmp_path: Path):
    sign(model, keys[0])
    (tmp_path / "bad.pub").write_bytes(body)
    with pytest.raises(ConfigError, match=r"--verify_models .*bad\.pub"):
        verified_copy(model, Signers(tmp_path / "bad.pub"))


def test_a_chain_of_certificates_is_trusted_by_its_root(model: Path, tmp_path: Path):
    def openssl(*words: str | Path) -> None:
        subprocess.run(["openssl", *words], check=True, timeout=30, capture_output=True)

    for name, usage in (("root", "keyCertSign,cRLSign"), ("other", "keyCertSign,cRLSign")):
        key, _ = key_pair(tmp_path, name)
        openssl(
            "req", "-x509", "-new", "-key", key, "-subj", f"/CN={name}", "-days", "30",
            "-addext", f"keyUsage=critical,{usage}", "-out", tmp_path / f"{name}.pem",
        )  # fmt: skip
    leaf, _ = key_pair(tmp_path, "leaf")
    openssl("req", "-new", "-key", leaf, "-subj", "/CN=leaf", "-out", tmp_path / "leaf.csr")
    (tmp_path / "leaf.ext").write_text("keyUsage=critical,digitalSignature\nextendedKeyUsage=codeSigning\n")
    openssl(
        "x509", "-req", "-in", tmp_path / "leaf.csr", "-CA", tmp_path / "root.pem", "-CAkey", tmp_path / "root.key",
        "-days", "20", "-extfile", tmp_path / "leaf.ext", "-out", tmp_path / "leaf.pem",
    )  # fmt: skip
    command = [
        "sign", "certificate", str(model), "--private_key", str(leaf), "--signing_certificate",
        str(tmp_path / "leaf.pem"), "--certificate_chain", str(tmp_path / "root.pem"),
        "--signature", str(model / "model.sig"),
    ]  # fmt: skip
    model_signing(command, standalone_mode=False)
    assert verified_copy(model, Signers(tmp_path / "root.pem")).digest.startswith("sha256:")
    with pytest.raises(ConfigError, match="not a signature of this model by the key"):
        verified_copy(model, Signers(tmp_path / "other.pem"))


@pytest.mark.slow
def test_files_that_are_exchanged_while_they_are_checked_never_get_into_a_copy(model: Path, keys: tuple[Path, Path]):
    """Somebody exchanges the file, and its folder for a link, without end; each check refuses, or its copy is what was signed."""
    before = contents(model)
    sign(model, keys[0])
    stop = threading.Event()
    evil = model.parent / "evil"
    (evil / "er").mkdir(parents=True)
    (evil / "er" / "labels.txt").write_bytes(b"evil")

    def exchange() -> None:
        while not stop.is_set():
            (model.parent / "new").write_bytes(b"evil")
            os.replace(model.parent / "new", model / "model.json")
            os.rename(model / "deep", model.parent / "kept")
            os.symlink(evil, model / "deep")
            os.unlink(model / "deep")
            os.rename(model.parent / "kept", model / "deep")
            (model.parent / "new").write_bytes(before["model.json"])
            os.replace(model.parent / "new", model / "model.json")

    thread = threading.Thread(target=exchange)
    thread.start()
    outcomes = {"good": 0, "refused": 0}
    try:
        for _ in range(60):
            try:
                signed = verified_copy(model, Signers(keys[1]))
            except ConfigError:
                outcomes["refused"] += 1
            else:
                outcomes["good"] += 1
                assert contents(signed.path) == before
    finally:
        stop.set()
        thread.join()
    assert outcomes["refused"], outcomes
