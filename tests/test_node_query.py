"""Matching, the index over the spool, and query and retrieve in both roles, with DCMTK as the other side."""

from __future__ import annotations

import subprocess
import time
from typing import NamedTuple

import pydicom
import pytest
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pynetdicom import evt

from medenhance_dicom.errors import PeerError
from medenhance_dicom.node import index as index_module
from medenhance_dicom.node import query as query_module
from medenhance_dicom.node.forward import send_files
from medenhance_dicom.node.identity import read_identity
from medenhance_dicom.node.index import Index, matches
from medenhance_dicom.node.query import (
    RETRIEVED_CLASSES,
    count_instances,
    echo,
    find,
    get,
    move,
    query_handlers,
)
from medenhance_dicom.node.settings import Destination
from medenhance_dicom.node.spool import Spool
from medenhance_dicom.node.wire import accepted_context
from tests.dicom_peers import dcmtk, in_own_network, listen, receiving, running
from tests.ports import free_port

NODE = Destination(name="node", ae_title="NODE", host="127.0.0.1", port=11112)


@pytest.mark.parametrize(
    ("keyword", "patterns", "value", "fits"),
    [
        ("PatientID", [], "X", True),
        ("PatientID", [""], "X", True),
        ("PatientID", ["*"], "", True),
        ("PatientID", ["AB?1*"], "ABC123", True),
        ("PatientID", ["AB?1*"], "abc123", False),
        ("PatientID", ["A[B]*"], "A[B]C", True),
        ("PatientID", ["A[B]*"], "AB", False),
        ("PatientID", ["AB"], "ABC", False),
        ("PatientName", ["müller^*"], "Müller^Anna", True),
        ("PatientName", ["Yamada^Tarou"], "Yamada^Tarou^^=山田^太郎", True),
        ("PatientName", ["山田*"], "Yamada^Tarou=山田^太郎=やまだ", True),
        ("PatientName", ["Y"], "Yamada^Tarou", False),
        ("StudyInstanceUID", ["1.2", "1.3"], "1.3", True),
        ("StudyInstanceUID", ["1.2*"], "1.23", False),
        ("StudyDate", ["20260101"], "20260101", True),
        ("StudyDate", ["20260101"], "2026.01.01", True),
        ("StudyDate", ["20260101-20260131"], "20260131", True),
        ("StudyDate", ["20260101-20260131"], "20260201", False),
        ("StudyDate", ["-20260131"], "20251231", True),
        ("StudyDate", ["20260101-"], "20251231", False),
        ("StudyDate", ["20260101-"], "", False),
        ("StudyTime", ["10"], "105959.99", True),
        ("StudyTime", ["1000-1030"], "103059", True),
        ("StudyTime", ["1000-1030"], "1031", False),
        ("StudyTime", ["1000-1030"], "10:15:00", True),
        ("SeriesNumber", ["7"], "07", True),
        ("SeriesNumber", ["x"], "7", False),
        ("Modality", ["CT", "MR"], "MR", True),
        ("ModalitiesInStudy", ["MR"], "CT\\MR", True),
        ("ModalitiesInStudy", ["US"], "CT\\MR", False),
    ],
)
def test_matching(keyword, patterns, value, fits):
    assert matches(keyword, patterns, value) is fits


def test_a_wildcard_of_stars_takes_no_time():
    start = time.perf_counter()
    assert not matches("StudyDescription", ["*a" * 40 + "b"], "a" * 64)
    assert time.perf_counter() - start < 0.5


def accept(spool, dataset):
    part = spool.new_part()
    dataset.save_as(part, enforce_file_format=True)
    spool.accept(part, read_identity(part), calling_ae="CTSCAN", called_ae="NODE")


@pytest.fixture
def spool(tmp_path, samples):
    """Two CT slices of one series, a JPEG 2000 one of another study, with a Japanese name."""
    spool = Spool(tmp_path / "store")
    for number, path in enumerate(sorted((samples / "study" / "ct").iterdir())[:2], 1):
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.1", "1.2.1.1"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.1.1.{number}"
        dataset.PatientName, dataset.PatientID, dataset.StudyDate = "Doe^Jane", "P1", "20260105"
        dataset.InstanceNumber = number
        accept(spool, dataset)
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("JPEG2000.dcm"))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.2", "1.2.2.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.2.1.1"
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID, dataset.StudyDate = "Yamada^Tarou=山田^太郎", "P2", "20260205"
    accept(spool, dataset)
    return spool


