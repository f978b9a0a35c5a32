"""A whole node with Orthanc as source, archive and commitment partner, in a network namespace of their own."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from tests.dicom_peers import in_own_network, running
from tests.node_process import NodeUnderTest
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/usr/sbin/Orthanc").exists(), reason="no Orthanc"),
]
IDLE = 0.6
DESTINATION = """
[[peers]]
ae_title = "ORTHANC"
[[destinations]]
name = "orthanc"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = 4242
send = "derived"
"""


def orthanc(folder, node_port):
    (folder / "db").mkdir()
    configuration = {
        "DicomAet": "ORTHANC", "DicomPort": 4242, "HttpPort": 8142, "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"), "RemoteAccessAllowed": True, "AuthenticationEnabled": False,
        "DicomModalities": {"node": ["NODE", "127.0.0.1", node_port]}, "DicomAlwaysAllowStore": True,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    return running("/usr/sbin/Orthanc", folder / "orthanc.json", port=8142)


def rest(path, content=None):
    url = f"http://127.0.0.1:8142{path}"
    with httpx.Client(timeout=30, trust_env=False) as web:
        answer = web.get(url) if content is None else web.post(url, content=content)
    assert answer.status_code == 200, answer.text
    return answer.json()


def seconds(event):
    return datetime.fromisoformat(event["time"]).timestamp()


@in_own_network
def test_a_study_comes_from_orthanc_and_its_derived_series_is_committed_there(tmp_path, samples):
    node = NodeUnderTest(tmp_path, DESTINATION, idle=IDLE)
    try:
        with orthanc(tmp_path, node.port):
            node.start()
            assert node.json("node", "check", node.config)["exit_code"] == 0
            pictures = [samples / "study" / name for name in ("op-cornea.dcm", "us-abdomen.dcm")]
            ours = [rest("/instances", picture.read_bytes())["ID"] for picture in pictures]
            assert rest("/modalities/node/store", json.dumps(ours).encode())["FailedInstancesCount"] == 0
            wait_until(lambda: len(node.events("done")) == 2)
            assert len(rest("/instances")) == 4
            derived = [rest(f"/instances/{i}/simplified-tags") for i in rest("/instances") if i not in ours]
            assert all(tags["ImageType"].startswith("DERIVED") for tags in derived)
            assert len(rest("/studies")) == 2
            assert sum(event["instances"] for event in node.events("committed")) == 2
            delay = seconds(node.events("sealed")[0]) - seconds(node.events("received")[0])
            for job in node.json("jobs", "list"):
                times = {
                    name: seconds(e)
                    for name in ("enhanced", "done")
                    for e in node.events(name)
                    if e["job"] == job["job"]
                }
                assert delay + times["done"] - times["enhanced"] < IDLE + 2.0
            assert node.terminate() == 0
    finally:
        node.close()
