"""What is evaluated, what is kept of it, and the statistics."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from medenhance_dicom.errors import InputError, RecipeError
from medenhance_dicom.evaluation.pictures import open_pictures, spread
from medenhance_dicom.evaluation.recipe import Data, load_evaluation_recipe
from medenhance_dicom.evaluation.reporting import evaluate_recipe
from medenhance_dicom.evaluation.results import Results, Row
from medenhance_dicom.evaluation.ridges import ridge_centre_lines
from medenhance_dicom.evaluation.table import markdown, values_of
from medenhance_dicom.metrics import lesion_contrast, load_colours
from tests.conftest import ROOT
from tests.evaluations import draw, recipe_of, write_pictures
from tests.test_metrics_fundus import photograph

PICTURES = [{"folder": "low"}]


@pytest.fixture
def drawn(tmp_path):
    return write_pictures(tmp_path / "data")


def cases(data, root, limit=None):
    with open_pictures(Data.model_validate(data), root, limit) as found:
        return [entry.load() for entry in found.entries]


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": 1}, "colour"),
        ({"data": {}}, "name either pictures or dicom"),
        ({"data": {"pictures": PICTURES, "dicom": "x"}}, "name either pictures or dicom"),
        ({"data": {"dicom": "x", "masks": PICTURES}}, "only pictures can have them"),
        ({"data": {"pictures": PICTURES, "targets": PICTURES, "degradation": "cornea"}}, "themselves are the targets"),
        ({"data": {"pictures": [{"folder": "low", "minimum_brightness": 0.3}]}}, "minimum_brightness"),
        ({"tables": [{"title": "t", "columns": ["niqe"]}]}, r"tables\.0\.columns: niqe is not evaluated"),
        ({"tables": [{"title": "t", "columns": ["en@256"], "rows": ["lime"]}]}, r"tables\.0\.rows: lime"),
    ],
)
def test_a_wrong_recipe_is_refused_by_its_key(change, said):
    with pytest.raises(RecipeError, match=said):
        recipe_of(**change)


def test_the_shipped_recipes_load_and_their_metrics_and_enhancers_exist():
    from medenhance_dicom.baselines import BASELINES
    from medenhance_dicom.metrics.registry import build_metrics
    from medenhance_dicom.recipe import load_recipes

    known = {recipe.name for recipe in load_recipes()} | {f"baseline:{name}" for name in BASELINES}
    paths = sorted((ROOT / "pipelines" / "evaluate").glob("*.toml"))
    assert len(paths) >= 7
    for path in paths:
        recipe = load_evaluation_recipe(path)
        assert set(recipe.enhancers) <= known, path
        assert len(build_metrics(recipe.metrics)) == len(recipe.metrics)
        assert {column for table in recipe.tables for column in table.columns} == set(recipe.metrics), path


def test_a_recipe_names_its_file(tmp_path):
    path = tmp_path / "one.toml"
    path.write_text("name = 1\n")
    with pytest.raises(RecipeError, match=r"one\.toml: .*summary"):
        load_evaluation_recipe(path)


# ---------------------------------------------------------------- pictures


def test_targets_and_masks_are_found_by_stem_or_by_what_it_begins_with(drawn):
    (drawn / "masks").mkdir()
    for i in range(5):
        mask = np.zeros((64, 64), np.uint8)
        mask[i] = 255
        Image.fromarray(mask).save(drawn / "masks" / f"picture_{i}_first.png")
    found = cases({"pictures": PICTURES, "targets": [{"folder": "high"}], "masks": [{"folder": "masks"}]}, drawn)
    assert [case.name for case in found] == [f"low/picture_{i}.png" for i in range(5)]
    for i, case in enumerate(found):
        np.testing.assert_array_equal(case.target[..., 0], draw(i) / np.float32(255))
        assert np.flatnonzero(case.truth_mask.any(axis=1)).tolist() == [i]
        assert case.source.shape == (64, 64, 1)


def test_every_missing_target_is_named(drawn):
    (drawn / "high" / "picture_1.png").unlink()
    (drawn / "high" / "picture_3.png").unlink()
    with pytest.raises(InputError, match=r"no target for picture_1\.png, picture_3\.png$"):
        cases({"pictures": PICTURES, "targets": [{"folder": "high"}]}, drawn)


def test_two_files_that_fit_are_no_answer(drawn):
    for end in "ab":
        Image.fromarray(draw(1)).save(drawn / "high" / f"picture_1_{end}.png")
    (drawn / "high" / "picture_1.png").unlink()
    with pytest.raises(InputError, match=r"picture_1\.png \(2 fit\)"):
        cases({"pictures": PICTURES, "targets": [{"folder": "high"}]}, drawn)


def test_a_target_of_another_size_is_named(drawn):
    Image.fromarray(draw(1)[:32]).save(drawn / "high" / "picture_1.png")
    with pytest.raises(InputError, match=r"picture_1\.png: 64 x 32 pixels, and its picture 64 x 64"):
        cases({"pictures": PICTURES, "targets": [{"folder": "high"}]}, drawn)


def test_degradation_is_the_same_for_a_picture_however_many_there_are(drawn):
    data = {"pictures": [{"folder": "high"}], "degradation": "cornea"}
    every, two = cases(data, drawn), cases(data, drawn, limit=2)
    assert [case.name for case in two] == [every[0].name, every[-1].name]
    np.testing.assert_array_equal(two[1].source, every[-1].source)
    np.testing.assert_array_equal(every[0].target[..., 0], draw(0) / np.float32(255))
    assert np.abs(every[0].source - every[0].target).mean() > 0.01
    other = cases(data | {"seed": 8}, drawn)
    assert np.abs(every[0].source - other[0].source).max() > 0.01


def test_grey_that_is_stored_as_colour_is_grey(tmp_path):
    (tmp_path / "low").mkdir()
    Image.fromarray(draw(0)).convert("RGB").save(tmp_path / "low" / "a.png")
    assert cases({"pictures": PICTURES}, tmp_path)[0].source.shape == (64, 64, 1)


def test_grades_and_points_come_from_tables(drawn):
    (drawn / "truth.csv").write_text("file,level,top,bottom,x\npicture_0.png,2,10,20,30\npicture_1.png,0,4,4,5\n")
    data = {
        "pictures": PICTURES, "grades": {"table": "truth.csv", "column": "level"},
        "points": {"table": "truth.csv", "row": ["top", "bottom"], "column": ["x"]},
    }  # fmt: skip
    found = cases(data, drawn)
    assert [case.grade for case in found] == [2, 0, None, None, None]
    assert [case.point for case in found[:3]] == [(15.0, 30.0), (4.0, 5.0), None]
    with pytest.raises(RecipeError, match=r"truth\.csv: line 2 has no number in column 'grade'"):
        cases({"pictures": PICTURES, "grades": {"table": "truth.csv"}}, drawn)


def test_the_key_of_a_picture_follows_all_that_decides_a_score(drawn):
    def keys(**change):
        data = {"pictures": PICTURES, "targets": [{"folder": "high"}], **change}
        with open_pictures(Data.model_validate(data), drawn) as found:
            return [entry.key for entry in found.entries]

    first = keys()
    assert keys() == first
    assert not set(keys(field_of_view="ellipse")) & set(first)
    Image.fromarray(draw(9)).save(drawn / "high" / "picture_2.png")
    assert [a == b for a, b in zip(first, keys(), strict=True)] == [True, True, False, True, True]


def test_ridges_are_found_where_lines_are():
    y, x = np.mgrid[:384, :384]
    row = 150 + 40 * np.sin(x[0] / 60)
    line = np.exp(-((y - row) ** 2) / (2 * 2.0**2))
    noise = np.random.default_rng(0).normal(0, 0.03, line.shape)
    picture = np.clip(0.3 + 0.5 * line + noise, 0, 1).astype(np.float32)[..., None]
    found = ridge_centre_lines(picture)
    rows, columns = np.nonzero(found)
    near = np.abs(rows - row[columns]) <= 2
    assert near.mean() > 0.6
    assert np.unique(columns[near]).size > 350
    assert not ridge_centre_lines(np.full((64, 64, 1), 0.5, np.float32)).any()


def test_spread_takes_both_ends():
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread(range(3), 7) == [0, 1, 2]
    assert spread(range(3), None) == [0, 1, 2]


# ---------------------------------------------------------------- resuming


def lines_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def timeless(report):
    return report | {"enhancers": [one | {"seconds": None} for one in report["enhancers"]]}


def test_what_is_there_is_not_done_again(drawn, tmp_path):
    first = evaluate_recipe(recipe_of(), drawn, tmp_path / "out").report
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert len(lines_of(tmp_path / "out")) == 5 * 3
    again = evaluate_recipe(recipe_of(), drawn, tmp_path / "out").report
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before
    assert again == first


def test_an_interrupted_run_goes_on_and_ends_as_an_uninterrupted_one(drawn, tmp_path):
    def stop(done, total, text):
        if (done, text) == (2, "baseline:clahe"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_recipe(recipe_of(), drawn, tmp_path / "out", progress=stop)
    results = tmp_path / "out" / "results.jsonl"
    assert len(lines_of(tmp_path / "out")) == 2 * 3 + 2
    results.write_bytes(results.read_bytes() + b'{"name": "low/pictu')  # killed while writing
    resumed = evaluate_recipe(recipe_of(), drawn, tmp_path / "out").report
    places = [(line["name"], line["enhancer"]) for line in lines_of(tmp_path / "out")]
    assert len(places) == len(set(places)) == 15
    whole = evaluate_recipe(recipe_of(), drawn, tmp_path / "whole").report
    assert timeless(resumed) == timeless(whole)


def test_another_metric_and_another_enhancer_add_only_what_is_missing(drawn, tmp_path):
    out = tmp_path / "out"
    evaluate_recipe(recipe_of(), drawn, out)
    more = recipe_of(metrics=["psnr@8bit", "en@256", "lassim@l3", "ag@fusion"])
    report = evaluate_recipe(more, drawn, out).report
    added = lines_of(out)[15:]
    assert [set(line["scores"]) for line in added] == [{"ag@fusion"}] * 15
    assert timeless(report) == timeless(evaluate_recipe(more, drawn, tmp_path / "whole").report)
    evaluate_recipe(recipe_of(enhancers=["baseline:he", "baseline:icn"]), drawn, out)
    assert [line["enhancer"] for line in lines_of(out)[30:]] == ["baseline:icn"] * 5


def test_a_picture_that_changed_is_scored_again(drawn, tmp_path):
    evaluate_recipe(recipe_of(), drawn, tmp_path / "out")
    Image.fromarray(draw(7, 0.6)).save(drawn / "low" / "picture_2.png")
    report = evaluate_recipe(recipe_of(), drawn, tmp_path / "out").report
    assert {line["name"] for line in lines_of(tmp_path / "out")[15:]} == {"low/picture_2.png"}
    assert report["figures"]["original"]["en@256"]["n"] == 5


def test_afresh_forgets(drawn, tmp_path):
    evaluate_recipe(recipe_of(), drawn, tmp_path / "out")
    evaluate_recipe(recipe_of(), drawn, tmp_path / "out", limit=2, afresh=True)
    assert len(lines_of(tmp_path / "out")) == 6


def test_results_keep_infinity_and_forget_failures(tmp_path):
    path = tmp_path / "results.jsonl"
    with Results(path) as results:
        results.add(Row("a", "k", "e", "d", scores={"m": float("inf"), "n": None}, reasons={"n": "too small"}))
        results.add(Row("b", "l", "e", "d", failed="no"))
        results.add(Row("a", "k", "e", "d", scores={"n": 2.0}))
    with Results(path) as results:
        assert results.find("k", "e", "d").scores == {"m": float("inf"), "n": 2.0}
        assert results.find("k", "e", "d").reasons == {}
        assert results.find("l", "e", "d") is None
    assert "Infinity" not in path.read_text()


# ---------------------------------------------------------------- statistics


def test_significance_is_scipys_with_holms_correction(drawn, tmp_path):
    write_pictures(drawn, count=9)
    recipe = recipe_of(enhancers=["baseline:he", "baseline:clahe", "baseline:icn"], metrics=["psnr@8bit", "en@256"])
    finished = evaluate_recipe(recipe, drawn, tmp_path / "out")
    for column in ("psnr@8bit", "en@256"):
        original = np.array(list(values_of(finished.scored, "original", column).values()))
        tested = {}
        for enhancer in recipe.enhancers:
            after = np.array(list(values_of(finished.scored, enhancer, column).values()))
            cell = finished.report["figures"][enhancer][column]
            assert cell["mean"] == pytest.approx(after.mean())
            assert cell["deviation"] == pytest.approx(after.std(ddof=1))
            assert cell["interval"][0] < cell["mean"] < cell["interval"][1]
            told = cell["against_original"]
            student, wilcoxon = stats.ttest_rel(after, original), stats.wilcoxon(after, original)
            assert (told["t"], told["p_t"]) == pytest.approx((student.statistic, student.pvalue))
            assert told["p_wilcoxon"] == pytest.approx(wilcoxon.pvalue)
            assert told["interval"][0] < told["difference"] < told["interval"][1]
            tested[enhancer] = told
        for test in ("p_t", "p_wilcoxon"):
            ordered = sorted(tested.values(), key=lambda told, test=test: told[test])
            corrected = np.minimum(np.maximum.accumulate([(3 - i) * t[test] for i, t in enumerate(ordered)]), 1)
            assert [t[f"{test}_holm"] for t in ordered] == pytest.approx(corrected)
        for told in tested.values():
            both = told["p_t_holm"] < 0.05 and told["p_wilcoxon_holm"] < 0.05
            assert told["verdict"] == (("better" if told["difference"] > 0 else "worse") if both else "not told apart")
        assert {told["verdict"] for told in tested.values()} != {"not told apart"}


def test_an_infinite_score_is_no_mean_and_is_counted(drawn, tmp_path):
    recipe = recipe_of(metrics=["psnr-source@8bit"], enhancers=["baseline:he"])
    report = evaluate_recipe(recipe, drawn, tmp_path / "out").report
    cell = report["figures"]["original"]["psnr-source@8bit"]
    assert (cell["mean"], cell["n"], cell["infinite"]) == (None, 0, 5)
    assert "against_original" not in report["figures"]["baseline:he"]["psnr-source@8bit"]
    assert "| original | ∞ |" in markdown(report)


def test_what_cannot_be_computed_says_why(drawn, tmp_path):
    recipe = recipe_of(
        data={"pictures": PICTURES}, metrics=["en@256", "psnr@8bit", "niqe@live-96", "seg-dice@tol3", "snr@ring-r3"]
    )
    report = evaluate_recipe(recipe, drawn, tmp_path / "out").report
    why = {column["id"]: column["unavailable"] for column in report["columns"]}
    assert why["en@256"] is None
    assert why["psnr@8bit"] == "the pictures have no targets"
    assert "niqe" in why["niqe@live-96"]
    assert "no trained segmenter was named" in why["seg-dice@tol3"]
    assert "no masks" in why["snr@ring-r3"]
    assert set(report["figures"]["original"]) == {"en@256"}
    text, page = markdown(report), (tmp_path / "out" / "report.html").read_text()
    for name in ("psnr@8bit", "niqe@live-96", "seg-dice@tol3", "snr@ring-r3"):
        assert f"`{name}` is unavailable: {why[name]}" in text
        assert f"<code>{name}</code> is unavailable" in page
    with pytest.raises(RecipeError, match="no metric 'psnr'"):
        evaluate_recipe(recipe_of(metrics=["psnr"]), drawn, tmp_path / "out")


def test_a_score_that_a_picture_has_not_is_told_with_its_reason(drawn, tmp_path):
    (drawn / "masks").mkdir()
    for i in range(5):
        mask = np.zeros((64, 64), np.uint8)
        mask[20:40, 30] = 255 * (i != 3)
        Image.fromarray(mask).save(drawn / "masks" / f"picture_{i}.png")
    data = {"pictures": PICTURES, "masks": [{"folder": "masks"}]}
    recipe = recipe_of(data=data, metrics=["snr@ring-r3"], enhancers=["baseline:he"])
    report = evaluate_recipe(recipe, drawn, tmp_path / "out").report
    assert report["figures"]["baseline:he"]["snr@ring-r3"]["n"] == 4
    assert [(u["enhancer"], u["pictures"]) for u in report["undefined"]] == [("original", 1), ("baseline:he", 1)]
    assert all(u["reason"] for u in report["undefined"])
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    evaluate_recipe(recipe, drawn, tmp_path / "out")
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before


# ---------------------------------------------------------------- lesions, and squares of one size


def test_pictures_masks_and_points_become_squares_of_one_size(tmp_path):
    picture = np.full((60, 100, 3), 200, np.uint8)
    picture[20:30, 40:60] = 50
    (tmp_path / "low").mkdir()
    (tmp_path / "masks").mkdir()
    Image.fromarray(picture).save(tmp_path / "low" / "a.png")
    classes = np.zeros((60, 100), np.uint8)
    classes[20:30, 40:60] = 2
    Image.fromarray(classes).save(tmp_path / "masks" / "a.png")
    (tmp_path / "points.csv").write_text("file,row,column\na.png,24.5,49.5\n")
    data = {"pictures": PICTURES, "masks": [{"folder": "masks"}], "mask_above": 0, "size": 50,
            "points": {"table": "points.csv"}}  # fmt: skip
    (case,) = cases(data, tmp_path)
    assert case.source.shape == (50, 50, 1)  # grey stored as colour
    assert not case.source[:10].any()
    assert not case.source[-10:].any()
    rows, columns = np.nonzero(case.truth_mask)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (20, 25, 20, 30)
    np.testing.assert_allclose(case.source[case.truth_mask], 50 / 255, atol=1e-6)
    assert case.point == (22, 24.5)
    (larger,) = cases(data | {"size": 200}, tmp_path)
    assert larger.source.shape == (200, 200, 1)
    assert larger.truth_mask.sum() == pytest.approx(4 * 200, rel=0.02)


def test_lesions_stand_out_of_their_boxes(tmp_path):
    picture = np.full((64, 64, 3), 150, np.uint8)
    picture[20:25, 30:35] = 90
    picture[40:46, 10:16] = 220
    (tmp_path / "low").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(picture).save(tmp_path / "low" / name)
    (tmp_path / "boxes.csv").write_text(
        "file,class,x1,y1,x2,y2\na.png,dark,28,18,37,27\na.png,bright,8,38,19,49\na.png,disc,50,50,60,60\n"
    )
    data = {"pictures": PICTURES, "boxes": {"table": "boxes.csv", "classes": ["dark", "bright"]}}
    with_boxes, without = cases(data, tmp_path)
    assert without.truth_mask is None
    wanted = np.zeros((64, 64), bool)
    wanted[20:25, 30:35] = wanted[40:46, 10:16] = True
    np.testing.assert_array_equal(with_boxes.truth_mask, wanted)
    lowered = 150 / 255 + (with_boxes.source - 150 / 255) / 2
    assert lesion_contrast(with_boxes.source, lowered, wanted) == pytest.approx(0.5, abs=1e-3)
    turned = 300 / 255 - with_boxes.source
    assert lesion_contrast(with_boxes.source, turned, wanted) == pytest.approx(-1, abs=1e-3)
    assert lesion_contrast(with_boxes.source, with_boxes.source, wanted) == pytest.approx(1)
    with pytest.raises(ValueError, match="no lesion"):
        lesion_contrast(with_boxes.source, lowered, np.zeros_like(wanted))


def test_where_lesions_are_is_said_once(tmp_path):
    boxes = {"table": "boxes.csv", "classes": ["dark"]}
    with pytest.raises(RecipeError, match="in the place of masks"):
        recipe_of(data={"pictures": PICTURES, "masks": PICTURES, "boxes": boxes})
    with pytest.raises(RecipeError, match="boxes"):
        recipe_of(data={"dicom": "x", "boxes": boxes})
    (tmp_path / "low").mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "low" / "a.png")
    (tmp_path / "boxes.csv").write_text("file,x1,y1,x2,y2\na.png,1,1,2,2\n")
    with pytest.raises(RecipeError, match="line 2 has no column 'class'"):
        cases({"pictures": PICTURES, "boxes": boxes}, tmp_path)


def test_good_pictures_say_what_colour_distance_is_from(tmp_path):
    for folder, first, count in (("low", 0, 2), ("good", 10, 4)):
        (tmp_path / folder).mkdir()
        for k in range(count):
            picture, _ = photograph(96, first + k)
            Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(tmp_path / folder / f"{k}.png")
    data = {"pictures": PICTURES, "good": [{"folder": "good"}], "field_of_view": "ellipse"}
    recipe = recipe_of(data=data, enhancers=["baseline:control"], metrics=["colour-distance"])
    report = evaluate_recipe(recipe, tmp_path, tmp_path / "out").report
    good = load_colours(tmp_path / "out" / "good-colours.json")
    assert good.pictures == 4
    assert [column["id"] for column in report["columns"]] == [good.id]
    (tmp_path / "good" / "3.png").unlink()
    (tmp_path / "good" / "2.png").unlink()
    with pytest.raises(RecipeError, match=r"data\.good: 2 pictures that differ"):
        evaluate_recipe(recipe, tmp_path, tmp_path / "out")
    with pytest.raises(RecipeError, match="good: their colours are those of a field_of_view"):
        recipe_of(data=data | {"field_of_view": "none"})
