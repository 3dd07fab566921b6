"""What of a folder never gets into an image: secrets, what its owner names, what is no file."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from serinus.errors import ConfigError
from serinus.images.container_engine import ContainerEngine
from serinus.images.dockerfile import Recipe, write_context
from serinus.images.image_source import find_source
from serinus.images.left_out import LeftOut

CLASS = "from serinus import Model\n\n\nclass Mine(Model):\n    pass\n"
BODY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSj"
KEY = f"-----BEGIN PRIVATE KEY-----\n{BODY}\n-----END PRIVATE KEY-----\n"


ENGINE = """#!/bin/sh
echo "words: $@"
env | grep ^PIP_ | sort
"""


def test_secrets_for_a_build_are_no_words_of_a_command(tmp_path: Path):
    program = tmp_path / "docker"
    program.write_text(ENGINE)
    program.chmod(0o755)
    given = {"PIP_INDEX_URL": "https://me:hunter22@index.example/simple", "PIP_TRUSTED_HOST": "index.example", "MY_TOKEN": "hunter22"}  # fmt: skip
    said: list[str] = []
    ContainerEngine(str(program), "").build(tmp_path, "t", given, said.append)
    words, *variables = said
    assert "--build-arg PIP_INDEX_URL --build-arg PIP_TRUSTED_HOST=index.example --build-arg MY_TOKEN " in words
    assert "hunter22" not in words
    assert f"PIP_INDEX_URL={given['PIP_INDEX_URL']}" in variables


def lay(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def copied(folder: Path, *, base: str = "b") -> set[str]:
    context = folder.parent / "context"
    write_context(Recipe(source=find_source(folder), base=base), context, None)
    return {str(path.relative_to(context)) for path in context.rglob("*") if path.is_file()} - {"Dockerfile"}


def test_hidden_files_stay_out_at_each_depth(tmp_path: Path):
    folder = lay(tmp_path / "f", {
        "mine/__init__.py": CLASS, "mine/.env": "TOKEN=x", "mine/sub/.aws/credentials": "key", "mine/sub/__init__.py": "",
        "model/w.json": "{}", "model/sub/.env": "TOKEN=x", "model/sub/v.json": "{}", "model/.git/config": "url=https://me:x@example.com",
    })  # fmt: skip
    assert copied(folder) == {"app/mine/__init__.py", "app/mine/sub/__init__.py", "model/w.json", "model/sub/v.json"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("model/sub/id_rsa", "x", "is called as keys and credentials are"),
        ("model/credentials.json", "{}", "is called as keys and credentials are"),
        ("mine/prod.env", "TOKEN=x", "is called as keys and credentials are"),
        ("model/Store.JKS", "x", "is called as keys and credentials are"),
        ("model/tls.pem", KEY, "holds a private key"),
        ("model/server.txt", f"# mine\n{KEY}", "holds a private key"),
        ("mine/account.json", '{"private_key": "-----BEGIN PRIVATE KEY-----\\n' + BODY + '"}', "holds a private key"),
        ("mine/old", f"-----BEGIN RSA PRIVATE KEY-----\r\nProc-Type: 4,ENCRYPTED\r\n{BODY}", "holds a private key"),
    ],
)
def test_a_secret_is_refused_by_name_with_the_mend(name: str, text: str, said: str, tmp_path: Path):
    folder = lay(tmp_path / "f", {"mine/__init__.py": CLASS, "model/w.json": "{}", name: text})
    with pytest.raises(ConfigError, match=f"{said}, and whoever has the image could read it; move it") as told:
        copied(folder)
    assert name in str(told.value)
    assert BODY not in str(told.value)
    lay(folder, {".dockerignore": f"{name}\n"})
    (tmp_path / "context" / "Dockerfile").unlink(missing_ok=True)
    for left in sorted((tmp_path / "context").rglob("*"), reverse=True):
        left.rmdir() if left.is_dir() else left.unlink()
    assert {"app/mine/__init__.py", "model/w.json"} == copied(folder)


def test_a_link_is_no_other_name_for_a_secret(tmp_path: Path):
    folder = lay(tmp_path / "f", {"mine.py": CLASS, "model/w.json": "{}", "keys/id_ed25519": "x"})
    (folder / "model" / "labels.txt").symlink_to("../keys/id_ed25519")
    with pytest.raises(ConfigError, match=r"labels\.txt: is called as keys"):
        copied(folder)


@pytest.mark.parametrize("text", [
    pytest.param("-----BEGIN CERTIFICATE-----\nMIID\n", id="a certificate"),
    pytest.param('PATTERN = "-----BEGIN PRIVATE KEY-----"\n', id="a text about keys"),
])  # fmt: skip
def test_what_only_looks_like_a_key_goes_in(text: str, tmp_path: Path):
    folder = lay(tmp_path / "f", {"mine.py": CLASS, "model/ca.pem": text})
    assert copied(folder) == {"app/mine.py", "model/ca.pem"}


@pytest.mark.parametrize(
    ("ignored", "path", "is_out"),
    [
        ("*.csv", "a.csv", True),
        ("*.csv", "sub/a.csv", False),
        ("**/*.csv", "sub/deep/a.csv", True),
        ("**/*.csv", "a.csv", True),
        ("data", "data/sub/a.csv", True),
        ("/data/", "data/a.csv", True),
        ("data/**", "data/a.csv", True),
        ("d?ta/[ab].csv", "data/b.csv", True),
        ("d?ta/[^ab].csv", "data/b.csv", False),
        ("[a-c]x", "bx", True),
        ("# a.csv", "a.csv", False),
        ("*.csv\n!a.csv", "a.csv", False),
        ("!a.csv\n*.csv", "a.csv", True),
        ("data\n!data/keep", "data/keep", False),
        ("data\n!data/keep", "data/other", True),
        ("a.csv", "axcsv", False),
        (r"\*.csv", "*.csv", True),
        (r"\*.csv", "a.csv", False),
        ("./a", "a", True),
        ("[&&||~]", "~", True),
    ],
)
def test_a_dockerignore_is_read_as_docker_reads_it(ignored: str, path: str, is_out: bool, tmp_path: Path):
    lay(tmp_path, {".dockerignore": ignored + "\n"})
    assert LeftOut(tmp_path).names(tmp_path / path) is is_out


def test_what_a_dockerignore_names_is_neither_model_nor_code(tmp_path: Path):
    folder = lay(tmp_path / "f", {
        "mine.py": CLASS, "other.py": CLASS, "w.json": "{}", "raw.csv": "1", "data/keep.json": "{}", "data/raw.csv": "1",
        ".dockerignore": "other.py\n*.csv\ndata\n!data/keep.json\n",
    })  # fmt: skip
    assert copied(folder) == {"app/mine.py", "model/w.json", "model/data/keep.json"}


@pytest.mark.parametrize("text", ["**/" * 5 + "a", "a\n" * 1001, "[z-a]", "[a--b]"])
def test_a_dockerignore_of_no_use_is_refused_in_words(text: str, tmp_path: Path):
    lay(tmp_path, {".dockerignore": text})
    with pytest.raises(ConfigError, match=r"\.dockerignore: "):
        LeftOut(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("place", ["mine/x.py", "model/x"])
def test_what_is_no_file_is_refused_and_holds_up_nothing(kind: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # fmt: skip
    folder = lay(tmp_path / "f", {"mine/__init__.py": CLASS, "model/w.json": "{}"})
    if kind == "pipe":
        os.mkfifo(folder / place)
    else:
        monkeypatch.chdir((folder / place).parent)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("x.py" if place.endswith(".py") else "x")
    with pytest.raises(ConfigError, match=r"x(\.py)?: "):
        copied(folder)


def test_code_that_cannot_be_parsed_is_refused_in_words(tmp_path: Path):
    folder = lay(tmp_path / "f", {"mine.py": CLASS + "x = " + "(" * 5000, "model/w.json": "{}"})
    with pytest.raises(ConfigError, match="not Python"):
        copied(folder)


def test_requirements_of_a_folder_are_no_link_out_of_it(tmp_path: Path):
    folder = lay(tmp_path / "f", {"mine.py": CLASS})
    lay(tmp_path, {"elsewhere": "secret"})
    (folder / "requirements.txt").symlink_to("../elsewhere")
    with pytest.raises(ConfigError, match="a link that leads out of"):
        copied(folder)


@pytest.mark.parametrize("line", [
    "--index-url https://me:hunter22@index.example/simple", "pkg @ git+https://ghp_abcdef@github.com/a/b", "--extra-index-url=http://x:y@h/",
])  # fmt: skip
def test_credentials_in_requirements_would_stay_in_an_image_from_a_base(line: str, tmp_path: Path):
    folder = lay(tmp_path / "f", {"mine.py": CLASS, "requirements.txt": f"idna\n{line}\n"})
    with pytest.raises(ConfigError, match=r"requirements\.txt: a URL in it has credentials") as told:
        copied(folder)
    assert "hunter22" not in str(told.value)
    assert "ghp" not in str(told.value)


@pytest.mark.parametrize("line", ["pkg @ git+ssh://git@github.com/a/b", "--index-url https://me:${TOKEN}@h/", "https://h/a@b.whl"])  # fmt: skip
def test_requirements_without_credentials_go_in(line: str, tmp_path: Path):
    folder = lay(tmp_path / "f", {"mine.py": CLASS, "requirements.txt": f"{line}\n"})
    assert "requirements.txt" in copied(folder)
