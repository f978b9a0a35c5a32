"""What a PACS shows of an object and of those that replace it: Orthanc, in a network namespace of its own."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from medenhance_dicom.enhance import Enhancement
from medenhance_dicom.node.forward import send_files
from medenhance_dicom.node.settings import Destination
from medenhance_dicom.selection import Settings
from tests.dicom_peers import in_own_network, running
from tests.synthetic import make_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/usr/sbin/Orthanc").exists(), reason="no Orthanc"),
]
NOW = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
ORTHANC = Destination(name="orthanc", ae_title="ORTHANC", host="127.0.0.1", port=4242)
CORRECTIONS = (
    {"PatientName": "Test^One", "PatientID": "1", "AccessionNumber": "A1"},
    {"PatientName": "Test^Two", "PatientID": "2", "AccessionNumber": "A1"},  # another patient's after all
    {"PatientName": "Test^Two", "PatientID": "2", "AccessionNumber": "A2"},
)


def orthanc(folder):
    (folder / "db").mkdir()
    configuration = {
        "DicomAet": "ORTHANC", "DicomPort": 4242, "HttpPort": 8142, "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"), "RemoteAccessAllowed": True, "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    return running("/usr/sbin/Orthanc", folder / "orthanc.json", port=8142)


def rest(path, content=None):
    with httpx.Client(timeout=30, trust_env=False, base_url="http://127.0.0.1:8142") as web:
        answer = web.get(path) if content is None else web.post(path, json=content)
    assert answer.status_code == 200, answer.text
    return answer.json()


def found(level, **query):
    return rest("/tools/find", {"Level": level, "Query": query, "Expand": True})


@in_own_network
def test_what_is_replaced_and_what_replaces_it_are_both_there_each_under_its_patient(tmp_path):
    settings = Settings(output=tmp_path / "out", recipe="identity", device="cpu")
    made = []
    for said in CORRECTIONS:
        (tmp_path / "source").mkdir(exist_ok=True)
        make_file(tmp_path / "source" / "a.dcm", "CR", rows=32, columns=32, **said)
        (outcome,) = Enhancement(settings, now=NOW).outcomes([tmp_path / "source"])
        made.append(Path(outcome.derived))
    with orthanc(tmp_path):
        for derived in made:
            assert not send_files([derived], ORTHANC, calling_ae="NODE").failed
            assert not send_files([derived], ORTHANC, calling_ae="NODE").failed  # sent twice, it is there once
        shown = {tags["SOPInstanceUID"]: tags for tags in map(tags_of, rest("/instances"))}
        assert sorted(shown) == sorted(path.stem for path in made)
        for derived, said in zip(made, CORRECTIONS, strict=True):
            assert {keyword: shown[derived.stem][keyword] for keyword in said} == said
        assert [replaced(shown[path.stem]) for path in made] == [None, made[0].stem, made[1].stem]
        # A person who looks for a patient finds what says so, the replaced object under the patient whose it was not.
        assert [len(found("Series", PatientID=patient)) for patient in ("1", "2")] == [1, 2]
        (before,) = found("Instance", SOPInstanceUID=replaced(shown[made[2].stem]))
        assert tags_of(before["ID"])["AccessionNumber"] == "A1"
        assert rest(f"/instances/{before['ID']}/content/OriginalAttributesSequence/0/ModifiedAttributesSequence/0")


def tags_of(instance):
    return rest(f"/instances/{instance}/simplified-tags")


def replaced(tags):
    """SOP Instance UID of what an object says that it replaces, as Orthanc tells it."""
    items = tags.get("OriginalAttributesSequence", [])
    return items[0]["ModifiedAttributesSequence"][0]["SOPInstanceUID"] if items else None
