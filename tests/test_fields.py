"""Fields of gain, veil and detail: what such a network can do to a picture, what it cannot, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medenhance_dicom.enhancer import LOOKS
from medenhance_dicom.errors import RecipeError
from medenhance_dicom.networks import GuidedNetwork, HQGNetGenerator, ResNet9Generator, StillGANGenerator
from medenhance_dicom.networks.fields import (
    CELLS,
    DETAIL,
    GAIN,
    GUIDE,
    LEVELS,
    SEEN,
    VEIL,
    Fields,
    FieldsGenerator,
    LookEncoder,
    apply_fields,
    fields_of,
    numbers_of_fields,
    pyramid,
)
from medenhance_dicom.training.data import TrainingPictures, to_batch, unit
from medenhance_dicom.training.field_losses import field_terms, low_pass_lab, vessel_depth
from medenhance_dicom.training.field_pictures import FieldPictures, light_of
from medenhance_dicom.training.fields import InField
from medenhance_dicom.training.fit import fit
from medenhance_dicom.training.recipe import FieldAims, load_training_recipe


@pytest.fixture
def picture():
    return torch.rand(2, 3, 150, 201, generator=torch.Generator().manual_seed(3))


def _wild(**options):
    """A generator whose every weight is drawn at random, which does whatever such a network can do."""
    torch.manual_seed(1)
    network = FieldsGenerator(**options).eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, 0, 0.2)
    return network


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(64, 64), (150, 201), (17, 40)])
def test_untrained_it_is_the_identity_at_any_size(channels, shape):
    y = torch.rand(2, channels, *shape)
    out = FieldsGenerator(channels=channels, width=4)(y, torch.zeros(1, GUIDE), torch.zeros(1, 1))
    torch.testing.assert_close(out, y, atol=1e-6, rtol=0)


@pytest.mark.parametrize("generator", [StillGANGenerator, ResNet9Generator])
def test_as_a_head_it_starts_as_the_identity(generator):
    x = 2 * torch.rand(1, 3, 256, 256) - 1
    torch.testing.assert_close(generator(width=4, head="fields").eval()(x), x, atol=1e-5, rtol=0)


def test_as_hqgnets_head_it_starts_as_the_identity():
    network = HQGNetGenerator(width=4, norm="instance", head="fields").eval()
    x = 2 * torch.rand(1, 3, 64, 64) - 1
    torch.testing.assert_close(GuidedNetwork(network, torch.zeros(GUIDE))(x), x, atol=1e-5, rtol=0)


def test_the_pyramid_adds_up_again(picture):
    levels, rest = pyramid(picture)
    assert len(levels) == LEVELS
    nothing = Fields(*(torch.zeros(2, n, CELLS, CELLS) for n in (3, 3, LEVELS, 1)))
    torch.testing.assert_close(apply_fields(levels, rest, nothing), picture, atol=1e-6, rtol=0)


def test_a_flat_picture_gets_no_line(picture):
    """What is flat stays smooth, whatever the network says: nothing finer than a cell can be painted."""
    flat = torch.full((1, 3, 240, 240), 0.5)
    out = _wild(width=4)(flat, torch.randn(1, GUIDE), torch.ones(1, 1))
    assert out.std() > 1e-4
    step = 240 // CELLS
    across = (out[..., 1:] - out[..., :-1]).abs().max()
    assert across < 4 * (out.max() - out.min()) / step


def test_detail_is_the_sources_own_times_one_gain(picture):
    """The octaves of the result are the source's, times the same bounded gain in each channel."""
    levels, rest = pyramid(picture)
    h = torch.zeros(2, numbers_of_fields(3), CELLS, CELLS)
    h[:, 6] = 100.0  # the finest octave's gain, far beyond its bound
    out = apply_fields(levels, rest, fields_of(h, 3))
    seen = torch.sigmoid(torch.tensor(SEEN))
    torch.testing.assert_close(out - picture, (4**seen - 1) * levels[0], atol=1e-5, rtol=0)


