from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from medenhance_dicom.conventional import Clahe, Identity
from medenhance_dicom.enhancer import EnhancerSpec
from medenhance_dicom.errors import RecipeError
from medenhance_dicom.pyramid import enhance_pyramid, enhance_whole


@dataclass
class Spy:
    """Applies a function and remembers the shapes it saw."""

    change: object
    spec: EnhancerSpec = field(default_factory=lambda: EnhancerSpec(channels=None))
    seen: list = field(default_factory=list)

    def __call__(self, frames):
        self.seen.append(frames.shape)
        return np.asarray(self.change(frames), np.float32)


def noise(*shape):
    return np.random.default_rng(0).random(shape, dtype=np.float32)


@pytest.mark.parametrize("size", [(2670, 3340), (101, 67), (1, 5), (5, 1), (300, 1), (256, 256), (257, 3)])
def test_an_enhancer_that_changes_nothing_gives_the_source_back_bit_for_bit(size):
    frame = noise(*size, 1)
    for working_size in (2, 64, 256):
        np.testing.assert_array_equal(enhance_pyramid(frame, Identity(), working_size), frame)
    np.testing.assert_array_equal(enhance_whole(frame, Identity(), 32), frame)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 3]), st.integers(1, 100), st.integers(1, 40))
def test_every_size_goes_through_both_ways(height, width, channels, working_size, multiple):
    frames = noise(2, height, width, channels)
    spy = Spy(lambda x: x, EnhancerSpec(channels=None, multiple=multiple))
    np.testing.assert_array_equal(enhance_pyramid(frames, spy, working_size), frames)
    np.testing.assert_array_equal(enhance_whole(frames, spy), frames)
    assert all(shape[1] % multiple == 0 and shape[2] % multiple == 0 for shape in spy.seen)


def test_a_frame_is_padded_to_the_multiple_and_cropped_again():
    spy = Spy(lambda x: 1 - x, EnhancerSpec(channels=1, multiple=128))
    frame = noise(130, 100, 1)
    np.testing.assert_array_equal(enhance_whole(frame, spy), 1 - frame)
    assert spy.seen == [(1, 256, 128, 1)]


def test_the_enhancer_sees_the_working_size_and_the_aspect_is_kept():
    spy = Spy(lambda x: x)
    enhance_pyramid(noise(2, 300, 600, 3), spy, 200)
    assert spy.seen == [(2, 100, 200, 3)]


def test_a_small_frame_is_enhanced_whole():
    spy = Spy(lambda x: x * 0.5)
    frame = noise(60, 64, 3)
    np.testing.assert_allclose(enhance_pyramid(frame, spy, 64), frame * 0.5, atol=1e-7)


def test_a_constant_shift_is_carried_up_exactly():
    frame = noise(300, 420, 3) * 0.5 + 0.2
    np.testing.assert_allclose(enhance_pyramid(frame, Spy(lambda x: x + 0.1), 100), frame + 0.1, atol=1e-5)


def test_slow_shading_is_carried_up():
    ramp = np.linspace(0, 0.2, 400, dtype=np.float32)[None, :, None]
    frame = np.broadcast_to(np.float32(0.5), (300, 400, 1)) - ramp
    flat = enhance_pyramid(frame, Spy(lambda x: np.full_like(x, 0.5)), 100)
    np.testing.assert_allclose(flat[:, 8:-8], 0.5, atol=2e-3)


def test_more_contrast_at_working_size_is_more_contrast_in_the_fine_levels_within_the_bound():
    y, x = np.mgrid[:512, :512]
    coarse = 0.06 * np.sin(2 * np.pi * x / 16) * np.sin(2 * np.pi * y / 16)
    fine = 0.02 * ((x + y) % 2 * 2 - 1)
    frame = (0.5 + coarse + fine)[..., None].astype(np.float32)

    def fine_contrast(picture):
        inner = picture[32:-32, 32:-32, 0]
        return np.abs(inner * ((x + y) % 2 * 2 - 1)[32:-32, 32:-32]).mean(), (
            inner * ((x + y) % 2 * 2 - 1)[32:-32, 32:-32]
        ).mean()

    for factor, bound, expected in ((1.5, 2.0, 1.5), (3.0, 1.25, 1.25), (0.2, 2.0, 0.5)):
        after = enhance_pyramid(frame, Spy(lambda s, f=factor: 0.5 + f * (s - 0.5)), 128, gain_bound=bound)
        assert fine_contrast(after)[1] / fine_contrast(frame)[1] == pytest.approx(expected, rel=0.12)


