"""Augmentation against known geometry."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF

from depthzoo.prediction import resize_image
from train.augment import CPU_PART, Batch, as_tensors, augment, geometry, sampling_grid
from train.config import AugmentConfig
from train.order import Draws, sample_draws

CPU = torch.device("cpu")


def make(image: torch.Tensor, depth: torch.Tensor, focal: float, **draws: float) -> Batch:
    """A batch of one with all draws 1/2 but those named."""
    values = np.array([draws.get(name, 0.5) for name in Draws._fields])[None]
    return Batch(image[None], depth[None, None], values, focal, ["k"])


def ramp(height: int, width: int) -> torch.Tensor:
    """A picture whose red is the column and green the row."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows, torch.zeros_like(rows)]).to(torch.uint8)


FULL = 518.86 * 64 / 640  # focal length of a whole frame 64 pixels wide
METRE = torch.full((48, 64), 1000, dtype=torch.int16)


def test_without_augmentation_a_whole_frame_comes_back() -> None:
    image, depth, mask = augment(make(ramp(48, 64), METRE, FULL), (48, 64), AugmentConfig(), CPU)
    torch.testing.assert_close(image[0] * 255, ramp(48, 64).float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(depth, torch.ones(1, 1, 48, 64))
    assert mask.all()


def test_flip_mirrors_picture_and_depth() -> None:
    depth = (1000 + 10 * torch.arange(64)).expand(48, 64).to(torch.int16)
    batch = make(ramp(48, 64), depth, FULL, flip=0.1)
    image, metres, _ = augment(batch, (48, 64), AugmentConfig(flip=True), CPU)
    torch.testing.assert_close(image[0] * 255, ramp(48, 64).float().flip(-1), atol=1e-3, rtol=0)
    torch.testing.assert_close(metres[0, 0] * 1000, depth.float().flip(-1))


def test_zoom_divides_depth_and_magnifies() -> None:
    config = AugmentConfig(zoom=(2.0, 2.0))
    image, depth, _ = augment(make(ramp(48, 64), METRE, FULL), (48, 64), config, CPU)
    assert torch.allclose(depth, torch.tensor(0.5))
    # Twice as large around the centre: neighbours differ by half a column.
    steps = (image[0, 0, 24, 1:] - image[0, 0, 24, :-1]) * 255
    torch.testing.assert_close(steps, torch.full((63,), 0.5), atol=1e-3, rtol=0)


def test_a_longer_lens_divides_the_label_and_leaves_the_picture_whole() -> None:
    """The one rule of cameras: the same pixels, metres over f / canonical f at equal width."""
    image, depth, mask = augment(make(ramp(48, 64), METRE, 1.5 * FULL), (48, 64), AugmentConfig(), CPU)
    torch.testing.assert_close(image[0] * 255, ramp(48, 64).float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(depth, torch.full((1, 1, 48, 64), 1 / 1.5))
    assert mask.all()


def test_a_crop_is_a_narrower_view_of_the_same_camera() -> None:
    """Half the width at the same focal length in pixels looks twice as near."""
    crop = ramp(48, 64)[:, 12:-12, 16:-16].contiguous()
    batch = make(crop, METRE[12:-12, 16:-16], FULL)
    image, depth, _ = augment(batch, (48, 64), AugmentConfig(), CPU)
    zoomed, divided, _ = augment(
        make(ramp(48, 64), METRE, FULL), (48, 64), AugmentConfig(zoom=(2.0, 2.0)), CPU
    )
    torch.testing.assert_close(depth, divided)
    torch.testing.assert_close(image[..., 2:-2, 2:-2], zoomed[..., 2:-2, 2:-2], atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(48, 48), (32, 96)])
def test_another_aspect_is_cut_not_squeezed(size: tuple[int, int]) -> None:
    """Equal steps down and across, and the label follows the width that is left."""
    batch = make(ramp(48, 64), METRE, FULL)
    matrix, scale = geometry(batch, size, AugmentConfig())
    down, across = matrix[0, 1, 1] * 48 / size[0], matrix[0, 0, 0] * 64 / size[1]
    assert down == pytest.approx(across) and matrix[0, :, :2].abs().max() == pytest.approx(1)
    assert scale[0] == pytest.approx(1 / matrix[0, 0, 0].item())


def test_another_size_is_the_same_view() -> None:
    """Fewer pixels in each direction: the same field of view, the same metres."""
    image, depth, mask = augment(make(ramp(48, 64), METRE, FULL), (32, 40), AugmentConfig(), CPU)
    assert image.shape == (1, 3, 32, 40) and mask.all() and torch.allclose(depth, torch.tensor(1.0))
    matrix, _ = geometry(make(ramp(48, 64), METRE, FULL), (32, 40), AugmentConfig())
    torch.testing.assert_close(matrix[0], torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))