def test_the_index_follows_the_spool(spool):
    index = Index(spool)
    assert [row["NumberOfStudyRelatedInstances"] for row in index.find("STUDY", {})] == ["2", "1"]
    extra = pydicom.dcmread(spool.held("1.2.1.1.1"))
    extra.InstanceNumber = 3
    extra.SOPInstanceUID = extra.file_meta.MediaStorageSOPInstanceUID = "1.2.1.1.3"
    accept(spool, extra)
    again = Index(spool)  # another process
    assert [row["NumberOfStudyRelatedInstances"] for row in again.find("STUDY", {})] == ["3", "1"]
    spool.held("1.2.1.1.2").unlink()
    assert [item.sop_instance for item in index.instances({"StudyInstanceUID": ["1.2.1"]})] == [
        "1.2.1.1.1",
        "1.2.1.1.3",
    ]


def test_an_instance_that_does_not_parse_is_looked_at_once(spool, monkeypatch):
    looked = []
    real = index_module._row
    monkeypatch.setattr(index_module, "_row", lambda path: looked.append(path.name) or real(path))
    spool.held("1.2.1.1.2").write_bytes(b"rubbish" * 1000)
    for _ in range(3):  # a young folder is looked into each time
        assert len(list(Index(spool).find("IMAGE", {}))) == 2
    assert len(looked) == len(set(looked)) == 3
    spool.held("1.2.1.1.2").unlink()
    assert len(list(Index(spool).find("IMAGE", {}))) == 2


def test_a_damaged_index_is_made_again(spool):
    (spool.store / "index.sqlite").write_bytes(b"rubbish" * 1000)
    assert len(list(Index(spool).find("IMAGE", {}))) == 3
    assert (spool.store / "index.sqlite").stat().st_mode & 0o077 == 0


def test_counts_are_of_the_whole_study(spool):
    rows = list(Index(spool).find("STUDY", {"SOPInstanceUID": ["1.2.1.1.2"]}))
    assert [(row["StudyInstanceUID"], row["NumberOfStudyRelatedInstances"]) for row in rows] == [("1.2.1", "2")]


# ---------------------------------------------------------------- both of us


@pytest.fixture
def node(spool):
    """A listener over the spool, and where C-MOVE goes."""
    arrived = []

    def store(event):
        dataset = pydicom.dcmread(event.dataset_path)
        arrived.append((dataset.SOPInstanceUID, event.context.transfer_syntax, event.request.MoveOriginatorMessageID))
        return 0x0000

    target = listen(
        [accepted_context(item, ["1.2.840.10008.1.2.1"]) for item in RETRIEVED_CLASSES],
        [(evt.EVT_C_STORE, store)],
        title="DEST",
    )
    port = free_port()
    peers = [("DEST", target.server_address[1]), "ME"]
    index = Index(spool)
    with receiving(spool, lambda settings: query_handlers(index, lambda: settings), port, *peers):
        yield Node(Destination(name="there", ae_title="NODE", host="127.0.0.1", port=port), arrived)
    target.shutdown()


class Node(NamedTuple):
    address: Destination
    arrived: list


def query(level="STUDY", **keys):
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(dataset, keyword, value)
    return dataset


def ask(node, identifier, **more):
    return list(find(node.address, identifier, calling_ae="ME", **more))


def test_echo(node):
    echo(node.address, calling_ae="ME")
    with pytest.raises(PeerError):
        echo(Destination(name="x", ae_title="X", host="127.0.0.1", port=1), calling_ae="ME")


def test_find_by_level(node):
    both = ask(
        node, query(PatientName=None, StudyInstanceUID=None, ModalitiesInStudy=None, NumberOfStudyRelatedSeries=None)
    )
    assert [(str(item.PatientName), item.StudyInstanceUID, item.ModalitiesInStudy) for item in both] == [
        ("Doe^Jane", "1.2.1", "CT"),
        ("Yamada^Tarou=山田^太郎", "1.2.2", "NM"),
    ]
    assert both[0].NumberOfStudyRelatedSeries == 1
    assert both[0].RetrieveAETitle == "NODE"
    assert "SpecificCharacterSet" not in both[0]
    images = ask(node, query("IMAGE", StudyInstanceUID="1.2.1", SOPInstanceUID=None, InstanceNumber=None, Rows=None))
    assert [(item.SOPInstanceUID, item.InstanceNumber) for item in images] == [("1.2.1.1.1", 1), ("1.2.1.1.2", 2)]
    assert images[0].Rows > 0
    series = ask(node, query("SERIES", StudyInstanceUID=["1.2.1", "1.2.2"], SeriesInstanceUID=None, Modality="CT"))
    assert [item.SeriesInstanceUID for item in series] == ["1.2.1.1"]


