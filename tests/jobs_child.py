"""A worker on a store of the tests, whose network is a folder, and which dies where it is told to. Holds no tests.

Usage: jobs_child.py CONFIG DEATH: the number of the durable step at which it kills itself; 0: never.
       jobs_child.py CONFIG: reads such numbers, a line each, and has a fork of itself live by each in turn.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from medenhance_dicom import worker
from medenhance_dicom.node import control, enhancing, work
from medenhance_dicom.node.delivering import Commitment, Peers
from medenhance_dicom.node.forward import Failed, SendReport, Sent
from medenhance_dicom.node.settings import load_settings

left = [0]


def step():
    """A point at which it may die: before and after every flush, message and go."""
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def around(function):
    def called(*args, **kwargs):
        step()
        result = function(*args, **kwargs)
        step()
        return result

    return called


class Archive:
    """Takes what it is sent, and commits what it has."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def log(self, name):
        return self.folder / f"{name}.log"

    def send(self, paths, destination, calling_ae):
        report = SendReport()
        for path in paths:
            if path.stem in (self.folder / "refused").read_text().split() if (self.folder / "refused").exists() else ():
                report.failed.append(Failed(path, 0x0122, "C-STORE status 0x0122", True))
                continue
            with self.log(destination.name).open("a") as log:
                log.write(f"{path.stem}\n")
            report.sent.append(Sent(path, "1.2.840.10008.5.1.4.1.1.7", path.stem, 0))
        return report

    def ask(self, instances, destination, calling_ae, transaction):
        asked = {"destination": destination.name, "instances": [item.sop_instance for item in instances]}
        part = self.folder / f"{transaction}.part"
        part.write_text(json.dumps(asked))
        part.rename(self.folder / f"{transaction}.json")

    def report(self, transaction):
        try:
            asked = json.loads((self.folder / f"{transaction}.json").read_text())
        except FileNotFoundError:
            return None
        has = set(self.log(asked["destination"]).read_text().split())
        missing = {uid: "no such instance" for uid in asked["instances"] if uid not in has}
        return Commitment(frozenset(has & set(asked["instances"])), missing)

    def peers(self):
        return Peers(around(self.send), around(self.ask), self.report)


def enhance(self, folder, made, settings, stopping):
    """In place of pictures: a derived file for each source, with the time in it as real ones have."""
    derived = []
    for source in sorted((folder / "source").iterdir()):
        target = folder / "derived" / "study" / "series" / f"derived-{source.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        step()
        if target.exists():
            assert target.read_text() == str(made)
        else:
            part = target.with_suffix(".part")
            part.write_text(str(made))
            part.rename(target)
        time.sleep(0.005)
        derived.append(str(target.relative_to(folder)))
    return {"enhanced": len(derived)}, derived


def main(config, death):
    left[0] = death
    os.fsync = around(os.fsync)
    worker._go = around(worker._go)
    enhancing.Enhancing._enhance = enhance
    read = work.settings_reader(partial(load_settings, config))
    settings = read()
    running = worker.launch(
        work.SeriesWork(read, Archive(settings.store.parent / "archive").peers()),
        database=control.database_of(settings),
        locks=settings.store / "workers",
        beat=settings.work.heartbeat_seconds,
        silent=settings.work.silent_seconds,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if len(sys.argv) == 3:
        sys.stdout.write(f"running {running.executor}\n")
        sys.stdout.flush()
    try:
        while True:
            time.sleep(60)
    finally:
        running.stop(5)
        os._exit(0)


def lives(config):
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            main(config, int(line))
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        lives(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]))
