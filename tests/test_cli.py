"""The command line in a process of its own: help, exit codes, streams, silence on the network."""

from __future__ import annotations

import io
import json
import queue
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from medenhance_dicom import __version__, report
from medenhance_dicom.cli import _outcome_printer, app
from medenhance_dicom.errors import OutputError
from medenhance_dicom.node import console
from tests import synthetic

SCHEMA = json.loads((Path(report.__file__).parent / "schemas/run_report.schema.json").read_text())
NO_SOCKETS = """
import socket, sys
def refuse(*a, **k):
    raise SystemExit("a socket was opened")
socket.socket.connect = refuse
socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
socket.create_connection = refuse
from medenhance_dicom.cli import main
main()
"""


def run(*arguments, code=None):
    done = subprocess.run(
        [sys.executable, "-c", NO_SOCKETS, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert "Traceback" not in done.stderr
    if code is not None:
        assert done.returncode == code, done.stderr + done.stdout
    return done


def test_help_imports_neither_torch_nor_pydicom():
    script = (
        "import sys\nfrom medenhance_dicom.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'pydicom', 'numpy', 'scipy', 'openvino', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "enhance" in done.stdout


@pytest.mark.slow
def test_lists_import_no_torch():
    for words in (["recipes", "list"], ["models", "list", "--json"], ["guides", "list"], ["guides", "verify"]):
        script = (
            "import sys\nfrom medenhance_dicom.cli import app\n"
            f"try:\n    app({words!r})\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_version_and_usage():
    runner = CliRunner()
    assert runner.invoke(app, ["--version"]).stdout.strip() == f"medenhance-dicom {__version__}"
    assert runner.invoke(app, ["enhance"]).exit_code == 2
    assert runner.invoke(app, ["enhance", ".", "--gate", "open"]).exit_code == 2


@pytest.mark.slow
def test_a_real_run_opens_no_socket_and_prints_only_json_on_stdout(samples, tmp_path):
    done = run("enhance", samples / "study" / "op-fundus.dcm", "-o", tmp_path, "--json", code=0)
    value = json.loads(done.stdout)
    jsonschema.validate(value, SCHEMA)
    assert value["outcomes"][0]["result"] in ("enhanced", "warned")
    assert value["outcomes"][0]["weights"] == "fields-fundus-1"
    assert value == json.loads((tmp_path / "run_report.json").read_text())


@pytest.mark.slow
def test_a_run_with_reports_and_its_pairs_judged_and_shown(samples, tmp_path):
    from pydicom import dcmread

    source, out = samples / "study" / "us-abdomen.dcm", tmp_path / "out"
    done = run("enhance", source, "-o", out, "--sr", "--preview", "--gate", "blend", "--json", code=0)
    value = json.loads(done.stdout)
    jsonschema.validate(value, SCHEMA)
    outcome = value["outcomes"][0]
    derived, document = dcmread(outcome["derived"]), dcmread(outcome["structured_report"])
    assert (document.Modality, document.PatientID) == ("SR", derived.PatientID)
    assert Path(outcome["structured_report"]).parts[-3:] == (
        document.StudyInstanceUID, document.SeriesInstanceUID, f"{document.SOPInstanceUID}.dcm"
    )  # fmt: skip
    assert "Structure check passed: LaSSIM" in derived.DerivationDescription
    pictures = sorted(p.name for p in Path(outcome["derived"]).parent.glob("*.png"))
    assert pictures == [f"{derived.SOPInstanceUID}{end}" for end in (".first-map.png", ".png")]
    assert "2 derived objects, 0 with problems" in run("verify", out, "--source", samples / "study", code=0).stdout

    judged = json.loads(run("gate", source, out, "--json", code=0).stdout)["pairs"]
    assert [(pair["result"], pair["derived"]) for pair in judged] == [("enhanced", outcome["derived"])]
    assert judged[0]["lassim"] == pytest.approx(outcome["lassim"], abs=1e-3)  # of what is stored, rounded to 8 bits
    done = run("compare", source, out, "--html", tmp_path / "page.html", code=0)
    assert "1 pairs" in done.stdout
    assert str(derived.PatientID) not in (tmp_path / "page.html").read_text()


def test_reports_of_runs_into_one_folder_are_all_kept_and_nothing_derived_is_not_named(samples, tmp_path):
    runner, out = CliRunner(), tmp_path / "out"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")
    for _ in range(2):
        done = runner.invoke(app, ["enhance", str(tmp_path / "in"), "-o", str(out)])
        assert done.exit_code == 3
        assert done.stdout.splitlines()[-2:] == ["1 skipped", f"report: {out / 'run_report.json'}"]
    assert [p.suffix for p in (out / "reports").iterdir()] == [".json", ".json"]
    done = runner.invoke(app, ["enhance", str(tmp_path / "in"), "-o", str(out), "--report", str(tmp_path / "r.json")])
    assert len(list((out / "reports").iterdir())) == 2
    jsonschema.validate(json.loads((tmp_path / "r.json").read_text()), SCHEMA)


def test_outcomes_are_in_a_pipe_as_soon_as_they_are_known(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, write_through=False))
    tell = _outcome_printer(5)
    tell(report.Outcome("a.dcm", "withheld", "LASSIM: structure changed", recipe="clahe"))
    assert raw.getvalue().decode().splitlines()[0].split() == ["withheld", "clahe", "a.dcm"]


def test_what_a_person_should_know_of_an_object_is_told(capsys):
    outcome = report.Outcome(
        "a.dcm", "enhanced", derived="b.dcm", repeated=True, replaces="2.25.7", left_behind=["curves", "a waveform"]
    )
    _outcome_printer(5)(outcome)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[1:]] == [
        "finished before: verified, not written again",
        "replaces 2.25.7, which was made of its source before a correction",
        "left behind: curves",
        "left behind: a waveform",
    ]
    _outcome_printer(5)(report.Outcome("a.dcm", "enhanced"))
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_progress_in_a_pipe_is_a_line_now_and_then(monkeypatch):
    class Told(io.StringIO):
        def write(self, text):
            written = super().write(text)
            said.put(text)
            return written

    said = queue.SimpleQueue()
    monkeypatch.setattr(console, "_FIRST_LINE", 0.001)
    monkeypatch.setattr(sys, "stderr", Told())
    with console.progress_bar("enhancing") as advance:
        for words in ("enhancing, 0 s", "enhancing 3 of 40, 0 s"):  # also while nothing is done yet
            while not said.get(timeout=30).startswith(words):
                pass
            advance(3, 40)


def test_what_the_gate_withholds_is_exit_9_and_what_has_no_pair_is_exit_3(tmp_path):
    import numpy as np
    from PIL import Image
    from skimage import data

    Image.fromarray(data.camera()[::4, ::4]).save(tmp_path / "a.png")
    Image.fromarray(np.ascontiguousarray(data.camera()[::-4, ::4])).save(tmp_path / "b.png")
    (tmp_path / "empty").mkdir()
    before, after = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    runner = CliRunner()
    done = runner.invoke(app, ["gate", before, after])
    assert done.exit_code == 9
    assert done.stdout.startswith("withheld")
    assert runner.invoke(app, ["gate", before, before]).exit_code == 0
    assert runner.invoke(app, ["gate", before, str(tmp_path / "empty")]).exit_code == 3
    assert runner.invoke(app, ["compare", before, after, "--html", str(tmp_path / "page.html")]).exit_code == 9
    page = str(tmp_path / "a.png" / "page.html")
    assert isinstance(runner.invoke(app, ["compare", before, after, "--html", page]).exception, OutputError)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("broken/not-dicom.dcm", 6),
        *(
            pytest.param(name, code, marks=pytest.mark.slow)
            for name, code in [("broken", 6), ("study/ct", 3), ("nothing-there", 6), ("README.md", 6)]
        ),
    ],
)
def test_bad_input_has_its_exit_code(samples, tmp_path, name, code):
    done = run("enhance", samples / name, "-o", tmp_path, code=code)
    assert "Phantom" not in done.stdout + done.stderr


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_exit_7(samples, tmp_path):
    (tmp_path / "file").write_text("")
    run("enhance", samples / "study" / "us-abdomen.dcm", "-o", tmp_path / "file", code=7)


