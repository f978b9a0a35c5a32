"""The repository describes itself truly."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib

import typer.main

import medenhance_dicom
from medenhance_dicom.cli import app
from medenhance_dicom.manifest import load_manifest, load_network, verify_all
from medenhance_dicom.provenance import CODES
from medenhance_dicom.recipe import load_recipes
from tests.conftest import ROOT


def test_every_recipe_names_weights_that_are_there():
    manifest = load_manifest()
    recipes = load_recipes()
    assert {"op-fundus-stillgan", "cfm-cornea-stillgan"} <= {r.name for r in recipes}
    for recipe in recipes:
        assert recipe.enhancer.weights is None or recipe.enhancer.weights in manifest.weights
        assert set(recipe.derived.steps) <= set(CODES)


def test_every_weights_file_is_whole_loads_and_has_a_card():
    manifest = load_manifest()
    assert not any(verify_all(manifest).values())
    total = 0
    for key, entry in manifest.weights.items():
        load_network(key, manifest)
        card = (ROOT / "models" / "cards" / f"{key}.md").read_text()
        assert entry.licence.split()[0] in card
        files = [entry.file, *([entry.guide_encoder.file] if entry.guide_encoder else [])]
        sizes = [(ROOT / "models" / file).stat().st_size for file in files]
        assert max(sizes) <= 8 << 20
        total += sum(sizes)
    assert total <= 48 << 20


def test_sample_data_is_what_its_hashes_say():
    hashes = tomllib.loads((ROOT / "sample_data" / "hashes.toml").read_text())["sha256"]
    found = {
        p.relative_to(ROOT / "sample_data").as_posix(): p
        for p in (ROOT / "sample_data").rglob("*")
        if p.is_file() and p.parent != ROOT / "sample_data" and "__pycache__" not in p.parts
    }
    assert set(hashes) == set(found)
    for name, path in found.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == hashes[name]
        assert path.stat().st_size < 300_000


def test_every_command_and_option_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()

    def walk(command, words):
        for name, sub in getattr(command, "commands", {}).items():
            walk(sub, [*words, name])
        if not getattr(command, "commands", None):
            assert " ".join(words) in readme, words
            for parameter in command.params:
                for option in parameter.opts:
                    if option.startswith("--") and option != "--help":
                        assert option in readme, (words, option)

    walk(typer.main.get_command(app), [])


def test_the_changelog_knows_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    assert versions[0] == medenhance_dicom.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == medenhance_dicom.__version__


def test_every_module_imports_and_says_what_it_is_for():
    for info in pkgutil.walk_packages(medenhance_dicom.__path__, "medenhance_dicom."):
        if not info.name.endswith("__main__"):
            assert importlib.import_module(info.name).__doc__, info.name


def test_importing_the_package_is_light():
    script = "import medenhance_dicom, sys; assert not {'torch', 'numpy', 'pydicom'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_nothing_unpickles():
    for path in (ROOT / "medenhance_dicom").rglob("*.py"):
        assert not re.search(
            r"\b(import pickle|from pickle|torch\.load|torch\.save|allow_pickle=True)", path.read_text()
        ), path
