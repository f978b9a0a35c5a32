"""Grouping and ordering."""

from __future__ import annotations

from pathlib import Path

from pydicom import Dataset

from medenhance_dicom.part10 import Located
from medenhance_dicom.series import Member, group_series, grouping_header


def member(name, **attributes):
    instance = Dataset()
    instance.StudyInstanceUID, instance.SeriesInstanceUID = "1.2", "1.2.3"
    instance.SOPClassUID, instance.Modality = "1.2.840.10008.5.1.4.1.1.4", "MR"
    instance.Rows = instance.Columns = 4
    for keyword, value in attributes.items():
        setattr(instance, keyword, value)
    return Member(Located(Path(name), name), instance)


def names(series):
    return [m.located.name for m in series.members]


def test_slices_are_sorted_by_position_not_by_instance_number():
    sagittal = ["0", "1", "0", "0", "0", "-1"]  # normal is -x
    members = [
        member(str(n), InstanceNumber=n, ImageOrientationPatient=sagittal, ImagePositionPatient=[x, "9", "9"])
        for n, x in ((1, "5"), (2, "-3.5"), (3, "10"))
    ]
    (series,) = group_series(members)
    assert names(series) == ["3", "1", "2"]


def test_without_a_common_geometry_instance_numbers_decide_and_then_names():
    axial, tilted = ["1", "0", "0", "0", "1", "0"], ["1", "0", "0", "0", "0.9", "0.43589"]
    members = [
        member("b", InstanceNumber=2, ImageOrientationPatient=axial, ImagePositionPatient=["0", "0", "1"]),
        member("a", InstanceNumber=1, ImageOrientationPatient=tilted, ImagePositionPatient=["0", "0", "9"]),
        member("d"),
        member("c"),
    ]
    assert names(group_series(members)[0]) == ["a", "b", "c", "d"]


def test_nonsense_geometry_is_no_geometry():
    flat = ["1", "0", "0", "1", "0", "0"]
    members = [
        member("b", InstanceNumber=2, ImageOrientationPatient=flat, ImagePositionPatient=["0", "0", "1"]),
        member("a", InstanceNumber=1, ImageOrientationPatient=flat, ImagePositionPatient=["0", "0", "2"]),
    ]
    assert names(group_series(members)[0]) == ["a", "b"]


def test_a_series_of_mixed_sizes_and_photometries_is_split():
    members = [member("a"), member("b", Rows=5), member("c"), member("d", PhotometricInterpretation="MONOCHROME1")]
    groups = group_series(members)
    assert [names(g) for g in groups] == [["a", "c"], ["b"], ["d"]]
    assert {g.series_instance_uid for g in groups} == {"1.2.3"}


def test_the_same_series_uid_in_two_studies_is_two_series():
    assert len(group_series([member("a"), member("b", StudyInstanceUID="1.9")])) == 2


def test_instances_without_a_series_uid_are_kept_apart():
    a, b = member("a"), member("b")
    del a.instance.SeriesInstanceUID
    b.instance.SeriesInstanceUID = ""
    groups = group_series([a, b])
    assert [names(g) for g in groups] == [["a"], ["b"]]


def test_the_grouping_header_groups_like_the_whole_one():
    whole = member("a", PatientName="X^Y", BodyPartExamined="EYE", InstanceNumber=3)
    slim = grouping_header(whole.instance, {"BodyPartExamined", "ViewPosition"})
    assert "PatientName" not in slim
    assert (slim.BodyPartExamined, slim.InstanceNumber) == ("EYE", 3)
    assert len(group_series([whole, Member(Located(Path("b"), "b"), slim)])) == 1