def test_missing_weights_are_exit_8_and_those_that_nothing_takes_exit_2(samples, tmp_path):
    from medenhance_dicom.cli import _exit_code_of

    runner, words = CliRunner(), ["enhance", str(samples / "study" / "us-abdomen.dcm"), "-o", str(tmp_path)]
    for more, code in (["none-such"], 8), (["none-such", "--recipe", "us-clahe"], 8), (["stillgan-fundus-2"], 2):
        assert _exit_code_of(runner.invoke(app, [*words, "--weights", *more]).exception) == code


def test_a_card_tells_what_weights_are_for():
    said = CliRunner().invoke(app, ["models", "show", "stillgan-cornea-1"]).stdout
    assert "PhotometricInterpretation  MONOCHROME1, MONOCHROME2" in said


@pytest.mark.slow
def test_a_guide_that_no_recipe_takes_is_exit_2(samples, tmp_path):
    done = run("enhance", samples / "study" / "us-abdomen.dcm", "-o", tmp_path, "--guide", "clear-eye", code=2)
    assert "no recipe chosen here takes a guide (us-clahe)" in done.stderr


@pytest.mark.slow
def test_an_unknown_recipe_is_exit_2(samples, tmp_path):
    run("enhance", samples / "study", "-o", tmp_path, "--recipe", "none-such", code=2)


