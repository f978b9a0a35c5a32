"""Lines of the test plan that need DCMTK or Orthanc on the other side and are not in the tests of a module."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from medenhance_dicom.node.forward import send_files
from medenhance_dicom.node.identity import data_set_digest, read_identity
from medenhance_dicom.node.index import Index
from medenhance_dicom.node.query import query_handlers
from medenhance_dicom.node.receive import Mounted, Receiver
from medenhance_dicom.node.settings import Destination, NodeSettings
from medenhance_dicom.node.spool import Spool
from tests.dicom_peers import authority, dcmtk, in_own_network, running, tls_files
from tests.ports import free_port

pytestmark = pytest.mark.skipif(not Path("/usr/bin/storescu").exists(), reason="no DCMTK")
CALLS = ("-aet", "T1", "-aec", "NODE")


@contextlib.contextmanager
def node(store, *, tls=None, **peer):
    """The listener with query and retrieve; one peer, T1."""
    listener = {"ae_title": "NODE", "port": free_port(), "reserve_bytes": 0, "tls": tls}
    row = {"ae_title": "T1", "query": True} | peer
    settings = NodeSettings.model_validate({"store": store, "listener": listener, "peers": [row]})
    spool = Spool(store)
    receiver = Receiver(settings, spool, Mounted(*query_handlers(Index(spool), lambda: settings)))
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop(5)
        assert not list(spool.incoming.iterdir())


def run(name, *words):
    """A program of DCMTK: its exit code, and what it said."""
    command = [dcmtk(name), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


def at(receiver):
    return "127.0.0.1", receiver.settings.listener.port


def held(receiver):
    return sorted(receiver.spool.store.glob("pending/*/*.dcm"))


def syntax_of(path):
    return pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID


# ---------------------------------------------------------------- storage

CT, CORNEA = "CT_small.dcm", "op-cornea.dcm"
MADE = {
    "-xs": (("dcmcjpeg", "+e1"), CT, "1.2.840.10008.1.2.4.70"),
    "-xy": (("dcmcjpeg", "+eb"), CORNEA, "1.2.840.10008.1.2.4.50"),
    "-xx": (("dcmcjpeg", "+ee"), CT, "1.2.840.10008.1.2.4.51"),
    "-xt": (("dcmcjpls", "+el"), CT, "1.2.840.10008.1.2.4.80"),
    "-xu": (("dcmcjpls", "+en"), CORNEA, "1.2.840.10008.1.2.4.81"),
    "-xr": (("dcmcrle",), CT, "1.2.840.10008.1.2.5"),
    "-xd": (("dcmconv", "+td"), CT, "1.2.840.10008.1.2.1.99"),
    "-xv": (None, "MR_small_jp2klossless.dcm", "1.2.840.10008.1.2.4.90"),
    "-xw": (None, "JPEG2000.dcm", "1.2.840.10008.1.2.4.91"),
}
"""Option of storescu: what makes the file out of which, and its transfer syntax."""


@pytest.mark.slow
@pytest.mark.parametrize("option", MADE)
def test_storescu_in_each_syntax(tmp_path, samples, option):
    tool, name, syntax = MADE[option]
    source = samples / "study" / name if name == CORNEA else Path(get_testdata_file(name))
    if tool is not None:
        assert run(*tool, source, tmp_path / "made.dcm")[0] == 0
        source = tmp_path / "made.dcm"
    path = as_storescu_sends(source, tmp_path / "sent.dcm", *tool[1:] if option == "-xd" else ())
    assert syntax_of(path) == syntax
    with node(tmp_path / "store") as receiver:
        code, said = run("storescu", "-R", option, *CALLS, *at(receiver), path)
        assert code == 0, said
        (kept,) = held(receiver)
        assert syntax_of(kept) == syntax
        assert data_set_digest(kept) == data_set_digest(path)


def as_storescu_sends(source, path, *options):
    """Without trailing padding and group lengths, which DCMTK leaves out."""
    code, said = run("dcmconv", "-p", "-g", *options, source, path)
    assert code == 0, said
    return path


def test_storescu_cannot_convert_and_says_so_itself(tmp_path):
    with node(tmp_path / "store") as receiver:
        code, said = run("storescu", *CALLS, *at(receiver), get_testdata_file("JPEG2000.dcm"))
        assert code != 0
        assert "presentation context" in said.lower() or "convert" in said.lower(), said
        assert not held(receiver)


def test_dcmsend_reports_that_each_file_went_as_it_is(tmp_path, samples):
    report = tmp_path / "report.txt"
    files = sorted((samples / "study").glob("*.dcm"))
    with node(tmp_path / "store") as receiver:
        words = ["-dn", "+sd", *CALLS, "--create-report-file", report, *at(receiver), *files]
        code, said = run("dcmsend", *words)
        assert code == 0, said
        assert {data_set_digest(path) for path in held(receiver)} == {data_set_digest(path) for path in files}
    text = report.read_text()
    original = re.findall(r"Original Xfer.*?: *(.+)", text)
    network = re.findall(r"Network Xfer.*?: *(.+)", text)
    assert original == network
    assert len(network) == len(files), text
    assert re.findall(r"DIMSE Status *: *0x(\w+)", text) == ["0000"] * len(files), text


# ---------------------------------------------------------------- retrieve


@pytest.mark.slow
@in_own_network
def test_movescu_to_its_own_port(tmp_path):
    (tmp_path / "got").mkdir()
    path = as_storescu_sends(get_testdata_file(CT), tmp_path / "ct.dcm")
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={read_identity(path).study}"]
    move = ["-S", *CALLS, "+P", "11116", "-od", tmp_path / "got", "-aem", "T1", *keys]
    with node(tmp_path / "store", host="127.0.0.1", port=11116) as receiver:
        assert run("storescu", *CALLS, *at(receiver), path)[0] == 0
        code, said = run("movescu", *move, *at(receiver))
    assert code == 0, said
    (got,) = (tmp_path / "got").iterdir()
    assert data_set_digest(got) == data_set_digest(path)


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    ours, others = ("ca", *authority("ca")), ("other-ca", *authority("other-ca"))
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    return {
        "node": tls_files(folder, "node", ours),
        "client": tls_files(folder, "client", ours),
        "expired": tls_files(folder, "expired", ours, until=past),
        "foreign": tls_files(folder, "foreign", others, trusts=ours[2]),
    }


@pytest.fixture
def secure(tmp_path, certificates):
    with node(tmp_path / "store", tls=certificates["node"].model_dump() | {"port": free_port()}) as receiver:
        yield receiver


def over_tls(files, *more):
    return "+tls", files.key, files.certificate, "+cf", files.authority, *more


@pytest.mark.parametrize("profile", ["+py", "+px", "+pz"])
def test_storescu_over_tls_with_each_profile(secure, certificates, tmp_path, profile):
    path = as_storescu_sends(get_testdata_file(CT), tmp_path / "ct.dcm")
    words = [*over_tls(certificates["client"], profile), *CALLS, "127.0.0.1", secure.settings.listener.tls.port]
    code, said = run("storescu", *words, path)
    assert code == 0, said
    (kept,) = held(secure)
    assert data_set_digest(kept) == data_set_digest(path)


def test_tls_without_encryption_or_with_a_wrong_certificate_stores_nothing(secure, certificates):
    port = secure.settings.listener.tls.port
    client = certificates["client"]
    refused = {
        "NULL": (over_tls(client, "+pn"), port),
        "no certificate": (("+tla", "+cf", client.authority), port),
        "expired": (over_tls(certificates["expired"]), port),
        "foreign": (over_tls(certificates["foreign"]), port),
        "plain": ((), port),
        "TLS to the plain port": (over_tls(client), secure.settings.listener.port),
    }
    for name, (words, to) in refused.items():
        code, said = run("storescu", "-to", "5", "-ta", "5", *words, *CALLS, "127.0.0.1", to, get_testdata_file(CT))
        assert code != 0, (name, said)
        assert "unknown option" not in said.lower(), said
        assert not held(secure)
    assert run("echoscu", *CALLS, "127.0.0.1", secure.settings.listener.port)[0] == 0


# ---------------------------------------------------------------- our sender, and Orthanc


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--reject", "-pm"])
@in_own_network
def test_storescp_that_insists_on_who_we_are_or_takes_anything(tmp_path, option):
    """`--reject` turns away who has no Implementation Class UID."""
    path = Path(get_testdata_file(CT))
    (tmp_path / "kept").mkdir()
    words = [option, "-aet", "THERE", "-od", tmp_path / "kept", "11115"]
    there = Destination(name="storescp", ae_title="THERE", host="127.0.0.1", port=11115, response_timeout=60)
    with running(dcmtk("storescp"), *words, port=11115):
        assert [item.status for item in send_files([path], there, calling_ae="ME").sent] == [0x0000]
    assert len(list((tmp_path / "kept").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/usr/sbin/Orthanc").exists(), reason="no Orthanc")
@in_own_network
def test_orthanc_echoes(tmp_path):
    with node(tmp_path / "store") as receiver:
        modalities = {"node": ["NODE", *at(receiver)], "wrong": ["OTHER", *at(receiver)]}
        (tmp_path / "orthanc.json").write_text(
            json.dumps({"DicomAet": "T1", "DicomPort": 4242, "HttpPort": 8142, "StorageDirectory": str(tmp_path / "db"),
                        "IndexDirectory": str(tmp_path / "db"), "DicomModalities": modalities})
        )  # fmt: skip
        (tmp_path / "db").mkdir()
        with running("/usr/sbin/Orthanc", tmp_path / "orthanc.json", port=8142):
            assert _echo("node") == 200
            assert _echo("wrong") != 200


def _echo(modality):
    request = urllib.request.Request(f"http://127.0.0.1:8142/modalities/{modality}/echo", b"{}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
