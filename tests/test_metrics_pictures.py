"""SNR, AG, EN, PSNR and SSIM against closed forms; LPIPS and s_HQ as far as it goes without weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage import data
from skimage.metrics import structural_similarity

from medenhance_dicom.errors import ModelError
from medenhance_dicom.metrics import average_gradient, entropy, psnr, signal_to_noise, ssim
from medenhance_dicom.metrics.lpips import load_lpips
from medenhance_dicom.metrics.picture import grey, grey_bytes


def levels(values):
    """0..255 (H, W) -> float32 (H, W, 1) in [0, 1]."""
    return (np.asarray(values, np.float64) / 255).astype(np.float32)[..., None]


CAMERA = levels(data.camera())

# ---------------------------------------------------------------- grey


def test_grey_is_matlabs():
    assert grey_bytes(np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1]]], np.float32)).tolist() == [[76, 150, 29]]
    picture = np.random.default_rng(0).random((9, 9, 3)).astype(np.float32)
    assert np.abs(grey(picture) - grey_bytes(picture)).max() < 1.01
    assert np.array_equal(grey_bytes(np.repeat(CAMERA, 3, axis=2)), data.camera())


def test_a_picture_that_is_none_is_an_error():
    with pytest.raises(ValueError, match=r"\(4, 4, 2\)"):
        entropy(np.zeros((4, 4, 2), np.float32))
    with pytest.raises(ValueError, match="not finite"):
        entropy(np.full((4, 4, 1), np.nan, np.float32))


# ---------------------------------------------------------------- SNR


def lined():
    """A line of 200; around it columns of 90 and 110 alternate in equal number within every odd or even radius."""
    picture, mask = np.zeros((60, 61)), np.zeros((60, 61), bool)
    picture[::2], picture[1::2] = 90, 110
    picture[:, 30], mask[:, 30] = 200, True
    return picture, mask


@pytest.mark.parametrize("radius", [3, 5, 7, 9])
def test_snr_of_a_line(radius):
    picture, mask = lined()
    assert signal_to_noise(levels(picture), mask, radius) == pytest.approx(26.0206, abs=1e-4)  # 20 log10(200 / 10)


def test_snr_is_indifferent_to_gain_but_not_to_an_offset():
    picture, mask = lined()
    whole = signal_to_noise(levels(picture), mask, 3)
    assert signal_to_noise(levels(0.5 * picture), mask, 3) == pytest.approx(whole, abs=1e-4)
    assert signal_to_noise(levels(picture + 30), mask, 3) == pytest.approx(whole + 20 * math.log10(230 / 200), abs=1e-4)


def test_the_background_is_a_ring_or_what_lies_beyond():
    picture, mask = lined()
    picture[:, [24, 36]] = 0
    assert signal_to_noise(levels(picture), mask, 5.9) == pytest.approx(26.0206, abs=1e-4)
    assert signal_to_noise(levels(picture), mask, 6) < 20
    picture, mask = lined()
    picture[:, :20] = 0
    assert signal_to_noise(levels(picture), mask, 9) == pytest.approx(26.0206, abs=1e-4)
    beyond = np.r_[np.zeros(20 * 60), np.tile([90, 110], 30 * 21)]  # columns 0-19; 40-60
    expected = 20 * math.log10(200 / beyond.std())
    assert signal_to_noise(levels(picture), mask, 9, mode="outside") == pytest.approx(expected, abs=0.01)


def test_one_bright_pixel_decides_unless_the_99th_percentile_is_taken():
    picture, mask = lined()
    calm = signal_to_noise(levels(picture), mask, 3)
    picture, mask = np.tile(picture, (4, 1)), np.tile(mask, (4, 1))  # 240 pixels of line
    picture[7, 30] = 250
    assert signal_to_noise(levels(picture), mask, 3) == pytest.approx(calm + 20 * math.log10(250 / 200), abs=1e-4)
    assert signal_to_noise(levels(picture), mask, 3, signal="p99") == pytest.approx(calm, abs=1e-4)


def test_only_the_field_counts_for_snr():
    picture, mask = lined()
    spoilt = picture.copy()
    spoilt[:10] = np.random.default_rng(0).integers(0, 256, (10, 61))
    inside = np.ones(mask.shape, bool)
    inside[:10] = False
    assert signal_to_noise(levels(spoilt), mask, 5, inside=inside) == pytest.approx(26.0206, abs=1e-4)


def test_snr_without_a_line_or_without_noise():
    picture, mask = lined()
    with pytest.raises(ValueError, match="no line"):
        signal_to_noise(levels(picture), np.zeros_like(mask), 3)
    with pytest.raises(ValueError, match="no background"):
        signal_to_noise(levels(picture), np.ones_like(mask), 3)
    assert signal_to_noise(levels(np.where(mask, 200, 7)), mask, 3) == math.inf


# ---------------------------------------------------------------- AG, EN


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (np.add.outer(0 * np.arange(20), 3 * np.arange(30)), 3 / math.sqrt(2)),
        (np.add.outer(5 * np.arange(20), 2 * np.arange(30)), math.sqrt(14.5)),
        (255 * (np.add.outer(np.arange(20), np.arange(30)) % 2), 255),
        (np.full((20, 30), 99), 0),
    ],
)
def test_average_gradient_of_slopes(picture, expected):
    assert average_gradient(levels(picture)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [(np.full((16, 16), 3), 0), (np.tile([0, 255], (16, 8)), 1), (np.arange(256).reshape(16, 16), 8)],
)
def test_entropy_of_levels(picture, expected):
    assert entropy(levels(picture)) == expected


def test_a_known_picture():
    assert average_gradient(CAMERA) == pytest.approx(7.488, abs=1e-3)
    assert entropy(CAMERA) == pytest.approx(7.2317, abs=1e-4)


def test_detail_counts_inside_only():
    inside = np.zeros(CAMERA.shape[:2], bool)
    inside[100:300, 50:400] = True
    cut = CAMERA[100:300, 50:400]
    assert average_gradient(CAMERA, inside) == pytest.approx(average_gradient(cut), abs=1e-9)
    assert entropy(CAMERA, inside) == entropy(cut)
    with pytest.raises(ValueError, match="no pixel"):
        average_gradient(CAMERA, np.eye(512, dtype=bool))
    with pytest.raises(ValueError, match="empty"):
        entropy(CAMERA, np.zeros((512, 512), bool))
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        entropy(CAMERA, np.ones((3, 3), bool))


# ---------------------------------------------------------------- PSNR, SSIM


def test_psnr_of_ten_levels():
    picture = levels(np.clip(data.camera(), 0, 245))
    assert psnr(picture, levels(np.clip(data.camera(), 0, 245) + 10.0)) == pytest.approx(28.1308, abs=1e-4)
    assert psnr(picture, picture) == math.inf


def test_psnr_counts_inside_and_what_eight_bits_hold():
    other = CAMERA.copy()
    other[:100] = 0
    inside = np.ones((512, 512), bool)
    inside[:100] = False
    assert psnr(CAMERA, other, inside) == math.inf
    assert psnr(CAMERA, np.clip(CAMERA + 0.4 / 255, 0, 1)) == math.inf


def test_ssim_of_constants():
    c1 = 6.5025
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    found = ssim(levels(np.full((20, 20), 100)), levels(np.full((20, 20), 150)))
    assert found == pytest.approx(expected, abs=1e-9)
    assert found == pytest.approx(0.9230923, abs=1e-7)


def test_ssim_is_scikit_images_with_wangs_settings():
    x = data.camera().astype(float)
    y = np.rint(np.clip(x + np.random.default_rng(0).normal(0, 25, x.shape), 0, 255))
    other = structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=False
    )
    assert ssim(levels(x), levels(y)) == pytest.approx(other, abs=1e-9)
    assert ssim(levels(x), levels(x)) == 1


def test_ssim_counts_windows_whose_centre_is_inside():
    other = CAMERA.copy()
    other[:100] = 0
    inside = np.ones((512, 512), bool)
    inside[:105] = False
    assert ssim(CAMERA, other, inside) == pytest.approx(1, abs=1e-12)
    inside[104] = True
    assert ssim(CAMERA, other, inside) < 1 - 1e-6
    assert ssim(CAMERA, other) < 0.9
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(CAMERA[:10], CAMERA[:10])
    with pytest.raises(ValueError, match="one shape"):
        ssim(CAMERA, CAMERA[1:])


# ---------------------------------------------------------------- weights brought along


def alexnet(path, scale=1.0):
    rng = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    tensors = {}
    for k, (n, shape) in enumerate(shapes.items()):
        tensors[f"features.{n}.weight"] = 0.05 * torch.randn(shape, generator=rng)
        tensors[f"features.{n}.bias"] = torch.zeros(shape[0])
        tensors[f"lin{k}.model.1.weight"] = scale * torch.rand((1, shape[0], 1, 1), generator=rng)
    save_file(tensors, path)
    return tensors


def test_lpips_is_a_distance(tmp_path):
    tensors = alexnet(tmp_path / "a.safetensors")
    alexnet(tmp_path / "b.safetensors", scale=2)
    id_, distance = load_lpips(tmp_path / "a.safetensors")
    other_id, twice = load_lpips(tmp_path / "b.safetensors")
    assert id_.startswith("lpips@")
    assert id_ != other_id
    picture, rng = CAMERA[:96, :128], np.random.default_rng(0)
    near, far = (np.clip(picture + rng.normal(0, s, picture.shape), 0, 1).astype(np.float32) for s in (0.02, 0.2))
    assert distance(picture, picture) == 0
    assert 0 < distance(picture, near) < distance(picture, far)
    assert distance(picture, far) == pytest.approx(distance(far, picture))
    assert twice(picture, far) == pytest.approx(2 * distance(picture, far), rel=1e-5)
    assert distance(np.repeat(picture, 3, 2), np.repeat(far, 3, 2)) == pytest.approx(distance(picture, far))
    del tensors["lin2.model.1.weight"]
    save_file(tensors, tmp_path / "c.safetensors")
    with pytest.raises(ModelError, match=r"c\.safetensors: has no lin2"):
        load_lpips(tmp_path / "c.safetensors")


def test_lpips_first_layer_by_hand(tmp_path):
    """With all other heads at nothing, the score is that of the first layer, worked out with loops."""
    tensors = alexnet(tmp_path / "w.safetensors")
    for k in range(1, 5):
        tensors[f"lin{k}.model.1.weight"] *= 0
    save_file(tensors, tmp_path / "w.safetensors")
    rng = np.random.default_rng(1)
    pictures = rng.random((2, 40, 36, 3)).astype(np.float32)
    kernel = tensors["features.0.weight"].double().numpy()
    directions = []
    for picture in pictures:
        x = (2 * picture.astype(float) - 1 - (-0.030, -0.088, -0.188)) / (0.458, 0.448, 0.450)
        x = np.pad(x, ((2, 2), (2, 2), (0, 0)))
        rows, columns = range(0, x.shape[0] - 10, 4), range(0, x.shape[1] - 10, 4)
        h = np.array(
            [[np.tensordot(kernel, x[i : i + 11, j : j + 11].transpose(2, 0, 1), 3) for j in columns] for i in rows]
        )
        h = np.maximum(h, 0)
        directions.append(h / np.linalg.norm(h, axis=2, keepdims=True))
    head = tensors["lin0.model.1.weight"].double().numpy().ravel()
    expected = np.mean(((directions[0] - directions[1]) ** 2) @ head)
    assert load_lpips(tmp_path / "w.safetensors")[1](*pictures) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_s_hq_under_eyeqs_names(tmp_path):
    """The published weights are not at hand: a network of our own goes through their names and comes back the same."""
    from medenhance_dicom.metrics.quality import _densenet_layers, _spaces, load_mcf
    from medenhance_dicom.networks import MCFNet

    torch.manual_seed(0)
    network = MCFNet(classes=3, branch="densenet121").eval()
    own = network.state_dict()
    names = [name.rpartition(".")[0] for name in own]
    names = list(dict.fromkeys(names))
    theirs = [f"feature{x}.densenet121.features.{n}" for x in "ABC" for n in _densenet_layers()]
    theirs += [*(f"feature{x}.densenet121.classifier.0" for x in "ABC"), "combine2.0", "combine1.0"]
    assert theirs[6] == "featureA.densenet121.features.denseblock1.denselayer2.norm1"
    assert own["branches.0.body.0.weight"].shape == (64, 3, 7, 7)
    table = dict(zip(names, theirs, strict=True))
    save_file({f"{table[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": t for n, t in own.items()}, tmp_path / "m")
    id_, score = load_mcf(tmp_path / "m")
    assert id_.startswith("s_hq@mcf:")
    picture = (data.astronaut()[:300, :200] / 255).astype(np.float32)
    rgb, hsv, lab = (torch.from_numpy(space) for space in _spaces(picture, None))
    assert rgb.shape == hsv.shape == lab.shape == (1, 3, 224, 224)
    assert rgb[0, :, 0, 0].tolist() == pytest.approx(
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    )  # black beside it
    with torch.no_grad():
        found = [branch(space) for branch, space in zip(network.branches, (rgb, hsv, lab), strict=True)]
        four = [head(h) for head, h in zip(network.heads, found, strict=True)] + [network.fused(torch.cat(found, 1))]
        expected = network.final(torch.cat(four, 1).sigmoid()).sigmoid()[0, 0].item()
    assert score(picture, None) == pytest.approx(expected, abs=1e-6)
    alexnet(tmp_path / "a")
    with pytest.raises(ModelError, match="not MCF-Net's weights"):
        load_mcf(tmp_path / "a")
