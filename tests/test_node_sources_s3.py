"""An object store as a source, with moto's server as the store."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from medenhance_dicom.errors import PeerError
from medenhance_dicom.node.sources import Found, LeftOut, Wanted, open_source
from tests.synthetic import make_instance

boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def endpoint():
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch, tmp_path):
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    name = f"b{abs(hash(str(tmp_path))) % 10**12}"
    client.create_bucket(Bucket=name)

    def put(key, data):
        client.put_object(Bucket=name, Key=key, Body=data)
        return data

    return name, put, client


def ct(tmp_path, number, **more):
    instance = make_instance("CT", **more)
    instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    instance.save_as(tmp_path / "ct.dcm", enforce_file_format=True)
    return (tmp_path / "ct.dcm").read_bytes()


def scan(text, known=lambda *_: False):
    items = list(open_source(text, readers=4).scan(known))
    return [item for item in items if isinstance(item, Found)], {
        item.locator: item.reason.split(":")[0] for item in items if isinstance(item, LeftOut)
    }


def wanted(item):
    facts = item.facts
    return Wanted(item.locator, facts["StudyInstanceUID"], facts["SeriesInstanceUID"], facts["SOPInstanceUID"])


@pytest.mark.slow
def test_objects_are_found_by_their_headers_alone(bucket, tmp_path):
    name, put, client = bucket
    for number in range(25):
        put(f"in/{number:02}", ct(tmp_path, number))
    big = make_instance("CT", rows=512, columns=512)
    block = big.private_block(0x0019, "SCANNERS LTD", create=True)
    block.add_new(0x10, "OB", bytes(300_000))  # the UIDs lie behind what is read at first
    big.SOPInstanceUID = big.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
    big.save_as(tmp_path / "big.dcm", enforce_file_format=True)
    put("in/big name?é", (tmp_path / "big.dcm").read_bytes())
    put("in/notes.txt", b"not a picture")
    put("in/empty", b"")
    put("in/.hidden/x", b"x")
    put("in/DICOMDIR", b"x")
    put("in/bare", Path(get_testdata_file("ExplVR_LitEndNoMeta.dcm")).read_bytes())
    put("in/cut", ct(tmp_path, 50)[:400])
    put("out/other", ct(tmp_path, 60))
    found, left = scan(f"s3://{name}/in/")
    uids = {item.locator: item.facts["SOPInstanceUID"] for item in found}
    assert uids.pop(f"s3://{name}/in/bare").startswith("1.2.333.4444.5.6.7.8")
    assert sorted(uids.values()) == sorted(f"1.2.3.{n}" for n in (*range(25), 99))
    prefix = f"s3://{name}/in/"
    assert left == {
        prefix + "notes.txt": "NOT_DICOM", prefix + "empty": "NOT_DICOM", prefix + ".hidden/x": "HIDDEN",
        prefix + "DICOMDIR": "DICOMDIR", prefix + "cut": "UNREADABLE",
    }  # fmt: skip
    one = next(item for item in found if item.facts["SOPInstanceUID"] == "1.2.3.3")
    head = client.head_object(Bucket=name, Key="in/03")
    assert (one.locator, one.size, one.stamp) == (prefix + "03", head["ContentLength"], head["ETag"].strip('"'))
    assert one.facts["Rows"] == "16"
    seen = {(item.locator, item.size, item.stamp) for item in found}
    put("in/04", ct(tmp_path, 4, rows=20))
    again, _ = scan(f"s3://{name}/in/", lambda *key: key in seen)
    assert [item.facts["Rows"] for item in again] == ["20"]


@pytest.mark.slow
def test_objects_are_fetched_whole(bucket, tmp_path):
    name, put, client = bucket
    data = [put(f"x/{n}.dcm", ct(tmp_path, n)) for n in range(4)]
    source = open_source(f"s3://{name}")
    items = sorted((item for item in source.scan(lambda *_: False) if isinstance(item, Found)), key=lambda i: i.locator)
    put("x/1.dcm", ct(tmp_path, 11))
    client.delete_object(Bucket=name, Key="x/2.dcm")
    folder = tmp_path / "got"
    folder.mkdir()
    reasons = list(source.fetch([wanted(item) for item in items], folder))
    assert [reason.split(":")[0] for reason in reasons] == ["CHANGED", "MISSING"]
    assert sorted(path.name for path in folder.iterdir()) == ["0.dcm", "3.dcm"]
    assert [(folder / f"{n}.dcm").read_bytes() for n in (0, 3)] == [data[0], data[3]]


def test_no_bucket_and_no_store(bucket, monkeypatch):
    with pytest.raises(PeerError, match="NoSuchBucket") as caught:
        scan("s3://nosuchbucket/x")
    assert caught.value.permanent
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(PeerError, match="cannot be reached") as caught:
        scan(f"s3://{bucket[0]}/x")
    assert not caught.value.permanent
