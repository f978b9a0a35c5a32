"""What a thread frees is not given back to the system only to be asked for again."""

import subprocess
import sys

import pytest

PICTURES = """
import resource, sys, threading
from medenhance_dicom.allocator import keep_one_arena
kept = sys.argv[1] == "kept" and keep_one_arena()

def enhance():
    global faults
    for picture in range(20):
        blocks = [b"\\1" * (n << 20) for n in (7, 2, 7, 14)]
        if picture == 2:
            faults = -resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt

thread = threading.Thread(target=enhance)
thread.start()
thread.join()
print(int(kept), faults)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", PICTURES, how], capture_output=True, text=True, check=True)
    return map(int, done.stdout.split())


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_thread_keeps_the_pages_of_its_pictures():
    kept, few = faults("kept")
    if not kept:
        pytest.skip("not glibc")
    _, many = faults("as it is")
    assert few < 100
    assert many > 100 * 17
