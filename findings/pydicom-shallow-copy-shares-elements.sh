#!/usr/bin/env bash
# pydicom 3.0.2: a shallow copy of a Dataset is the same table of elements, not a table of its own.
#
# Expected: as with dict, `copy.copy(dataset)`, `dataset.copy()` and `Dataset(dataset)` give a new data set that holds the
# same elements; what is added to or taken out of the copy does not touch the original.
# Seen: all three share one table. Deleting PatientID in the copy deletes it in the original, assigning another Patient ID
# changes the original, and an element added to the copy appears in the original. copy.deepcopy gives a table of its own.
# Why it matters: whoever takes attributes out of a "copy" before showing it to others takes them out of the object.
#
# Output seen:
#   copy.copy: deleted in the original too: True; changed: True; added: True
#   Dataset.copy: deleted in the original too: True; changed: True; added: True
#   Dataset(...): deleted in the original too: True; changed: True; added: True
#   copy.deepcopy: deleted in the original too: False; changed: False; added: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pydicom==3.0.2
"$folder/venv/bin/python" - <<'PYTHON'
import copy

from pydicom import Dataset

ways = {
    "copy.copy": (copy.copy, True),
    "Dataset.copy": (Dataset.copy, True),
    "Dataset(...)": (Dataset, True),
    "copy.deepcopy": (copy.deepcopy, False),
}


def original():
    dataset = Dataset()
    dataset.PatientID, dataset.PatientName = "1", "Test^One"
    return dataset


as_seen = True
for name, (copied, shared) in ways.items():
    one = original()
    del copied(one).PatientID
    two = original()
    copied(two).PatientID = "2"
    three = original()
    copied(three).PatientSex = "O"
    found = ("PatientID" not in one, two.PatientID == "2", "PatientSex" in three)
    print(f"{name}: deleted in the original too: {found[0]}; changed: {found[1]}; added: {found[2]}")
    as_seen &= set(found) == {shared}
raise SystemExit(not as_seen)
PYTHON