def test_fine_structure_cannot_come_from_the_enhancer():
    frame = np.full((512, 512, 1), 0.5, np.float32)
    dots = np.zeros((1, 64, 64, 1), np.float32)
    dots[:, ::2, ::2] = 0.2
    after = enhance_pyramid(frame, Spy(lambda s: s + dots), 64)
    spectrum = np.abs(np.fft.fft2(after[..., 0] - after.mean()))
    frequency = np.maximum(*(np.abs(f) for f in np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512))))
    assert spectrum[frequency > 0.2].max() < 0.01 * spectrum.max()


@pytest.mark.parametrize("way", [enhance_whole, lambda f, e, **k: enhance_pyramid(f, e, 64, **k)])
def test_pixels_outside_are_untouched(way):
    frames = np.stack([data.astronaut()[:200, :180].astype(np.float32) / 255] * 2)
    inside = np.zeros((2, 200, 180), bool)
    inside[0, 30:150, 20:160] = True
    for enhancer in (Spy(lambda x: x**0.5), Clahe(4.0)):
        after = way(frames, enhancer, inside=inside)
        np.testing.assert_array_equal(after[~inside], frames[~inside])
        assert np.abs(after - frames)[inside].mean() > 0.01
    one = way(frames[0], Clahe(4.0), inside=inside[0])
    np.testing.assert_array_equal(one, way(frames, Clahe(4.0), inside=inside)[0])


def test_no_rim_appears_along_the_field_s_edge():
    y, x = np.ogrid[:400, :400]
    inside = (y - 200) ** 2 + (x - 200) ** 2 < 180**2
    frame = np.where(inside, 0.4, 0.0)[..., None].astype(np.float32)
    after = enhance_pyramid(frame, Spy(lambda s: np.where(s > 0.35, s + 0.2, s)), 64, inside=inside)
    np.testing.assert_allclose(after[inside], 0.6, atol=0.02)


@pytest.mark.parametrize("way", [enhance_whole, lambda f, e, **k: enhance_pyramid(f, e, 200, **k)])
def test_the_enhancer_sees_no_surround_and_no_rim_where_the_field_is_continued(way):
    y, x = np.ogrid[:400, :420]
    inside = (y - 200) ** 2 + (x - 210) ** 2 < 180**2
    inside &= ~((abs(y - 200) < 10) & (abs(x - 210) < 40))  # writing upon the picture
    shade = np.broadcast_to(0.3 + 0.4 * x / 420, inside.shape)
    frame = np.where(inside, shade, np.where(y < 200, 0.0, 1.0))[..., None].astype(np.float32)
    seen = []
    spy = Spy(lambda s: (seen.append(s), s * 0.5)[1], EnhancerSpec(channels=None, multiple=64))
    after = way(frame, spy, inside=inside, padding="field")
    (picture,) = seen
    assert 0.29 < picture.min() < picture.max() < 0.71
    steps = max(np.abs(np.diff(picture, axis=axis)).max() for axis in (1, 2))
    assert steps < 0.02
    np.testing.assert_array_equal(after[~inside], frame[~inside])
    np.testing.assert_allclose(after[inside], frame[inside] * 0.5, atol=0.02)  # up to the edge: no rim


def test_what_is_outside_has_no_part_in_the_result_where_the_field_is_continued():
    rng = np.random.default_rng(1)
    y, x = np.ogrid[:150, :130]
    inside = (y - 75) ** 2 + (x - 65) ** 2 < 60**2
    frames = np.where(inside[..., None], 0.5, rng.random((2, 150, 130, 3))).astype(np.float32)
    after = enhance_pyramid(frames, Spy(lambda s: s / s.max()), 64, inside=np.stack([inside, inside]), padding="field")
    np.testing.assert_array_equal(after[0][inside], after[1][inside])


def test_grey_frames_go_through_a_colour_enhancer_and_come_back_grey():
    spy = Spy(lambda x: x * np.array([0.9, 0.6, 0.3], np.float32), EnhancerSpec(channels=3))
    frame = noise(20, 30, 1)
    np.testing.assert_allclose(enhance_whole(frame, spy), frame * 0.6, atol=1e-6)
    with pytest.raises(RecipeError, match="1 channel"):
        enhance_whole(noise(20, 30, 3), Spy(lambda x: x, EnhancerSpec(channels=1)))


def test_what_an_enhancer_gives_beyond_0_and_1_is_clipped():
    after = enhance_pyramid(noise(80, 90, 1), Spy(lambda x: x * 3 - 1), 40)
    assert after.min() >= 0
    assert after.max() <= 1
