"""Receipts: what is signed, and what hostile files come to."""

import base64
import copy
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.common import receipt, signing
from apps.unlearning.receipt import verify_command
from tests.apps.unlearning.receipts import CONTENT, KEY, comparison, content, estimate

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "apps" / "unlearning" / "examples"
TEXT = receipt.write(CONTENT, KEY)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "r.json").write_text(TEXT)
    (tmp_path / "public.pem").write_bytes(signing.public_pem(KEY.public_key()))
    return tmp_path


def refused(path: Path, capsys, word: str = "") -> str:
    """The one line with which the command refuses a file."""
    assert verify_command([str(path)]) == 1
    said = capsys.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    assert said.err.startswith("NOT VALID")
    assert "Traceback" not in said.err
    assert len(said.err) < 800
    assert word in said.err
    return said.err


def test_a_good_receipt(folder, capsys):
    assert verify_command([str(folder / "r.json")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("VALID")
    assert "compare it with the published one" in said
    assert verify_command([str(folder / "r.json"), "--key",
                           str(folder / "public.pem")]) == 0  # fmt: skip
    assert "lay beside" not in capsys.readouterr().out


def test_the_layout_of_the_file_is_free(folder):
    table = json.loads(TEXT)
    turned = dict(reversed(table.items()))
    (folder / "r.json").write_text(json.dumps(turned, ensure_ascii=True, indent=7))
    receipt.verify(folder / "r.json")


def test_by_the_documented_bytes_alone():
    """The sample of the tree, with nothing of ours: as an auditor would write it."""
    table = json.loads((EXAMPLES / "sample-receipt.json").read_bytes())
    signature = table.pop("signature")
    signed = json.dumps(
        table, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode("utf-8")
    key = load_pem_public_key((EXAMPLES / "sample-receipt.pem").read_bytes())
    key.verify(base64.b64decode(signature["value"]), signed)
    raw = key.public_bytes_raw()
    assert hashlib.sha256(raw).hexdigest() == signature["key_sha256"]
    assert not any(isinstance(value, float) for value in leaves(table))


def test_the_sample_by_the_command_without_torch():
    script = (
        "import sys; from apps.unlearning.receipt import verify_command\n"
        "status = verify_command(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(status)"
    )
    path = str(EXAMPLES / "sample-receipt.json")
    done = subprocess.run([sys.executable, "-c", script, path], cwd=ROOT)
    assert done.returncode == 0


def leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return [value]
    return [leaf for inner in value for leaf in leaves(inner)]


def places(value, where=()):
    """Every place in nested dicts and lists, of values that are neither."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        if isinstance(inner, dict | list) and inner:
            yield from places(inner, (*where, key))
        else:
            yield (*where, key)


def changed(value):
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        last = "1" if value[-1:] != "1" else "2"
        return value[:-1] + last
    return ["x"]


def test_every_edited_field_is_seen(folder, capsys):
    table = json.loads(TEXT)
    found = list(places(table))
    assert len(found) > 130
    for place in found:
        edited = copy.deepcopy(table)
        inner = edited
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = changed(inner[place[-1]])
        (folder / "r.json").write_text(json.dumps(edited))
        refused(folder / "r.json", capsys)


def test_every_left_out_or_added_member_is_seen(folder, capsys):
    table = json.loads(TEXT)
    for name in table:
        edited = {k: v for k, v in table.items() if k != name}
        (folder / "r.json").write_text(json.dumps(edited))
        refused(folder / "r.json", capsys, name)
    (folder / "r.json").write_text(json.dumps(table | {"note": "x"}))
    refused(folder / "r.json", capsys, "note")


def test_cut_off_anywhere(folder, capsys):
    for end in range(0, len(TEXT) - 2, 97):
        (folder / "r.json").write_text(TEXT[:end])
        refused(folder / "r.json", capsys, "not JSON, or cut off")


@settings(max_examples=60)
@given(st.binary(max_size=60), st.integers(0, len(TEXT) - 1))
def test_bytes_of_any_kind(noise, place):
    start = TEXT.encode()
    for hostile in (noise, start[:place] + noise + start[place + len(noise) :]):
        try:
            found, table = receipt.parse(hostile)
            signed = {k: v for k, v in table.items() if k != "signature"}
            signing.check(signed, found.signature.value, KEY.public_key())
        except ValueError:
            continue
        assert table == json.loads(TEXT)  # what was put in changed nothing


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('"number": 1', '"number": 1, "number": 2', "stands twice"),
        ('"n": 50', '"n": 50, "n": 50', "stands twice"),
        ('"number": 1', '"number": 1.0', "fraction"),
        ('"number": 1', '"number": 1e999', "fraction"),
        ('"number": 1', '"number": NaN', "fraction"),
        ('"number": 1', '"number": -Infinity', "fraction"),
        ('"number": 1', f'"number": {"9" * 5000}', "too large"),
        ('"number": 1', f'"number": {2**53}', "number"),
        ('"number": 1', '"number": true', "number"),
        ('"number": 1', '"number": "1"', "number"),
        ('"number": 1', '"number": ' + "[" * 100_000, "nested"),
        ('"number": 1', '"number": ' + '{"a":' * 100_000, "nested"),
        ('"level": "statistical"', '"level": "exact"', "support"),
        ('"level": "statistical"', '"level": "perfect"', "level"),
        ('"verdict": "not', '"verdict": "\\u001b[2Jnot', "does not fit"),
        ('"verdict": "not', '"verdict": "\\ud800not', "verdict"),
        ('"verdict": "not', f'"verdict": "{"x" * 3000}not', "verdict"),
        ('"models/0001.safetensors"', '"/etc/passwd"', "no path within"),
        ('"models/0001.safetensors"', '"../0001.safetensors"', "no path within"),
        ('"records_erased": 50', '"records_erased": 49', "add up"),
        ("{", "\ufeff{", "JSON"),
    ],
)
def test_hostile_json(folder, capsys, old, new, word):
    assert old in TEXT
    (folder / "r.json").write_text(TEXT.replace(old, new, 1), "utf-8", "surrogatepass")
    refused(folder / "r.json", capsys, word)


def test_a_very_large_file_is_not_read(folder, capsys):
    with open(folder / "r.json", "r+b") as file:
        file.truncate(100_000_000)
    began = time.process_time()
    refused(folder / "r.json", capsys, "10,000,000 bytes")
    assert time.process_time() - began < 5


def test_other_files(folder, capsys):
    for text in ("", "null", "[]", "3", '"x"', "{}", "\x00" * 9):
        (folder / "r.json").write_text(text)
        refused(folder / "r.json", capsys)
    (folder / "r.json").write_bytes(b"\xff\xfe{}")
    refused(folder / "r.json", capsys, "UTF-8")
    assert verify_command([str(folder / "none.json")]) == 2
    assert verify_command([str(folder)]) == 2
    (folder / "r.json").write_text(TEXT)
    (folder / "public.pem").unlink()
    assert verify_command([str(folder / "r.json")]) == 2
    assert "no public key" in capsys.readouterr().err
    for argv in ([], ["--nothing"], [str(folder / "r.json"), "--wiped"]):
        assert verify_command(argv) == 2
        assert "sparsekit unlearning verify: error: " in capsys.readouterr().err


def test_nothing_of_a_receipt_steers_the_terminal(folder, capsys):
    """Escape sequences and turned text, in a receipt that is valid."""
    evil = "ok \x1b[2J\u202e\u200b\x07\r done"
    (folder / "r.json").write_text(receipt.write(content(verdict=evil), KEY))
    assert verify_command([str(folder / "r.json")]) == 0
    assert "verdict: ok ?[2J???? done" in capsys.readouterr().out


def test_another_key(folder, capsys):
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    (folder / "public.pem").write_bytes(signing.public_pem(other.public_key()))
    refused(folder / "r.json", capsys, "signed with the key")
    table = json.loads(TEXT)  # and one that names the other key, too
    table["signature"]["key_sha256"] = signing.fingerprint(other.public_key())
    (folder / "r.json").write_text(json.dumps(table))
    refused(folder / "r.json", capsys, "does not fit")
    (folder / "public.pem").write_text("no key")
    refused(folder / "r.json", capsys, "no public key in PEM")
    signing.create_key(folder / "key.pem")
    (folder / "public.pem").write_bytes((folder / "key.pem").read_bytes())
    refused(folder / "r.json", capsys, "is a private key: keep it secret")


def test_an_old_receipt_does_not_answer_another_request(folder, capsys):
    argv = [str(folder / "r.json"), "--request"]
    assert verify_command([*argv, "r-1"]) == 0
    assert "answers: request r-1" in capsys.readouterr().out
    assert verify_command([*argv, "r-2"]) == 1
    assert "does not answer request 'r-2'" in capsys.readouterr().err


def test_times_are_in_order():
    times = CONTENT["process"] | {"started": "2026-11-28T10:02:01Z"}
    with pytest.raises(ValueError, match="not in this order"):
        receipt.write(content(process=times), KEY)
    late = CONTENT["requests"][0] | {"received": "2026-11-28T10:01:01Z"}
    with pytest.raises(ValueError, match="not in this order"):
        receipt.write(content(requests=[late]), KEY)


GAPS = {
    "whole interval within the margin": (("0.01", "-0.04", "0.06"), True),
    "over-unlearned": (("-0.15", "-0.2", "-0.1"), False),
    "too wide to show anything": (("0.0", "-0.11", "0.11"), False),
    "no interval": (("0.0", None, None), False),
    "within the margin, and above it": (("0.09", "0.07", "0.11"), False),
}


@pytest.mark.parametrize("name", GAPS)
def test_no_level_that_the_numbers_do_not_support(name):
    values, supported = GAPS[name]
    audit = CONTENT["audit"] | {
        "attacks": [comparison("rmia", gap=estimate(*values)), comparison("other")]
    }
    if supported:
        receipt.write(content(audit=audit), KEY)
        return
    with pytest.raises(ValueError, match="support no level"):
        receipt.write(content(audit=audit), KEY)
    # Neither does a method that is exact, with a mask that saw the records.
    method = CONTENT["method"] | {"name": "retrain"}
    seen = {"provenance": "with-forget-data", "note": "kept"}
    with pytest.raises(ValueError, match="support no level"):
        receipt.write(content(audit=audit, method=method, mask=seen), KEY)
    receipt.write(content(audit=audit, method=method, level="exact"), KEY)


def test_an_audit_that_sees_nothing_shows_nothing():
    """No attack sees the records in the original model; or it still sees as much."""
    blind = comparison("rmia", control=estimate("0.01", "-0.05", "0.07"))
    idle = comparison(
        "rmia",
        gap=estimate("0.05", "0.01", "0.09"),
        control=estimate("0.05", "0.01", "0.09"),
    )
    still = comparison(  # the erased records are still classified as if learned
        "UA",
        gap=estimate("-0.05", "-0.08", "-0.02"),
        control=estimate("-0.06", "-0.09", "-0.03"),
    )
    good = comparison("rmia")
    receipt.write(content(audit=CONTENT["audit"] | {"attacks": [good]}), KEY)
    for attacks, metrics in (
        ([blind], []), ([idle], []), ([blind, idle], []), ([], []),
        ([], [comparison("UA")]), ([good], [still]),
    ):  # fmt: skip
        audit = CONTENT["audit"] | {"attacks": attacks, "metrics": metrics}
        with pytest.raises(ValueError, match="support no level"):
            receipt.write(content(audit=audit), KEY)
    few = comparison("rmia", gap=estimate("0.01", "-0.04", "0.06") | {"n": 19})
    with pytest.raises(ValueError, match="support no level"):
        receipt.write(content(audit=CONTENT["audit"] | {"attacks": [few]}), KEY)
    one = CONTENT["audit"] | {"references": 1}
    with pytest.raises(ValueError, match="support no level"):
        receipt.write(content(audit=one), KEY)


def test_no_receipt_without_what_is_out_of_scope():
    with pytest.raises(ValueError, match="out_of_scope"):
        receipt.write(content(out_of_scope=[]), KEY)
    data = CONTENT["data"] | {"records_erased": 0, "records_after": 500}
    with pytest.raises(ValueError, match="no record was erased"):
        receipt.write(content(data=data), KEY)


def test_one_changed_byte_in_a_listed_file(folder):
    body = bytes(range(256)) * 4
    after = CONTENT["after"] | {"sha256": hashlib.sha256(body).hexdigest()}
    old = hashlib.sha256(b"old").hexdigest()
    retired = [{"path": "models/0000.safetensors", "kind": "model", "sha256": old}]
    text = receipt.write(content(after=after, retired=retired), KEY)
    (folder / "r.json").write_text(text)
    model = folder / "models" / "0001.safetensors"
    with pytest.raises(ValueError, match="is not in"):
        receipt.verify(folder / "r.json", files=folder)
    model.parent.mkdir()
    model.write_bytes(body)
    (model.parent / "0000.safetensors").write_bytes(b"old")
    _, said = receipt.verify(folder / "r.json", files=folder)
    assert said[-1] == "retired: 0 gone, 1 still there"
    with pytest.raises(ValueError, match="still there"):
        receipt.verify(folder / "r.json", files=folder, wiped=True)
    (model.parent / "0000.safetensors").unlink()
    receipt.verify(folder / "r.json", files=folder, wiped=True)
    for place in (0, 500, 1023):
        other = bytearray(body)
        other[place] ^= 1
        model.write_bytes(other)
        with pytest.raises(ValueError, match="another content"):
            receipt.verify(folder / "r.json", files=folder)
    model.unlink()
    model.symlink_to(folder / "r.json")
    with pytest.raises(ValueError, match="through a link"):
        receipt.verify(folder / "r.json", files=folder)
