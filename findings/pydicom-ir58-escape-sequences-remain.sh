#!/usr/bin/env bash
# pydicom 3.0.2: a person's name in ISO 2022 IR 58 (simplified Chinese) keeps its escape sequences as text.
#
# Expected: with Specific Character Set ["", "ISO 2022 IR 58"] a name decodes to its letters alone, as one in ISO 2022 IR 149
# (Korean) and IR 87 (Japanese) does. PS3.5 section K.3 has such a name: Zhang^XiaoDong, its ideographic group behind
# ESC $ ) A in each component.
# Seen: the characters are right, but ESC, "$", ")" and "A" stay in front of them in the decoded text. Written again in
# UTF-8 (ISO_IR 192) the name holds an ESC, which ISO_IR 192 does not allow, and equals no other copy of it.
# Why it matters: the same patient has two names, before and after a program that rewrites to UTF-8.
#
# Output seen:
#   IR 58:  'Zhang^XiaoDong=\x1b$)A张^\x1b$)A小东'
#   IR 149: 'Hong^Gildong=洪^吉洞'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pydicom==3.0.2
PYTHONIOENCODING=utf-8 "$folder/venv/bin/python" - <<'PYTHON'
from io import BytesIO

from pydicom import Dataset, dcmread


def name_of(term, bytes_of_name):
    """Write the bytes under their character set (explicit little endian, no file meta), and read the name."""
    def element(tag, vr, value):
        value += b" " * (len(value) % 2)
        return tag.to_bytes(4, "little") + vr + len(value).to_bytes(2, "little") + value

    file = element(0x00050008, b"CS", b"\\" + term) + element(0x00100010, b"PN", bytes_of_name)
    return str(dcmread(BytesIO(file), force=True).PatientName)


chinese = name_of(
    b"ISO 2022 IR 58", b"Zhang^XiaoDong=\x1b$)A" + "张".encode("gb2312") + b"^\x1b$)A" + "小东".encode("gb2312")
)
korean = name_of(
    b"ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C" + "洪".encode("euc_kr") + b"^\x1b$)C" + "吉洞".encode("euc_kr")
)
print("IR 58: ", repr(chinese))
print("IR 149:", repr(korean))
as_seen = chinese == "Zhang^XiaoDong=\x1b$)A张^\x1b$)A小东" and korean == "Hong^Gildong=洪^吉洞"
raise SystemExit(not as_seen)
PYTHON