def test_rotation_is_a_rotation() -> None:
    config = AugmentConfig(rotate=90.0)  # the draw 1 is the largest angle
    matrix, _ = geometry(make(ramp(48, 64), METRE, FULL, rotate=1.0), (48, 64), config)
    pixels = matrix[0, :, :2] * torch.tensor([[32.0], [24.0]]) / torch.tensor([[32.0, 24.0]])
    torch.testing.assert_close(pixels, torch.tensor([[0.0, -1.0], [1.0, 0.0]]), atol=1e-4, rtol=0)


def test_invalid_depth_stays_invalid() -> None:
    depth = METRE.clone()
    depth[10:20, 10:20] = 0
    _, metres, mask = augment(make(ramp(48, 64), depth, FULL), (48, 64), AugmentConfig(), CPU)
    assert not mask[0, 0, 10:20, 10:20].any() and mask.sum() == 48 * 64 - 100
    assert set(metres.unique().tolist()) == {0.0, 1.0}


def test_colour_leaves_depth_alone_and_stays_in_range() -> None:
    config = AugmentConfig(
        brightness=0.5, contrast=0.5, saturation=0.5, gamma=2.0, channel_swap=1.0, grey=0.1
    )
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (3, 48, 64), generator=generator, dtype=torch.uint8)
    for index in range(20):
        batch = make(picture, METRE, FULL)
        batch.draws[0] = sample_draws(1, 2, index)
        image, depth, _ = augment(batch, (48, 64), config, CPU)
        assert image.min() >= 0 and image.max() <= 1 and torch.isfinite(image).all()
        assert torch.allclose(depth, torch.tensor(1.0))


