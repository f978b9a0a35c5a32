"""The node's configuration: what loads, what does not, and the words for it; the example has every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from medenhance_dicom.errors import ConfigurationError
from medenhance_dicom.node.enhancing import run_settings
from medenhance_dicom.node.settings import Destination, NodeSettings, Rule, load_settings

EXAMPLE = Path(__file__).parent.parent / "docs" / "node.toml"


def written(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text)
    return path


def models(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """The tables that a configuration may have."""
    if model in seen:
        return seen
    seen.add(model)
    for field in model.model_fields.values():
        for kind in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                models(kind, seen)
    return seen


def test_the_example_loads_and_its_paths_are_beside_it():
    loaded = load_settings(EXAMPLE)
    assert loaded.store == Path("/var/lib/medenhance")
    assert loaded.destinations[1].authorization_file == EXAMPLE.parent / "research.token"
    assert [rule.enhance for rule in loaded.rules] == [True, False]


def test_the_example_has_every_key():
    text = EXAMPLE.read_text()
    tables = models(NodeSettings, set())
    assert len(tables) == 12
    for table in tables:
        for name, field in table.model_fields.items():
            table_or_key = rf"^(# ?)?(\[\[?[a-z.]*{name}\]?\]|{name} = )"
            assert re.search(table_or_key, text, re.MULTILINE), f"{table.__name__}.{name} ({field.annotation})"


def test_a_site_key_goes_along_to_what_is_enhanced_and_lies_beside_the_configuration(tmp_path):
    loaded = load_settings(written(tmp_path, 'store = "store"\n[enhance]\nsign_key = "keys"\n'))
    assert run_settings(loaded.enhance, tmp_path).sign_key == tmp_path / "keys"


def test_what_is_commented_out_loads_too(tmp_path):
    text = re.sub(r"^# (\[[a-z.]+\]|[a-z_]+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)
    loaded = load_settings(written(tmp_path, text))
    assert loaded.listener.tls is not None
    assert loaded.listener.tls.authority == tmp_path / "tls/hospital-ca.pem"
    assert loaded.destinations[0].tls is not None
    assert loaded.peers[0].tls is not None
    assert loaded.peers[0].tls.key == tmp_path / "tls/node.key"
    assert loaded.work.database.startswith("postgresql://")


def test_a_store_alone_is_enough_and_lets_nobody_in(tmp_path):
    loaded = load_settings(written(tmp_path, 'store = "spool"'))
    assert loaded.store == tmp_path / "spool"
    assert loaded.listener.bind == loaded.http.bind == "127.0.0.1"
    assert loaded.peer("ANYBODY") is None
    assert loaded.rule_for("ANYBODY", "OP") == Rule(destinations=())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "store"),
        ("store = ", "node.toml"),
        ('store = "s"\n[listener]\nprot = 104', r"listener\.prot"),
        ('store = "s"\n[listener]\nport = 70000', r"listener\.port"),
        ('store = "s"\n[listener]\nae_title = "SEVENTEEN LETTERS"', r"listener\.ae_title"),
        ('store = "s"\n[listener]\nae_title = "BACK\\\\SLASH"', r"listener\.ae_title"),
        ('store = "s"\n[[peers]]\nae_title = "A"\n[[peers]]\nae_title = "A"', "an AE title twice"),
        ('store = "s"\n[[destinations]]\nname = "a"\nae_title = "A"', "needs ae_title, host and port, or stow"),
        (
            'store = "s"\n[[destinations]]\nname = "a"\nae_title = "A"\nhost = "h"\nport = 1\nstow = "http://h"',
            "both a DICOM address and stow",
        ),
        ('store = "s"\n[[rules]]\ndestinations = ["nowhere"]', "no destination 'nowhere'"),
        ('store = "s"\n[completeness]\ncount_at = "nowhere"', "no destination 'nowhere'"),
        ('store = "s"\n[[destinations]]\nname = "Big"\nstow = "http://h"', r"destinations\.0\.name"),
        ('store = "s"\n[work]\nattempts = 0', r"work\.attempts"),
        ('store = "s"\n[[peers]]\nae_title = "A"\nhosts = ["archive.local"]', r"peers\.0\.hosts.*archive\.local"),
        (
            'store = "s"\n[[peers]]\nae_title = "A"\n[peers.tls]\ncertificate = "c"\nkey = "k"\nauthority = "a"',
            r"peers\.0: .*needs host and port",
        ),
        ('store = "s"\n[completeness]\nidle_seconds = -1', r"completeness\.idle_seconds"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, words):
    with pytest.raises(ConfigurationError, match=words):
        load_settings(written(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"absent\.toml"):
        load_settings(tmp_path / "absent.toml")


def test_destinations_are_named_once(tmp_path):
    twice = '[[destinations]]\nname = "a"\nstow = "http://h"\n' * 2
    with pytest.raises(ConfigurationError, match="'a' twice"):
        load_settings(written(tmp_path, 'store = "s"\n' + twice))


def test_the_first_rule_that_fits_decides():
    a, b = (Destination(name=name, stow="http://h") for name in "ab")
    rules = (
        Rule(destinations=("a",), calling=("X",), Modality=("OP",)),
        Rule(destinations=("b",), Modality=("OP", "CT"), enhance=False),
    )
    settings = NodeSettings(store=Path("s"), destinations=(a, b), rules=rules)
    assert settings.rule_for("X", "OP") == rules[0]
    assert settings.rule_for("Y", "OP") == rules[1]
    assert settings.rule_for("X", "CT") == rules[1]
    assert settings.rule_for("X", "US").destinations == ()
    assert NodeSettings(store=Path("s"), destinations=(a, b)).rule_for("X", "US").destinations == ("a", "b")