def test_find_matches(node):
    def studies(**keys):
        return [item.StudyInstanceUID for item in ask(node, query(StudyInstanceUID=None, **keys))]

    assert studies(PatientName="doe*") == ["1.2.1"]
    assert studies(PatientName="山田*") == ["1.2.2"]
    assert studies(StudyDate="20260201-") == ["1.2.2"]
    assert studies(PatientID="P?") == ["1.2.1", "1.2.2"]
    assert studies(PatientID="Q") == []
    assert studies(ModalitiesInStudy="CT") == ["1.2.1"]
    assert studies(OtherPatientIDs="unsupported keys are ignored") == ["1.2.1", "1.2.2"]
    private = query(StudyInstanceUID=None)
    private.add_new(0x00091001, "LO", "SECRET")
    assert len(ask(node, private)) == 2


def test_a_wrong_level_is_refused(node):
    with pytest.raises(PeerError, match="0xA900") as caught:
        ask(node, query("PATIENT"))
    assert caught.value.permanent


def test_find_stops_at_the_limit(node):
    assert len(ask(node, query("IMAGE", SOPInstanceUID=None), limit=1)) == 1
    some = find(node.address, query("IMAGE", SOPInstanceUID=None), calling_ae="ME")
    next(some)
    some.close()
    echo(node.address, calling_ae="ME")


def test_count_of_a_series(node):
    assert count_instances(node.address, "1.2.1", "1.2.1.1", calling_ae="ME") == 2
    assert count_instances(node.address, "1.2.1", "1.2.9", calling_ae="ME") is None


def test_a_count_that_is_no_number_is_none(monkeypatch):
    answer = Dataset()
    answer.SeriesInstanceUID = "1.2.1.1"
    answer[0x00201209] = RawDataElement(Tag(0x00201209), "IS", 4, b"many", 0, False, True)
    monkeypatch.setattr(query_module, "find", lambda *_, **__: iter([answer]))
    assert count_instances(None, "1.2.1", "1.2.1.1", calling_ae="ME") is None


def test_who_may_send_may_not_yet_ask(node, tmp_path):
    with pytest.raises(PeerError, match="C-FIND with 0x0124") as caught:
        list(find(node.address, query(), calling_ae="DEST"))
    assert caught.value.permanent
    with pytest.raises(PeerError, match="C-GET with 0x0124"):
        list(get(node.address, query(StudyInstanceUID="1.2.1"), tmp_path, calling_ae="DEST"))
    with pytest.raises(PeerError, match="C-MOVE with 0xA801"):
        list(move(node.address, query(StudyInstanceUID="1.2.1"), calling_ae="DEST", to="DEST"))
    assert not node.arrived


def test_get(node, spool, tmp_path):
    folder = tmp_path / "got"
    folder.mkdir()
    classes = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.20")
    identifier = query(StudyInstanceUID=["1.2.1", "1.2.2"])
    progress = list(get(node.address, identifier, folder, calling_ae="ME", sop_classes=classes))
    assert (progress[-1].completed, progress[-1].failed, progress[-1].status) == (3, 0, 0x0000)
    got = [pydicom.dcmread(path) for path in folder.iterdir()]
    assert {item.SOPInstanceUID for item in got} == {"1.2.1.1.1", "1.2.1.1.2", "1.2.2.1.1"}
    for item in got:
        original = pydicom.dcmread(spool.held(item.SOPInstanceUID))
        assert item.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
        assert item == original


def test_get_of_any_class_leaves_the_syntax_to_the_peer(node, tmp_path):
    progress = list(get(node.address, query(StudyInstanceUID="1.2.2"), tmp_path, calling_ae="ME"))
    assert progress[-1].completed == 1
    got = pydicom.dcmread(next(tmp_path.glob("*.dcm")))
    assert got.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert got.LossyImageCompression == "01"


@pytest.mark.slow
def test_get_needs_the_unique_key(node, tmp_path):
    for identifier in (query(PatientID="P1"), query("SERIES", StudyInstanceUID="1.2.1"), query("PATIENT")):
        with pytest.raises(PeerError, match="C-GET with 0xA900"):
            list(get(node.address, identifier, tmp_path, calling_ae="ME"))
    nothing = list(get(node.address, query(StudyInstanceUID="1.9"), tmp_path, calling_ae="ME"))
    assert [item.status for item in nothing] == [0x0000]


def test_a_folder_that_takes_nothing(node, tmp_path):
    with pytest.raises(PeerError, match="0xA702") as caught:
        list(get(node.address, query(StudyInstanceUID="1.2.1"), tmp_path / "gone", calling_ae="ME"))
    assert not caught.value.permanent


