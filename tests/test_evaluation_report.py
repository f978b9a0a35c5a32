"""The page, DICOM, trained tasks, figures of whole sets, and the command."""

from __future__ import annotations

import html.parser
import json
import re
import shutil

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from medenhance_dicom.errors import InputError, MedenhanceError, RecipeError
from medenhance_dicom.evaluation import commands
from medenhance_dicom.evaluation.charts import box_plot, ticks
from medenhance_dicom.evaluation.commands import evaluate
from medenhance_dicom.evaluation.previews import structure_map
from medenhance_dicom.evaluation.reporting import evaluate_recipe
from medenhance_dicom.evaluation.table import layouts_of, markdown
from tests.conftest import ROOT
from tests.evaluations import draw, recipe_of, write_pictures

app = typer.Typer()
app.command()(evaluate)


@pytest.fixture
def drawn(tmp_path):
    return write_pictures(tmp_path / "data", count=4)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, MedenhanceError):
        raise result.exception
    assert result.exit_code == code, (result.output, result.exception)
    return result


class Tags(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found, self.addresses, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data):
        self.text.append(data)


# ---------------------------------------------------------------- page


def test_the_page_escapes_names_and_needs_nothing_from_elsewhere(tmp_path):
    root = write_pictures(tmp_path / "data", count=2, names="<script>alert({})<b>&'x.png")
    (root / "<i>out").mkdir()
    for path in (root / "low").iterdir():
        (root / "<i>out" / path.name).write_bytes(path.read_bytes())
    recipe = recipe_of(enhancers=["directory:<i>out"], summary="</style><script>alert(1)</script>")
    out = tmp_path / "out"
    evaluate_recipe(recipe, root, out)
    page = (out / "report.html").read_text()
    tags = Tags(page)
    assert not {"script", "link", "iframe", "b'", "i"} & set(tags.found)
    assert all(address.startswith("data:image/jpeg;base64,") for address in tags.addresses)
    assert "low/<script>alert(0)<b>&'x.png" in tags.text
    assert "directory:<i>out" in tags.text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_the_page_shows_each_enhancers_picture_change_and_structure(drawn, tmp_path):
    out = tmp_path / "out"
    evaluate_recipe(recipe_of(), drawn, out)
    tags = Tags((out / "report.html").read_text())
    assert len(tags.addresses) == 4 * (1 + 1 + 2 * 3)  # original, target, and three for each enhancer
    assert tags.found.count("svg") == 3
    for path in (out / "report.html", out / "report.json", out / "results.jsonl", *(out / "pictures").iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
    kept = {path: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}
    next(iter(kept)).unlink()
    first = next(iter(kept))
    evaluate_recipe(recipe_of(), drawn, out)
    rewritten = {path.name for path in (out / "pictures").iterdir() if path.stat().st_mtime_ns != kept[path]}
    assert rewritten <= {p.name for p in kept if p.name[:33] == first.name[:33]}


def test_the_structure_map_is_white_where_nothing_changed_and_dark_where_structure_did():
    before = np.stack([np.tile(draw(0), (3, 3)) / np.float32(255)], axis=2)
    after = before.copy()
    after[:96, :96] = 1 - after[:96, :96]
    found = structure_map(before, after).astype(int)
    assert (structure_map(before, before) == 255).all()
    assert found[150:, 150:, 2].mean() > 200 > found[20:70, 20:70, 2].mean()


def test_a_box_plot_draws_quartiles_and_what_lies_beyond():
    svg = box_plot({"a & b": [1, 2, 3, 4, 5], "c": [2, 2, 2, 2, 30], "none": []}, "PSNR <dB>")
    assert "a &amp; b" in svg
    assert "PSNR &lt;dB&gt;" in svg
    assert svg.count("<rect") == 2
    assert svg.count("class=beyond") == 1
    assert ticks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-130, 270) == [-100.0, 0.0, 100.0, 200.0]
    assert "<svg" in box_plot({"a": [3.0]}, "constant")


# ---------------------------------------------------------------- DICOM


@pytest.mark.slow
def test_a_study_is_evaluated_and_names_nobody(tmp_path):
    shutil.copytree(ROOT / "sample_data" / "study", tmp_path / "study")
    for name in ("cut-in-the-header.dcm", "not-dicom.dcm"):
        shutil.copy(ROOT / "sample_data" / "broken" / name, tmp_path / "study")
    shutil.copy(tmp_path / "study" / "op-fundus.dcm", tmp_path / "study" / "twice.dcm")
    recipe = recipe_of(
        data={"dicom": "study"}, enhancers=["baseline:he", "io-clahe"], metrics=["en@256", "lassim@l3"], summary="s"
    )
    out = tmp_path / "out"
    report = evaluate_recipe(recipe, tmp_path, out).report
    assert report["pictures"] == 7
    assert report["figures"]["baseline:he"]["lassim@l3"]["n"] == 7
    assert 0.3 < report["figures"]["io-clahe"]["lassim@l3"]["mean"] < 0.999
    assert report["enhancers"][2]["about"] == "clahe, numpy fp32"
    assert not report["failed"]
    assert sorted(one["reason"].partition(":")[0] for one in report["left_out"]) == [
        "DUPLICATE",
        "NOT_DICOM",
        "UNREADABLE",
    ]
    told = [path for path in out.rglob("*") if path.suffix in (".html", ".json", ".jsonl")]
    assert len(told) == 3
    assert not any("Phantom" in path.read_text() for path in told)
    names = {json.loads(line)["name"] for line in (out / "results.jsonl").read_text().splitlines()}
    assert report["enhancers"][1]["about"] == "HistogramEqualization(bins=256)"
    assert len(names) == 7
    assert all(re.fullmatch(r"2\.25\.\d+", name) for name in names)
    before = (out / "results.jsonl").read_bytes()
    assert evaluate_recipe(recipe, tmp_path, out).report == report
    assert (out / "results.jsonl").read_bytes() == before