def test_bounds_hold_and_what_is_not_seen_stays():
    h = 100 * torch.randn(2, numbers_of_fields(3), CELLS, CELLS)
    fields = fields_of(h, 3)
    for values, bound in ((fields.log_gain, GAIN), (fields.veil, VEIL), (fields.log_detail, DETAIL)):
        assert values.abs().max() <= bound + 1e-6
    h[:, -1] = -100
    assert all(values.abs().max() < 1e-6 for values in fields_of(h, 3))


def test_the_guide_and_the_look_lead(picture):
    network, v_z = _wild(width=4), torch.randn(2, GUIDE)
    bound = [GuidedNetwork(network, v, look) for v in v_z for look in range(len(LOOKS))]
    outs = [one(2 * picture - 1) for one in bound]
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(outs) for b in outs[:i])
    assert all(out.abs().max() <= 1 for out in outs)
    assert "look" not in bound[0].state_dict()


def test_a_picture_by_itself_is_what_it_is_in_a_batch(picture):
    network, v_z, look = _wild(width=4), torch.randn(1, GUIDE), torch.ones(1, 1)
    together = network(picture, v_z, look)
    torch.testing.assert_close(together[1:], network(picture[1:], v_z, look), atol=1e-5, rtol=0)


def test_guide_vectors_have_64_numbers():
    assert LookEncoder(width=4)(torch.rand(3, 3, 96, 96)).shape == (3, GUIDE)


def _light(side, *, disc):
    y, x = np.mgrid[:side, :side] / side - 0.5
    light = np.stack([c * np.exp(-0.8 * x + 0.5 * y - 1.5 * (x * x + y * y)) for c in (0.6, 0.35, 0.15)], axis=2)
    spot = (x - 0.2) ** 2 + y**2 < 0.07**2
    picture = light * np.where(spot & disc, 1.6, 1.0)[..., None]
    return np.rint(picture.clip(0, 1) * 255).astype(np.uint8), light, np.asarray((x * x + y * y) < 0.46**2), spot


def test_light_is_found_and_the_disc_left_out():
    seen, light, inside, spot = _light(192, disc=True)
    found = light_of(seen, inside).transpose(1, 2, 0).repeat(4, axis=0).repeat(4, axis=1)
    off = np.abs(found / light - 1)
    assert np.median(off[inside]) < 0.01
    assert np.median(off[spot]) < 0.05  # a spot 60 % brighter does not count as light


