"""UIDs: legal, content-addressed, and told apart."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from medenhance_dicom import uids

parts = st.lists(st.one_of(st.text(), st.binary()), max_size=5)


def test_number_by_hand():
    # SHA-256 over an eight-byte length and the part.
    digest = hashlib.sha256(b"\0\0\0\0\0\0\0\3abc").hexdigest()
    assert uids.derived_uid("abc") == f"2.25.{int(digest[:32], 16)}"


@given(parts)
def test_legal_and_repeatable(parts):
    uid = uids.derived_uid(*parts)
    assert UID(uid).is_valid
    assert uid.startswith("2.25.")
    assert len(uid) <= 44
    assert uid == uids.derived_uid(*parts)


@given(parts, parts)
def test_other_parts_other_uid(one, other):
    one, other = ([p.encode() if isinstance(p, str) else p for p in group] for group in (one, other))
    assert (uids.derived_uid(*one) == uids.derived_uid(*other)) == (one == other)


def test_boundaries_and_order_matter():
    assert len({uids.derived_uid("ab", "c"), uids.derived_uid("a", "bc"), uids.derived_uid("abc")}) == 3
    assert uids.derived_uid("a", "b") != uids.derived_uid("b", "a")


def test_our_own_uids_are_legal_and_differ():
    ours = [uids.IMPLEMENTATION_CLASS_UID, uids.INSTANCE_CREATOR_UID, uids.device_uid("ab" * 32)]
    assert len(set(ours)) == 3
    assert all(UID(uid).is_valid for uid in ours)
    assert len(uids.IMPLEMENTATION_VERSION_NAME) <= 16


def test_another_training_is_another_device():
    assert uids.device_uid("a") != uids.device_uid("b")
