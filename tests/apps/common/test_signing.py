"""Canonical bytes as documented, signatures against openssl, keys that stay secret."""

import base64
import json
import os
import shutil
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from apps.common import signing

CONTENT = {"b": [1, None, True, -3], "a": 'é "\\\n\u0007', "c": {"0.5": "0.5"}}


def by_hand(value) -> str:
    """What SERVICE.md says of canonical JSON, with nothing of `json`."""
    if isinstance(value, dict):
        pairs = sorted(value.items())
        return "{" + ",".join(by_hand(k) + ":" + by_hand(v) for k, v in pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(by_hand, value)) + "]"
    if isinstance(value, str):
        short = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n",
                 "\r": "\\r", "\t": "\\t"}  # fmt: skip
        spelled = (
            short.get(c, f"\\u{ord(c):04x}" if ord(c) < 32 else c) for c in value
        )
        return '"' + "".join(spelled) + '"'
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
keys = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=4)
integers = st.integers(-(2**53) + 1, 2**53 - 1)
values = st.recursive(
    st.none() | st.booleans() | integers | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


@given(values)
def test_one_spelling_and_nothing_is_lost(value):
    found = signing.canonical(value)
    assert found == by_hand(value).encode("utf-8")
    assert json.loads(found) == value


def test_the_order_of_keys_does_not_matter():
    turned = dict(reversed(CONTENT.items()))
    assert signing.canonical(turned) == signing.canonical(CONTENT)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "float cannot be signed"),
        ([2**53], "larger than 2"),
        ({"é": 1}, "printable ASCII"),
        ({1: 1}, "printable ASCII"),
        ("\ud800", "surrogate"),
        (b"x", "bytes cannot be signed"),
    ],
)
def test_what_has_no_one_spelling_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        signing.canonical(value)
    deep: list = []
    for _ in range(signing.DEEPEST + 1):
        deep = [deep]
    with pytest.raises(ValueError, match="levels"):
        signing.canonical(deep)


@pytest.fixture
def folder(tmp_path):
    signing.create_key(tmp_path / "key.pem")
    return tmp_path


def test_openssl_verifies_a_signature_and_makes_one(folder):
    """Neither our code nor the package that signed."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs openssl")
    (folder / "bytes").write_bytes(signing.canonical(CONTENT))
    value = signing.sign(CONTENT, signing.load_key(folder / "key.pem"))
    (folder / "signature").write_bytes(base64.b64decode(value))
    check = [
        program, "pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", "-rawin",
        "-in", "bytes", "-sigfile", "signature",
    ]  # fmt: skip
    done = subprocess.run(check, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Verified Successfully" in done.stdout
    make = [program, "pkeyutl", "-sign", "-inkey", "key.pem", "-rawin", "-in", "bytes"]
    theirs = subprocess.run(make, cwd=folder, capture_output=True, check=True).stdout
    assert base64.b64encode(theirs).decode() == value  # Ed25519 is deterministic
    (folder / "bytes").write_bytes(signing.canonical(CONTENT) + b" ")
    assert subprocess.run(check, cwd=folder, capture_output=True).returncode == 1


def test_every_changed_bit_of_a_signature_is_seen(folder):
    key = signing.load_key(folder / "key.pem")
    value = signing.sign(CONTENT, key)
    signing.check(CONTENT, value, key.public_key())
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    # Also where base64 has bits to spare: in the last letter, before "==".
    for place in (0, 40, 85):
        for letter in letters:
            other = value[:place] + letter + value[place + 1 :]
            if other != value:
                with pytest.raises(ValueError, match="does not fit"):
                    signing.check(CONTENT, other, key.public_key())
    for other in ("", "!", value[:-1], value + "\n", value[:-2], value * 2):
        with pytest.raises(ValueError, match="does not fit"):
            signing.check(CONTENT, other, key.public_key())


def test_a_key_is_its_owners_alone_and_stays(folder):
    path = folder / "key.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    (folder / "public.pem").unlink()
    signing.create_key(path)  # the public half comes back
    assert path.read_bytes() == before
    public = signing.load_public(folder / "public.pem")
    assert public == signing.load_key(path).public_key()
    assert {p.name for p in folder.iterdir()} == {"key.pem", "public.pem"}
    os.chmod(path, 0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        signing.load_key(path)


def test_a_missing_or_odd_key_is_named_and_never_shown(tmp_path, capsys):
    path = tmp_path / "key.pem"
    with pytest.raises(FileNotFoundError, match="restore it from your backup"):
        signing.load_key(path)
    with pytest.raises(FileNotFoundError, match="no public key"):
        signing.load_public(path)
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = serialization.Encoding.PEM
    private = serialization.PrivateFormat.PKCS8
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(
        pem, private, serialization.BestAvailableEncryption(b"x")
    )
    plain = other.private_bytes(pem, private, serialization.NoEncryption())
    for content in (b"", b"MC4CAQAwBQYDK2VwBCIEIFsecret", b"\xff" * 99, locked, plain):
        signing.write_secret(path, content)
        with pytest.raises(ValueError, match="no Ed25519 private key") as error:
            signing.load_key(path)
        assert "secret" not in str(error.value)
        with pytest.raises(ValueError, match=r"no public key in PEM|is a private key"):
            signing.load_public(path)
    path.write_bytes(
        other.public_key().public_bytes(
            pem, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    with pytest.raises(ValueError, match="not of Ed25519"):
        signing.load_public(path)


def test_a_failed_write_leaves_no_part_of_a_secret(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        signing.write_secret(tmp_path / "key.pem", b"secret")
    assert not list(tmp_path.iterdir())
