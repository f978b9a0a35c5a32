"""Site keys and signatures: what a key signed is told from what was changed, what another key signed, and nothing."""

import os
import subprocess

import pytest
from pydicom import dcmread
from typer.testing import CliRunner

from medenhance_dicom.cli import app
from medenhance_dicom.errors import ConfigurationError, OutputError
from medenhance_dicom.identity import header_digest, object_digest, seal
from medenhance_dicom.part10 import read_instance, write_instance
from medenhance_dicom.signature import CREATOR, sign, signature_of, signature_state, unsigned
from medenhance_dicom.site_keys import create_key, load_public_keys, load_signing_key
from medenhance_dicom.verify import BAD_SIGNATURE, NOT_SIGNED, UNKNOWN_KEY, assert_derived, check_file, pixel_digest
from tests.test_verify import pair


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "2026-a"
    create_key(path)
    return path


@pytest.fixture
def signed(key, tmp_path):
    """A signed derived file, and its pixels."""
    _, derived, data = pair("CT")
    (tmp_path / "pixels").write_bytes(data)
    target = tmp_path / "derived.dcm"
    write_instance(derived, tmp_path / "pixels", target)
    sign(derived, load_signing_key(key), pixel_digest(target, derived))
    write_instance(derived, tmp_path / "pixels", target)
    return target, tmp_path / "pixels"


def state(path, key):
    derived = read_instance(path)
    return signature_state(derived, load_public_keys(key), pixel_digest(path, derived))


def test_a_key_is_private_and_its_public_half_is_not(key):
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.with_name("2026-a.pub").stat().st_mode & 0o777 == 0o644
    assert load_signing_key(key).public.pem() == key.with_name("2026-a.pub").read_text()
    assert key.read_text().split()[3] not in repr(load_signing_key(key))
    said = subprocess.run(
        ["openssl", "pkey", "-in", key, "-noout", "-text"], capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("ED25519 Private-Key")


def test_a_key_is_not_written_over(key):
    before = key.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        create_key(key)
    assert key.read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_private_key_that_others_may_read_is_refused(key, tmp_path, mode):
    copy = tmp_path / "copy"
    copy.write_bytes(key.read_bytes())
    copy.chmod(mode)
    for load in (load_signing_key, load_public_keys):
        with pytest.raises(ConfigurationError, match="0600"):
            load(copy)


def test_files_that_hold_no_key(key, tmp_path):
    other = tmp_path / "rsa"
    subprocess.run(["openssl", "genrsa", "-out", other, "1024"], capture_output=True, check=True)
    other.chmod(0o600)
    (tmp_path / "broken").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    with pytest.raises(ConfigurationError, match="not an Ed25519 private key"):
        load_signing_key(other)
    with pytest.raises(ConfigurationError, match="not an Ed25519 public key"):
        load_public_keys(tmp_path / "broken")
    for load in (load_signing_key, load_public_keys):
        with pytest.raises(ConfigurationError, match="No such file"):
            load(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="no private key"):
        load_signing_key(key.with_name("2026-a.pub"))


def test_a_signed_object_is_good_with_and_without_the_key(signed, key):
    target, _ = signed
    assert check_file(target) == []
    assert check_file(target, keys=load_public_keys(key.with_name("2026-a.pub"))) == []
    derived = dcmread(target)
    assert derived[0x0099, 0x0010].value == CREATOR
    assert [(derived[tag].VR, derived[tag].value) for tag in (0x00991001, 0x00991002)] == [
        ("LO", "ED25519"), ("LO", load_signing_key(key).id)
    ]  # fmt: skip
    assert len(derived[0x0099, 0x1003].value) == 64


def test_the_signature_is_in_no_digest_and_a_repeat_gives_the_same(key):
    _, derived, _ = pair()
    before = header_digest(derived), object_digest(derived)
    sign(derived, load_signing_key(key), "00" * 32)
    first = signature_of(derived)
    sign(derived, load_signing_key(key), "00" * 32)
    assert signature_of(derived) == first
    assert (header_digest(derived), object_digest(derived)) == before
    assert unsigned(derived) == pair()[1]


def test_a_forgery_with_every_digest_recomputed_is_a_bad_signature(signed, key):
    target, pixels = signed
    derived = read_instance(target)
    derived.ContributingEquipmentSequence[-1].SoftwareVersions = ["medenhance-dicom 0.1.0", "engine other fp32"]
    seal(derived)
    write_instance(derived, pixels, target)
    assert check_file(target) == []  # nothing else can tell
    assert check_file(target, keys=load_public_keys(key)) == [BAD_SIGNATURE]


def test_other_pixels_with_the_recorded_digest_recomputed_are_a_bad_signature(signed, key):
    target, pixels = signed
    derived = read_instance(target)
    changed = bytearray(pixels.read_bytes())
    changed[100] ^= 1
    pixels.write_bytes(changed)
    write_instance(derived, pixels, target)
    item, before = derived.ContributingEquipmentSequence[-1], pixel_digest(signed[0], derived)
    said = item.ContributionDescription.split("; ")
    item.ContributionDescription = "; ".join(
        f"pixels sha256:{before}" if part.startswith("pixels") else part for part in said
    )
    seal(derived)
    write_instance(derived, pixels, target)
    assert check_file(target) == []
    assert check_file(target, keys=load_public_keys(key)) == [BAD_SIGNATURE]


def test_unknown_key_not_signed_and_bad_signature_are_told_apart(signed, key, tmp_path):
    target, pixels = signed
    other = tmp_path / "other"
    create_key(other)
    assert check_file(target, keys=load_public_keys(other)) == [UNKNOWN_KEY]
    derived = read_instance(target)
    derived[0x0099, 0x1002].value = load_signing_key(other).id  # put down to another
    write_instance(derived, pixels, target)
    assert check_file(target, keys=load_public_keys(other)) == [BAD_SIGNATURE]
    write_instance(unsigned(derived), pixels, target)
    assert check_file(target, keys=load_public_keys(key)) == [NOT_SIGNED]


@pytest.mark.parametrize(
    ("tag", "value"), [(0x00991001, "RSA"), (0x00991003, b"\0" * 64), (0x00991003, b"short!"), (0x00991003, None)]
)
def test_a_block_that_holds_something_else_is_a_bad_signature(signed, key, tag, value):
    derived = read_instance(signed[0])
    if value is None:
        del derived[tag]
    else:
        derived[tag].value = value
    assert signature_state(derived, load_public_keys(key), "00" * 32) == "bad signature"


def test_what_else_is_private_is_still_refused(signed):
    derived = read_instance(signed[0])
    derived.add_new(0x00991004, "LO", "more")
    assert "private: must not be in a derived object" in assert_derived(derived)
    del derived[0x00991004]
    derived.add_new(0x00990011, "LO", CREATOR)
    assert "private: must not be in a derived object" in assert_derived(derived)


def test_a_block_that_was_moved_or_lost_its_vr_verifies(signed, key):
    target, _ = signed
    derived = read_instance(target)
    values = [derived[tag].value for tag in (0x00990010, 0x00991001, 0x00991002, 0x00991003)]
    plain = unsigned(derived)
    plain.add_new(0x00990011, "UN", values[0].encode())
    plain.add_new(0x00991101, "UN", values[1].encode() + b" ")
    plain.add_new(0x00991102, "UN", values[2].encode())
    plain.add_new(0x00991103, "UN", values[3])
    assert signature_state(plain, load_public_keys(key), pixel_digest(target, derived)) == "signed"


def test_the_newest_key_signs_and_the_old_ones_verify(signed, key, tmp_path):
    target, pixels = signed
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "2026-a").write_bytes(key.read_bytes())
    (folder / "2026-a").chmod(0o600)
    create_key(folder / "2027-a")
    (folder / "README").write_text("no key")
    assert load_signing_key(folder).id == load_signing_key(folder / "2027-a").id
    assert set(load_public_keys(folder)) == {load_signing_key(key).id, load_signing_key(folder).id}
    derived = read_instance(target)
    assert state(target, folder) == "signed"
    sign(derived, load_signing_key(folder), pixel_digest(target, derived))
    write_instance(derived, pixels, target)
    assert state(target, folder) == "signed"
    assert state(target, key) == "unknown key"
    together = tmp_path / "trusted.pem"  # and several in one file
    together.write_bytes(b"".join(sorted(path.read_bytes() for path in folder.glob("*.pub"))))
    assert state(target, together) == "signed"