def test_low_pass_colour_is_cie_lab():
    from skimage.color import rgb2lab

    rgb = torch.tensor([0.6, 0.3, 0.1]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    lab, _ = low_pass_lab(rgb, torch.ones(1, 1, 64, 64))
    np.testing.assert_allclose(lab[0, :, 3, 3], rgb2lab(np.array([[[0.6, 0.3, 0.1]]]))[0, 0], atol=0.02)


def test_vessel_depth_is_about_the_metrics():
    from medenhance_dicom.metrics.fundus import FundusField

    side = 384
    x = np.full((side, side, 3), 0.5, np.float32)
    x[:, 40:360:40] = x[:, 41:360:40] = x[:, 42:360:40] = 0.4
    field = FundusField(x, np.ones((side, side), bool))
    planes = torch.from_numpy(x).permute(2, 0, 1)[None]
    found = vessel_depth(planes, torch.from_numpy(field.vessels)[None, None].float())
    assert float(found) == pytest.approx(field.vessel_depth(x), abs=0.01)


TINY = """
name = "tiny"
summary = "A few drawn eyes."
method = "fields"
[data]
channels = 3
size = 192
degradation = "fundus-clinical"
low = [{ folder = "low" }]
high = [{ folder = "high" }]
validation_high = [{ folder = "high" }]
[network]
width = 4
guide_width = 4
[schedule]
warm_up = 6
warm_up_batch = 4
steps = 0
constant = 0
validate_every = 3
checkpoint_seconds = 0.0
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("eyes"), np.random.default_rng(0)
    for kind, contrast in (("high", 0.5), ("low", 0.15)):
        (root / kind).mkdir()
        for i in range(3):
            picture, _, inside, _ = _light(192, disc=True)
            lines = np.ones((192, 192))
            for start in rng.integers(20, 170, 6):
                lines[:, start : start + 3] = 1 - contrast
            eye = np.where(inside[..., None], picture * lines[..., None], 0)
            Image.fromarray(eye.astype(np.uint8)[:160]).save(root / kind / f"{i}.png")
    (root / "tiny.toml").write_text(TINY)
    return root


def _pictures(drawn, **more):
    recipe = load_training_recipe(drawn / "tiny.toml", more)
    loaded = TrainingPictures(drawn, recipe)
    return recipe, FieldPictures(loaded.loaded_high, loaded.loaded_low, recipe)


def test_batches_follow_the_generator_alone_and_hold_each_kind(drawn):
    _, pictures = _pictures(drawn)
    one, again, other = (pictures.batch(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["y"], other["y"])
    assert one["poor"].tolist() == [1, 0, 0, 0]
    assert one["same"].tolist() == [0, 1, 0, 0]
    assert not torch.equal(one["y"][2:], one["target"][2:])


def test_without_poor_pictures_made_ones_stand_for_them(drawn):
    _, pictures = _pictures(drawn, **{"data.low": []})
    assert not pictures.low
    assert pictures.batch(np.random.default_rng(1))["poor"].tolist() == [1, 0, 0, 0]


def test_a_degradation_that_does_not_tell_what_is_seen_is_refused(drawn):
    with pytest.raises(RecipeError, match=r"data\.degradation"):
        _pictures(drawn, **{"data.degradation": "fundus"})


def test_a_good_picture_left_alone_costs_nothing(drawn):
    recipe, pictures = _pictures(drawn)
    batch = {name: t[1:2] for name, t in pictures.batch(np.random.default_rng(4)).items()}
    batch["look"] = torch.zeros(1, 1)
    batch["target"] = batch["y"]
    fields = fields_of(torch.zeros(1, numbers_of_fields(3), CELLS, CELLS), 3)
    terms = field_terms(batch, batch["y"], fields, recipe.fields)
    assert all(float(term) < 1e-5 for name, term in terms.items() if name != "seen")
    assert set(terms) == set(type(FieldAims().terms).model_fields)


@pytest.mark.slow
def test_it_learns_and_goes_on_exactly_where_it_stopped(drawn, tmp_path):
    recipe = load_training_recipe(drawn / "tiny.toml")
    options = {"data_root": drawn, "device": "cpu", "precision": "32-true"}

    class StoppedError(Exception):
        pass

    def stop(step, total, terms):
        if step == 3:
            raise StoppedError

    whole = load_file(fit(recipe, run=tmp_path / "whole", **options))
    with pytest.raises(StoppedError):
        fit(recipe, run=tmp_path / "broken", report=stop, **options)
    again = load_file(fit(recipe, run=tmp_path / "broken", resume=True, **options))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert whole["last.weight"].abs().max() > 0
    guide = load_file(tmp_path / "whole" / "guide_encoder.safetensors")
    LookEncoder(width=4).load_state_dict({name: t.float() for name, t in guide.items()})


def test_validation_sees_pictures_as_enhance_does(drawn):
    """A network that answers grey everywhere changes the field alone."""

    class Grey(torch.nn.Module):
        def forward(self, x):
            self.seen = x
            return torch.zeros_like(x)

    recipe = load_training_recipe(drawn / "tiny.toml")
    x = to_batch([unit(TrainingPictures(drawn, recipe).high[0])])
    grey = Grey()
    out = InField(grey)(x)
    assert (grey.seen > -0.99).all()  # no black surround
    corner = (..., slice(16, 36), slice(0, 20))
    torch.testing.assert_close(out[corner], x[corner], atol=1e-6, rtol=0)
    assert (out[..., 96, 96].abs() < 0.05).all()