def test_channel_swap_permutes() -> None:
    picture = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, 48, 64)
    batch = make(picture, METRE, FULL, channel_swap=0.0, channel_order=0.99)
    image, _, _ = augment(batch, (48, 64), AugmentConfig(channel_swap=1.0), CPU)
    torch.testing.assert_close(image[0, :, 24, 32] * 255, torch.tensor([30.0, 20.0, 10.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("bend", [0.1, 0.9])
def test_colours_are_torchvisions(bend: float) -> None:
    """Saturation, contrast, brightness and gamma, either way, where nothing is clipped."""
    generator = torch.Generator().manual_seed(1)
    picture = torch.randint(90, 150, (3, 48, 64), generator=generator, dtype=torch.uint8)
    config = AugmentConfig(brightness=0.25, contrast=0.3, saturation=0.4, gamma=1.5)
    batch = make(picture, METRE, FULL, saturation=bend, contrast=1 - bend, brightness=bend, gamma=1 - bend)
    image, _, _ = augment(batch, (48, 64), config, CPU)
    far = 2 * bend - 1
    expected = TF.adjust_saturation(picture / 255, 1 + 0.4 * far)
    expected = TF.adjust_brightness(TF.adjust_contrast(expected, 1 - 0.3 * far), 1 + 0.25 * far)
    assert 0 < expected.min() and expected.max() < 1
    torch.testing.assert_close(image[0], TF.adjust_gamma(expected, 1.5**-far), atol=5e-4, rtol=0)


def test_grey_is_grey() -> None:
    batch = make(ramp(48, 64), METRE, FULL, grey=0.1)
    image, _, _ = augment(batch, (48, 64), AugmentConfig(grey=0.2), CPU)
    expected = TF.rgb_to_grayscale(ramp(48, 64) / 255.0, num_output_channels=3)
    torch.testing.assert_close(image[0], expected, atol=2e-3, rtol=0)
    image, _, _ = augment(batch, (48, 64), AugmentConfig(grey=0.05), CPU)
    torch.testing.assert_close(image[0], ramp(48, 64) / 255.0, atol=1e-5, rtol=0)


def test_the_grid_is_affine_grids() -> None:
    matrix = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = F.affine_grid(matrix, [3, 1, 33, 50], align_corners=False)
    torch.testing.assert_close(sampling_grid(matrix, (33, 50)), expected)


def test_half_precision_around_it_changes_nothing() -> None:
    config = AugmentConfig(zoom=(1.1, 1.3), rotate=5.0, contrast=0.3, gamma=1.2)
    batch = make(ramp(48, 64), METRE, FULL, zoom=0.9, rotate=0.8, contrast=0.9)
    with torch.autocast("cpu", torch.bfloat16):
        inside = augment(batch, (48, 64), config, CPU)
    for one, other in zip(inside, augment(batch, (48, 64), config, CPU), strict=True):
        assert torch.equal(one, other)


def test_a_batch_is_its_samples() -> None:
    """However it is cut into parts."""
    generator = torch.Generator().manual_seed(2)
    count = 2 * CPU_PART + 1
    pictures = torch.randint(0, 256, (count, 3, 48, 64), generator=generator, dtype=torch.uint8)
    depths = torch.randint(0, 9000, (count, 1, 48, 64), generator=generator).to(torch.int16)
    draws = np.stack([sample_draws(1, 2, index) for index in range(count)])
    config = AugmentConfig(
        flip=True, zoom=(0.9, 1.3), rotate=5.0, contrast=0.3, gamma=1.3, blur=0.5, noise=0.1
    )
    whole = augment(Batch(pictures, depths, draws, FULL, ["k"] * count), (48, 64), config, CPU)
    for i in range(count):
        one = Batch(pictures[i : i + 1], depths[i : i + 1], draws[i : i + 1], FULL, ["k"])
        for part, all_of_it in zip(augment(one, (48, 64), config, CPU), whole, strict=True):
            torch.testing.assert_close(part, all_of_it[i : i + 1])


def test_training_shrinks_pictures_as_evaluation_does() -> None:
    """The energy of edges: without antialiasing a fine pattern would be 1.3 times as strong, or more."""
    generator = torch.Generator().manual_seed(3)
    noise = F.avg_pool2d(torch.randint(0, 256, (1, 3, 241, 321), generator=generator).float(), 2, stride=1)
    picture, depth = noise.to(torch.uint8)[0], torch.ones(240, 320, dtype=torch.int16)
    config = AugmentConfig(rotate=3.0)
    image, _, _ = augment(make(picture, depth, 5 * FULL, rotate=0.9), (96, 128), config, CPU)
    expected = resize_image(picture[None], (96, 128)).float() / 255

    def edges(x: torch.Tensor) -> float:
        return float((x[..., 1:] - x[..., :-1])[..., 10:-10, 10:-10].abs().mean())

    assert edges(image) == pytest.approx(edges(expected), rel=0.15)


def test_steps_beyond_int16_and_units_of_a_256th_of_a_metre() -> None:
    steps = torch.tensor([20480, 40000, 65535]).repeat_interleave(16).expand(48, 48)
    batch = make(ramp(48, 48), steps.to(torch.int16), 518.86 / 640 * 48)
    _, depth, mask = augment(replace(batch, depth_unit=1 / 256), (48, 48), AugmentConfig(), CPU)
    assert mask.all()
    torch.testing.assert_close(depth[0, 0].unique(), torch.tensor([80.0, 40000 / 256, 65535 / 256]))


def test_labels_outside_the_networks_range_are_invalid_not_clamped() -> None:
    depth = torch.tensor([400, 1000, 9000, 11000], dtype=torch.int16).repeat_interleave(16).expand(48, 64)
    config = AugmentConfig(zoom=(0.8, 0.8))  # 9 m become 11.25 m
    _, metres, mask = augment(make(ramp(48, 64), depth, FULL), (48, 64), config, CPU, (0.6, 10.0))
    assert set(metres[mask].round(decimals=4).tolist()) == {1.25}
    _, _, mask = augment(make(ramp(48, 64), depth, FULL), (48, 64), config, CPU)
    assert mask.sum() > 1500


def test_blur_takes_edges_and_leaves_the_mean() -> None:
    stripes = (ramp(48, 64) % 4 < 2).to(torch.uint8) * 200
    plain, _, _ = augment(make(stripes, METRE, FULL), (48, 64), AugmentConfig(), CPU)
    batch = make(stripes, METRE, FULL, blur=0.2, blur_sigma=0.8)
    image, _, _ = augment(batch, (48, 64), AugmentConfig(blur=0.3), CPU)
    assert image.std() < 0.7 * plain.std() and image.mean() == pytest.approx(plain.mean().item(), abs=0.01)
    image, _, _ = augment(batch, (48, 64), AugmentConfig(blur=0.1), CPU)
    assert torch.equal(image, plain)


def test_noise_is_as_strong_as_drawn_and_a_function_of_the_draws() -> None:
    grey = torch.full((3, 48, 64), 128, dtype=torch.uint8)
    config = AugmentConfig(noise=0.1)
    one, _, _ = augment(make(grey, METRE, FULL, noise=0.5, noise_seed=0.3), (48, 64), config, CPU)
    same, _, _ = augment(make(grey, METRE, FULL, noise=0.5, noise_seed=0.3), (48, 64), config, CPU)
    other, _, _ = augment(make(grey, METRE, FULL, noise=0.5, noise_seed=0.4), (48, 64), config, CPU)
    assert (one - 128 / 255).std() == pytest.approx(0.05, rel=0.1)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_jpeg_artefacts_are_small_errors_in_the_pictures_that_draw_them() -> None:
    generator = torch.Generator().manual_seed(4)
    picture = torch.randint(0, 256, (3, 48, 64), generator=generator, dtype=torch.uint8)
    batch = make(picture, METRE, FULL, jpeg=0.2, jpeg_quality=0.0)
    plain, _, _ = augment(batch, (48, 64), AugmentConfig(jpeg=0.1), CPU)
    torch.testing.assert_close(plain[0] * 255, picture.float(), atol=1e-3, rtol=0)
    image, _, _ = augment(batch, (48, 64), AugmentConfig(jpeg=0.3), CPU)
    coarse = (image - plain).abs().mean()
    batch.draws[0, Draws._fields.index("jpeg_quality")] = 0.99
    image, _, _ = augment(batch, (48, 64), AugmentConfig(jpeg=0.3), CPU)
    assert 0 < (image - plain).abs().mean() < coarse < 0.3


def test_steps_of_16_bits_survive_the_decoded_form() -> None:
    image, depth = np.zeros((2, 2, 3), np.uint8), np.array([[0, 1], [32768, 65535]], np.uint16)
    decoded = as_tensors(image, depth)[1]
    assert decoded.dtype == torch.int16
    assert (decoded.int() & 0xFFFF).tolist() == [[[0, 1], [32768, 65535]]]