def test_others_can_verify_by_what_the_page_says(signed, key, tmp_path):
    derived = read_instance(signed[0])
    lines = [CREATOR, f"key {derived[0x00991002].value}", f"instance {derived.SOPInstanceUID}",
             f"object {object_digest(derived)}", f"pixels {pixel_digest(signed[0], derived)}"]  # fmt: skip
    (tmp_path / "message").write_text("\n".join(lines))
    (tmp_path / "signature").write_bytes(derived[0x00991003].value)
    subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", f"{key}.pub", "-rawin", "-in", tmp_path / "message",
         "-sigfile", tmp_path / "signature"], check=True, capture_output=True,
    )  # fmt: skip


def test_the_commands(tmp_path, signed, key):
    runner = CliRunner()
    done = runner.invoke(app, ["keys", "create", str(tmp_path / "site.key")])
    assert done.exit_code == 0, done.output
    private = (tmp_path / "site.key").read_text().splitlines()[1]
    shown = runner.invoke(app, ["keys", "public", str(tmp_path / "site.key")]).output
    assert shown == (tmp_path / "site.key.pub").read_text()
    listed = runner.invoke(app, ["keys", "list", str(tmp_path / "site.key")]).output
    assert listed == f"{load_signing_key(tmp_path / 'site.key').id}  signs\n"
    assert not any(private in said for said in (done.output, shown, listed))
    target = str(signed[0])
    for keys, code, word in ((key, 0, "ok"), (tmp_path / "site.key.pub", 13, "UNKNOWN KEY")):
        done = runner.invoke(app, ["verify", target, "--key", str(keys)])
        assert (done.exit_code, done.output.startswith(word)) == (code, True), done.output


def test_umask_does_not_open_a_key(tmp_path):
    before = os.umask(0)
    try:
        create_key(tmp_path / "open")
    finally:
        os.umask(before)
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o600