@pytest.mark.slow
def test_inspect_and_enhance_end_alike_where_two_patients_have_one_uid(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        synthetic.make_file(tmp_path / "in" / f"{name}.dcm", "CR", SOPInstanceUID=f"1.2.{ord(name)}", PatientID=name)
    run("enhance", tmp_path / "in", "-o", tmp_path / "out", code=5)
    assert "CONFLICT" in run("inspect", tmp_path / "in", code=5).stdout


@pytest.mark.slow
def test_inspect_tells_without_writing(samples, tmp_path):
    done = run("inspect", samples / "study", "--json", code=0)
    by_source = {Path(s["source"]).name: s for s in json.loads(done.stdout)["series"]}
    assert by_source["op-fundus.dcm"]["recipe"] == "op-fundus-fields"
    assert by_source["slice1"]["reason"].startswith("CT_OFF_BY_DEFAULT")
    done = run("enhance", samples / "study", "-o", tmp_path / "out", "--dry-run", "--json", code=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_models_and_recipes_verify():
    run("models", "verify", "--json", code=0)
    run("recipes", "verify", "--json", code=0)
    assert "stillgan-cornea-1" in run("models", "list", code=0).stdout


@pytest.mark.slow
def test_train_runs_from_the_command_line(tmp_path):
    import numpy as np
    from PIL import Image

    (tmp_path / "p").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(60, 130, (256, 256), dtype=np.uint8)).save(tmp_path / "p/0.png")
    (tmp_path / "r.toml").write_text(
        'name = "r"\nsummary = "s"\n[data]\nchannels = 1\nsize = 256\nlow = [{ folder = "p" }]\n'
        'high = [{ folder = "p" }]\ndegradation = "cornea"\nvalidation_high = [{ folder = "p" }]\n'
        "[network]\nwidth = 2\n[schedule]\nsteps = 0\nconstant = 0\nwarm_up = 9\n"
    )
    done = run(
        "train", tmp_path / "r.toml", "--data", tmp_path, "--run", tmp_path / "run", "--device", "cpu",
        "--set", "schedule.warm_up=2", "--json", code=0,
    )  # fmt: skip
    assert Path(json.loads(done.stdout)["weights"]).is_file()