def test_move_goes_to_known_peers_only(node):
    identifier = query(StudyInstanceUID=["1.2.1", "1.2.2"])
    progress = list(move(node.address, identifier, calling_ae="ME", to="DEST"))
    assert (progress[-1].completed, progress[-1].failed, progress[-1].status) == (3, 0, 0x0000)
    explicit = "1.2.840.10008.1.2.1"  # all that it takes: the JPEG 2000 one was rewritten
    assert sorted(node.arrived) == [("1.2.1.1.1", explicit, 1), ("1.2.1.1.2", explicit, 1), ("1.2.2.1.1", explicit, 1)]
    with pytest.raises(PeerError, match="0xA801") as caught:
        list(move(node.address, identifier, calling_ae="ME", to="NOWHERE"))
    assert caught.value.permanent


def test_the_listed_classes_fit():
    assert len(set(RETRIEVED_CLASSES)) == len(RETRIEVED_CLASSES) > 127
    usual = RETRIEVED_CLASSES[:127]
    for uid in ("1.2.840.10008.5.1.4.1.1.77.1.7", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.77.1.5.1"):
        assert uid in usual


# ---------------------------------------------------------------- DCMTK


def external_node(spool):
    index = Index(spool)
    return receiving(spool, lambda settings: query_handlers(index, lambda: settings), 11112, ("DEST", 11113), "T1")


def tool(name, *arguments):
    done = subprocess.run(
        [dcmtk(name), "-aet", "T1", "-aec", "NODE", "127.0.0.1", "11112", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@in_own_network
def test_dcmtk_queries_and_retrieves(spool, tmp_path):
    with external_node(spool):
        code, said = tool("echoscu")
        assert code == 0, said
        level = ("-k", "QueryRetrieveLevel=STUDY")
        code, said = tool("findscu", "-S", *level, "-k", "StudyInstanceUID", "-k", "PatientID=P1", "-k", "PatientName")
        assert code == 0
        assert "1.2.1" in said
        assert "1.2.2" not in said
        code, said = tool("findscu", "-S", "--cancel", "1", *level, "-k", "StudyInstanceUID")
        assert code == 0, said
        for folder in ("got", "moved"):
            (tmp_path / folder).mkdir()
        code, said = tool("getscu", "-S", "-od", tmp_path / "got", *level, "-k", "StudyInstanceUID=1.2.1")
        assert code == 0, said
        assert {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "got").iterdir()} == {
            "1.2.1.1.1",
            "1.2.1.1.2",
        }
        with running(dcmtk("storescp"), "-aet", "DEST", "-od", tmp_path / "moved", "+xa", "11113", port=11113):
            code, said = tool("movescu", "-S", "-aem", "DEST", *level, "-k", "StudyInstanceUID=1.2.2")
            assert code == 0, said
            assert [pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "moved").iterdir()] == ["1.2.2.1.1"]
        code, said = tool("movescu", "-S", "-aem", "NOWHERE", *level, "-k", "StudyInstanceUID=1.2.2")
        assert code == 69, said
        assert "MoveDestinationUnknown" in said


@pytest.mark.slow
@in_own_network
def test_dcmtk_is_queried(spool, tmp_path, samples):
    """dcmqrscp as the archive."""
    (tmp_path / "db").mkdir()
    (tmp_path / "dcmqrscp.cfg").write_text(
        "NetworkTCPPort = 11114\nMaxPDUSize = 16384\nMaxAssociations = 4\n"
        "HostTable BEGIN\nme = (ME, localhost, 11120)\nHostTable END\n"
        f"AETable BEGIN\nQR {tmp_path}/db RW (9, 1024mb) ANY\nAETable END\n"
    )
    archive = Destination(name="archive", ae_title="QR", host="127.0.0.1", port=11114)
    with running(dcmtk("dcmqrscp"), "-c", tmp_path / "dcmqrscp.cfg", "11114", port=11114):
        paths = [spool.held(uid) for uid in ("1.2.1.1.1", "1.2.1.1.2")]
        assert len(send_files(paths, archive, calling_ae="ME").sent) == 2
        found = list(find(archive, query(StudyInstanceUID=None, PatientID="P1"), calling_ae="ME"))
        assert [item.StudyInstanceUID for item in found] == ["1.2.1"]
        (tmp_path / "got").mkdir()
        progress = list(get(archive, query(StudyInstanceUID="1.2.1"), tmp_path / "got", calling_ae="ME"))
        assert progress[-1].completed == 2
        assert len(list((tmp_path / "got").iterdir())) == 2
        with pytest.raises(PeerError, match="0xA801"):
            list(move(archive, query(StudyInstanceUID="1.2.1"), calling_ae="ME", to="NOWHERE"))