def test_a_folder_without_an_instance_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no DICOM")
    with pytest.raises(InputError, match="1 left out"):
        evaluate_recipe(recipe_of(data={"dicom": "."}, metrics=["en@256"]), tmp_path, tmp_path / "out")


def test_an_enhancer_that_is_not_there_is_named(drawn, tmp_path):
    with pytest.raises(RecipeError, match="no enhancer 'op-nothing'"):
        evaluate_recipe(recipe_of(enhancers=["op-nothing"]), drawn, tmp_path / "o")


# ---------------------------------------------------------------- other programs, trained tasks, sets


def test_outputs_of_another_program_and_one_that_is_missing(drawn, tmp_path):
    recipe = recipe_of(enhancers=["directory:high"], metrics=["psnr@8bit"])
    finished = evaluate_recipe(recipe, drawn, tmp_path / "out")
    assert finished.report["figures"]["directory:high"]["psnr@8bit"]["infinite"] == 4
    Image.fromarray(draw(5)).save(drawn / "high" / "picture_0.png")
    (drawn / "other").mkdir()
    Image.fromarray(draw(1)).save(drawn / "other" / "picture_1.png")
    finished = evaluate_recipe(recipe_of(enhancers=["directory:other"]), drawn, tmp_path / "out")
    failed = finished.report["failed"]
    assert [one["name"] for one in failed] == [f"low/picture_{i}.png" for i in (0, 2, 3)]
    assert all(one["enhancer"] == "directory:other" and "no pictures for" in one["reason"] for one in failed)
    assert finished.report["figures"]["directory:other"]["psnr@8bit"]["n"] == 0
    assert "picture_0" in markdown(finished.report)


def test_kid_is_of_all_pictures_and_is_not_computed_twice(drawn, tmp_path):
    encoder = ROOT / "models" / "weights" / "hqgnet-cornea-1-guide-encoder.safetensors"
    recipe = recipe_of(enhancers=["directory:high"], metrics=["kid"], models={"features": str(encoder)})
    report = evaluate_recipe(recipe, drawn, tmp_path / "out").report
    (column,) = report["columns"]
    assert re.fullmatch(r"kid@encoder:[0-9a-f]{12}", column["id"])
    assert (column["asked"], column["of"]) == ("kid", "all")
    cells = {enhancer: figures[column["id"]] for enhancer, figures in report["figures"].items()}
    assert cells["directory:high"]["n"] == 4
    assert cells["directory:high"]["value"] < cells["original"]["value"]
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert evaluate_recipe(recipe, drawn, tmp_path / "out").report == report
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before


def kept_task(path, **about):
    """An untrained task, kept as a training run keeps it."""
    import torch
    from safetensors.torch import save_file

    from medenhance_dicom.training.downstream import TaskDescription, kept_metadata
    from medenhance_dicom.training.tasks import TASKS

    torch.manual_seed(0)
    described = TaskDescription(size=64, picture_channels=1, channels=1, width=4, **about)
    task = TASKS[described.network].build(described)
    tensors = {name: tensor.contiguous() for name, tensor in task.state_dict().items()}
    save_file(tensors, path, metadata=kept_metadata(described, tensors))
    return str(path)


