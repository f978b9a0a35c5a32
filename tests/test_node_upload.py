"""STOW-RS into a real spool: the rules of C-STORE, whatever is posted."""

from __future__ import annotations

import hashlib
from functools import partial

import pytest
from fastapi.testclient import TestClient
from pydicom import dcmread

from medenhance_dicom.audit import Audit, verify
from medenhance_dicom.node.http import make_app
from medenhance_dicom.node.settings import HTTP, Listener, NodeSettings
from medenhance_dicom.node.spool import Spool
from medenhance_dicom.node.upload import open_intake

URL = "/dicom-web/studies"


@pytest.fixture
def node(tmp_path):
    class Node:
        spool = Spool(tmp_path)
        audit = Audit(tmp_path / "audit" / "audit.jsonl")
        settings = NodeSettings(store=tmp_path, listener=Listener(reserve_bytes=0), http=HTTP(stow=True))

        def post(self, *files: bytes, study=""):
            body = b"".join(b"--b0\r\nContent-Type: application/dicom\r\n\r\n" + f + b"\r\n" for f in files) + b"--b0--"
            content_type = 'multipart/related; type="application/dicom"; boundary=b0'
            return self.client.post(URL + study, content=body, headers={"Content-Type": content_type})

        def files(self, *folders):
            return [p for f in folders or ("incoming", "pending", "held") for p in tmp_path.glob(f"{f}/**/*.*[mt]")]

    node = Node()
    app = make_app(
        lambda: node.settings, incoming=node.spool.incoming, problems=list, busy=lambda: None,
        intake=partial(open_intake, node.spool, node.audit, lambda: node.settings), metrics=lambda: (b"", "text/plain"),
    )  # fmt: skip
    node.client = TestClient(app)
    return node


@pytest.fixture(scope="module")
def sample(samples):
    return (samples / "study" / "op-fundus.dcm").read_bytes()


def failures(answer):
    items = answer.json().get("00081198", answer.json().get("0008119A", {"Value": []}))["Value"]
    return [item["00081197"]["Value"][0] for item in items]


def test_bytes_are_kept_as_they_came_and_a_repeat_is_harmless(node, sample):
    assert node.post(sample).status_code == 200
    (series,) = node.spool.pending()
    assert series.origin["calling_ae"] == "STOW-RS"
    assert series.count == 1
    (stored,) = node.files("pending")
    assert stored.read_bytes() == sample
    assert node.post(sample, sample).status_code == 200
    assert [s.count for s in node.spool.pending()] == [1]
    assert node.files("incoming") == []
    assert list(node.spool.associations()) == []


def test_other_bytes_under_the_same_uid_are_set_aside_and_audited(node, sample):
    other = bytearray(sample)
    other[-1] ^= 1
    answer = node.post(sample, bytes(other))
    assert answer.status_code == 202
    assert failures(answer) == [0x0111]
    (aside,) = node.files("conflicts")
    assert hashlib.sha256(aside.read_bytes()).digest() == hashlib.sha256(other).digest()
    (line,) = node.audit.events()
    assert line["event"] == "conflict"
    assert verify(node.audit.path) is None
    uid = dcmread(node.files("pending")[0]).SOPInstanceUID
    assert uid not in node.audit.path.read_text()


def test_what_is_not_dicom_is_kept_apart(node, sample):
    answer = node.post(b"no picture at all", sample[:400])
    assert answer.status_code == 409
    assert failures(answer) == [0xC000, 0xC000]
    assert len(node.files("quarantine")) == 2
    assert node.files() == []


def test_an_instance_of_another_study_is_refused(node, sample, samples):
    study = dcmread(samples / "study" / "op-fundus.dcm", stop_before_pixels=True).StudyInstanceUID
    assert failures(node.post(sample, study="/1.2.3")) == [0xA900]
    assert node.files() == []
    assert node.post(sample, study=f"/{study}").status_code == 200


@pytest.mark.parametrize(
    ("keyword", "value", "status"),
    [
        ("MediaStorageSOPInstanceUID", "1.2.3.4", 0xA900),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7", 0xA900),
    ],
)
def test_files_that_contradict_themselves_are_refused(node, samples, tmp_path, keyword, value, status):
    instance = dcmread(samples / "study" / "op-fundus.dcm")
    holder = instance.file_meta if keyword.startswith("Media") else instance
    setattr(holder, keyword, value)
    instance.save_as(tmp_path / "edited", enforce_file_format=False)
    answer = node.post((tmp_path / "edited").read_bytes())
    assert answer.status_code == 409
    assert failures(answer) == [status]
    assert node.files() == []


def test_a_transfer_syntax_of_no_stored_object_is_refused_by_name(node, samples, tmp_path):
    instance = dcmread(samples / "study" / "op-fundus.dcm", stop_before_pixels=True)
    for syntax, name in (("1.2.840.10008.1.2.4.94", "JPIP Referenced"), ("1.2.3", "1.2.3")):
        instance.file_meta.TransferSyntaxUID = syntax
        instance.save_as(tmp_path / "edited", implicit_vr=False, little_endian=True)
        assert failures(node.post((tmp_path / "edited").read_bytes())) == [0xC122]
        assert list(node.audit.events())[-1]["transfer_syntax"] == name
    assert node.files() == []


def test_nothing_is_taken_without_room(node, sample):
    node.settings = node.settings.model_copy(update={"listener": Listener(reserve_bytes=1 << 60)})
    answer = node.post(sample)
    assert answer.status_code == 503
    assert failures(answer) == [0xA700]
    assert node.files() == []