def test_trained_tasks_fill_what_metrics_need(drawn, tmp_path):
    (drawn / "masks").mkdir()
    for i in range(4):
        Image.fromarray((draw(i) > 150).astype(np.uint8) * 255).save(drawn / "masks" / f"picture_{i}.png")
    (drawn / "truth.csv").write_text(
        "file,grade,row,column\n" + "".join(f"picture_{i}.png,{i % 2},10,20\n" for i in range(4))
    )
    recipe = recipe_of(
        data={
            "pictures": [{"folder": "low"}], "masks": [{"folder": "masks"}], "grades": {"table": "truth.csv"},
            "points": {"table": "truth.csv"},
        },
        metrics=["seg-dice@tol3", "fovea-d@px", "fovea-rate@found", "grade-acc@weighted"],
        enhancers=["baseline:he"],
        predictors=[
            kept_task(tmp_path / "a.safetensors", kind="segmentation", network="unet", poolings=2),
            kept_task(tmp_path / "b.safetensors", kind="segmentation", network="csnet", poolings=2),
            kept_task(tmp_path / "c.safetensors", kind="fovea", network="heatmap"),
            kept_task(tmp_path / "d.safetensors", kind="grading", network="resnet8", levels=2),
        ],
    )  # fmt: skip
    report = evaluate_recipe(recipe, drawn, tmp_path / "out").report
    ids = [column["id"] for column in report["columns"]]
    through = [re.sub(r"[0-9a-f]{12}$", "#", name) for name in ids]
    assert through[:3] == ["seg-dice@tol3 by unet:#", "seg-dice@tol3 by csnet:#", "fovea-d@px by heatmap:#"]
    cells = report["figures"]["baseline:he"]
    assert cells[ids[0]]["n"] == cells[ids[2]]["n"] == 4
    assert cells[ids[0]]["mean"] != cells[ids[1]]["mean"]
    assert cells[ids[3]]["value"] == 1
    assert cells[ids[4]]["value"] in (0.5, 1)
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert evaluate_recipe(recipe, drawn, tmp_path / "out").report == report
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before


# ---------------------------------------------------------------- command


def test_the_command_without_a_recipe(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(drawn)
    result = run(
        "--data", "low", "--targets", "high", "--enhancers", "baseline:he,directory:high", "--metrics",
        "psnr@8bit,en@256", "-o", tmp_path / "out", "--write-results", tmp_path / "results",
    )  # fmt: skip
    assert "directory:" in result.output
    assert str(tmp_path / "out" / "report.html") in result.output
    report = json.loads((tmp_path / "results" / "evaluate-low.json").read_text())
    assert report["figures"]["baseline:he"]["en@256"]["n"] == 4
    assert "picture_" not in (tmp_path / "results" / "evaluate-low.md").read_text()
    said = run("--data", "low", "--enhancers", "baseline:he", "--metrics", "en@256", "--limit", 2, "--json", "-o", "o")
    assert json.loads(said.stdout)["pictures"] == 2


def test_the_command_with_a_recipe_and_its_lists_replaced(drawn, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\nsummary = "s"\nenhancers = ["baseline:he"]\nmetrics = ["en@256"]\n'
        'data = { pictures = [{ folder = "low" }] }\n'
        '[[tables]]\ntitle = "Layout"\ncolumns = ["en@256"]\nrows = ["baseline:he"]\n'
    )
    assert "Layout" in run(path, "--data", drawn, "-o", tmp_path / "a").output
    said = run(path, "--data", drawn, "-o", tmp_path / "a", "--enhancers", "baseline:icn", "--json")
    assert list(json.loads(said.stdout)["figures"]) == ["original", "baseline:icn"]
    assert run(path, "--masks", drawn / "low", code=2).output
    assert run(code=2).output


def test_exit_codes(drawn, tmp_path):
    options = ["--enhancers", "baseline:he", "--metrics", "en@256", "-o", tmp_path / "out"]
    (drawn / "low" / "picture_2.png").write_bytes(b"no picture")
    result = run("--data", drawn / "low", *options, code=4)
    assert "picture_2.png" in result.output
    for path in (drawn / "low").iterdir():
        path.write_bytes(b"no picture")
    run("--data", drawn / "low", *options, code=6)
    with pytest.raises(InputError, match="no such file or folder"):
        run("--data", drawn / "nowhere", *options)
    with pytest.raises(InputError, match="no target for"):
        run("--data", drawn / "low", "--targets", write_pictures(tmp_path / "few", 1) / "high", *options)


def test_the_metrics_are_listed():
    assert "piqe@matlab" in run("--metrics", "list").output


def test_a_wide_table_comes_in_parts_that_all_say_whose_row_it_is():
    headings = ["enhancer", *(f"metric {k}" for k in range(7))]
    rows = [["original", *(["0.123"] * 7)], ["a-longer-name", *(["0.456"] * 7)]]
    parts = list(commands._parts(headings, rows, 40))
    assert all(part[0] == 0 for part in parts)
    assert [k for part in parts for k in part[1:]] == list(range(1, 8))
    assert all(len(part) <= 3 for part in parts)
    assert list(commands._parts(headings, rows, 200)) == [list(range(8))]
    assert list(commands._parts(["enhancer"], [["original"]], 200)) == []


def test_a_column_that_no_table_names_has_one_of_its_own():
    report = {
        "tables": [{"title": "Structure", "columns": ["lassim@l3"]}],
        "columns": [{"asked": "lassim@l3"}, {"asked": "s_hq@lite:0123"}, {"asked": "s_hq@lite:0123"}],
    }
    assert [(t.title, list(t.columns)) for t in layouts_of(report)] == [
        ("Structure", ["lassim@l3"]), ("Other columns", ["s_hq@lite:0123"])
    ]  # fmt: skip
    assert [t.title for t in layouts_of(report | {"tables": []})] == ["All metrics"]
    report["columns"] = report["columns"][:1]
    assert [t.title for t in layouts_of(report)] == ["Structure"]
