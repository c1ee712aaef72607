import io
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from lotlip import images
from lotlip.errors import ConfigError, DataError
from lotlip.images import (
    AugmentConfig,
    centre_crop,
    decode,
    media_type,
    normalise,
    random_crop,
    stored,
)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixel(image: Image.Image, x: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return tuple(np.asarray(image)[0, x].tolist())


def row(mode: str, *colours) -> Image.Image:
    image = Image.new(mode, (len(colours), 1))
    image.putdata(colours)
    return image


def test_rgb_pixels_come_out_as_they_are():
    image = noise(7, 5)
    assert np.array_equal(np.asarray(decode(encoded(image))), np.asarray(image))


def test_grey_becomes_rgb():
    decoded = decode(encoded(row("L", 10, 200)))
    assert [pixel(decoded, x) for x in range(2)] == [(10, 10, 10), (200, 200, 200)]
    decoded = decode(encoded(Image.new("1", (2, 1), 1)))
    assert pixel(decoded) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    values = np.array([[0, 256, 25_700, 65_535]], dtype=np.uint16)
    decoded = decode(encoded(Image.fromarray(values)))
    assert [pixel(decoded, x)[0] for x in range(4)] == [0, 1, 100, 255]


def test_transparency_is_put_on_white():
    red = row("RGBA", (255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128))
    decoded = decode(encoded(red))
    assert pixel(decoded, 0) == (255, 0, 0)
    assert pixel(decoded, 1) == (255, 255, 255)
    assert pixel(decoded, 2) == (127, 127, 127)
    decoded = decode(encoded(row("LA", (0, 255), (0, 0))))
    assert [pixel(decoded, x) for x in range(2)] == [(0, 0, 0), (255, 255, 255)]


def test_a_transparent_palette_colour_is_put_on_white():
    image = row("P", 0, 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    decoded = decode(encoded(image, transparency=0))
    assert [pixel(decoded, x) for x in range(2)] == [(255, 255, 255), (0, 0, 255)]
    decoded = decode(encoded(image, transparency=b"\xff\x00"))  # an opacity for each colour
    assert [pixel(decoded, x) for x in range(2)] == [(255, 0, 0), (255, 255, 255)]
    decoded = decode(encoded(image))
    assert [pixel(decoded, x) for x in range(2)] == [(255, 0, 0), (0, 0, 255)]


def test_a_transparent_rgb_colour_is_put_on_white():
    decoded = decode(encoded(row("RGB", (9, 9, 9), (8, 8, 8)), transparency=(9, 9, 9)))
    assert [pixel(decoded, x) for x in range(2)] == [(255, 255, 255), (8, 8, 8)]


def test_cmyk_jpegs_become_rgb():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    red, green, blue = pixel(decode(encoded(cyan, "JPEG", quality=100)))
    assert red < 10
    assert min(green, blue) > 245


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_image_is_an_error(format):
    whole = encoded(noise(64, 64), format)
    assert decode(whole).size == (64, 64)
    for size in (len(whole) // 2, 20):
        with pytest.raises(DataError, match="image does not decode"):
            decode(whole[:size])


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0 no jpeg", b"\x89PNG"])
def test_bytes_that_are_no_image_are_an_error(content):
    with pytest.raises(DataError, match="image does not decode"):
        decode(content)


def test_an_image_of_too_many_pixels_is_an_error():
    content = encoded(noise(20, 10))
    assert decode(content, max_pixels=200).size == (20, 10)
    with pytest.raises(DataError, match="image of 20 x 10 px is too large"):
        decode(content, max_pixels=199)


def test_a_decompression_bomb_is_an_error(monkeypatch):
    content = encoded(noise(20, 10))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(DataError, match="image does not decode"):
        decode(content)


def test_the_centre_crop_of_a_square_of_the_right_size_is_the_image():
    image = noise(32, 32)
    assert np.array_equal(centre_crop(image, 32), np.asarray(image))


def test_the_centre_crop_takes_the_middle_of_the_long_side():
    for width, height in ((48, 32), (32, 48)):
        image = noise(width, height)
        left, top = (width - 32) // 2, (height - 32) // 2
        expected = np.asarray(image)[top : top + 32, left : left + 32]
        assert np.array_equal(centre_crop(image, 32), expected)


def test_the_centre_crop_is_bicubic_and_square():
    image = noise(50, 40)
    middle = image.crop((5, 0, 45, 40)).resize((16, 16), Image.Resampling.BICUBIC)
    difference = centre_crop(image, 16).astype(int) - np.asarray(middle, dtype=int)
    assert abs(difference[2:-2, 2:-2]).max() <= 1
    for width, height in ((1, 1), (1, 500), (333, 7)):
        crop = centre_crop(noise(width, height), 24)
        assert crop.shape == (24, 24, 3)
        assert crop.dtype == np.uint8


def test_random_crops_are_a_function_of_the_generator():
    image, config = noise(60, 40), AugmentConfig(min_crop_area=0.3, flip=True)
    first = [random_crop(encoded(image), 16, config, np.random.default_rng(s)) for s in range(8)]
    again = [random_crop(encoded(image), 16, config, np.random.default_rng(s)) for s in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({crop.tobytes() for crop in first}) == 8
    assert all(crop.shape == (16, 16, 3) for crop in first)


def test_a_whole_crop_without_flip_is_the_centre_crop():
    image, config = noise(60, 40), AugmentConfig(min_crop_area=1.0)
    for seed in range(4):
        crop = random_crop(encoded(image), 16, config, np.random.default_rng(seed))
        assert np.array_equal(crop, centre_crop(image, 16))


def test_flip_mirrors_about_half_of_the_images():
    image, config = noise(32, 32), AugmentConfig(min_crop_area=1.0, flip=True)
    plain = centre_crop(image, 32)
    mirrored = 0
    for seed in range(100):
        crop = random_crop(encoded(image), 32, config, np.random.default_rng(seed))
        mirrored += np.array_equal(crop, plain[:, ::-1])
        assert np.array_equal(crop, plain) or np.array_equal(crop, plain[:, ::-1])
    assert 30 < mirrored < 70


def test_a_crop_keeps_the_area_it_was_asked_for():
    """Where the image is a ramp, the range of values left tells the width of the crop."""
    ramp = np.broadcast_to(np.linspace(0, 255, 256)[None, :, None], (256, 256, 3))
    across = Image.fromarray(ramp.astype(np.uint8))
    down = Image.fromarray(np.ascontiguousarray(ramp.transpose(1, 0, 2)).astype(np.uint8))
    config = AugmentConfig(min_crop_area=0.25)
    areas = []
    for seed in range(60):
        wide = random_crop(encoded(across), 64, config, np.random.default_rng(seed))
        high = random_crop(encoded(down), 64, config, np.random.default_rng(seed))
        areas.append(np.ptp(wide.astype(float)) * np.ptp(high.astype(float)) / 255**2)
    assert min(areas) > 0.22
    assert min(areas) < 0.4
    assert max(areas) > 0.8


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (17, 401)])
def test_every_image_can_be_cropped(size):
    config = AugmentConfig(min_crop_area=0.05)
    for seed in range(50):
        crop = random_crop(encoded(noise(*size)), 8, config, np.random.default_rng(seed))
        assert crop.shape == (8, 8, 3)


def test_an_image_whose_size_only_shows_when_it_is_decoded_can_be_cropped():
    buffer = io.BytesIO()
    noise(1024, 1024).save(buffer, "ICNS")
    small, whole = encoded(noise(16, 16)), buffer.getvalue()
    entry = b"ic10" + (8 + len(small)).to_bytes(4, "big") + small
    lying = whole[:4] + (8 + len(entry)).to_bytes(4, "big") + entry
    assert decode(lying).size == (16, 16)
    crop = random_crop(lying, 8, AugmentConfig(), np.random.default_rng(0))
    assert crop.shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("target_px", "decoded"), [(200, (400, 301)), (96, (200, 151)), (48, (100, 76)), (24, (50, 38))]
)
def test_of_a_large_jpeg_not_much_more_is_decoded_than_its_crop_has_use_for(
    monkeypatch, target_px, decoded
):
    wave = np.add.outer(np.sin(np.arange(301) / 40), np.cos(np.arange(400) / 30)) * 60 + 128
    content = encoded(Image.fromarray(wave.astype(np.uint8)), "JPEG", quality=95)
    whole = encoded(decode(content))  # as PNG, which is always decoded whole
    sizes, config = set(), AugmentConfig(min_crop_area=0.9)
    resized = images._resized

    def watched(image, *arguments):
        sizes.add(image.size)
        return resized(image, *arguments)

    for seed in range(20):
        expected = random_crop(whole, target_px, config, np.random.default_rng(seed))
        with monkeypatch.context() as patched:
            patched.setattr(images, "_resized", watched)
            crop = random_crop(content, target_px, config, np.random.default_rng(seed))
        assert np.abs(crop.astype(int) - expected).mean() < 1.5
        assert abs(int(crop.astype(int).sum()) / expected.sum() - 1) < 0.01
    assert sizes == {decoded}


@pytest.mark.parametrize("area", [0.0, -0.5, 1.1, float("nan")])
def test_an_impossible_crop_area_is_an_error(area):
    with pytest.raises(ConfigError, match=r"augment\.min_crop_area="):
        AugmentConfig(min_crop_area=area)


@pytest.mark.parametrize("name, kind", [("JPEG", "jpeg"), ("MPO", "jpeg"), ("PNG", "png")])
def test_the_media_type_is_one_that_servers_know(name: str, kind: str):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, name)
    assert media_type(buffer.getvalue()) == f"image/{kind}"


def test_normalised_pixels_lie_between_minus_one_and_one():
    pixels = torch.zeros(2, 3, 5, 3, dtype=torch.uint8)
    pixels[0, 1, 2] = torch.tensor([255, 51, 0])
    normalised = normalise(pixels)
    assert normalised.shape == (2, 3, 3, 5)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised[0, :, 1, 2], torch.tensor([1.0, -0.6, -1.0]))
    assert float(normalised[1].max()) == -1.0


@pytest.mark.parametrize("format", ["GIF", "TIFF", "BMP", "ICO"])
def test_only_the_formats_that_are_asked_for_are_decoded(format):
    image = encoded(noise(32, 32), format)
    assert decode(image).size == (32, 32)
    with pytest.raises(DataError, match="of no known format"):
        decode(image, formats=("JPEG", "PNG"))


def test_a_damaged_image_of_any_format_is_a_data_error():
    rng = np.random.default_rng(0)
    for format in ("AVIF", "BMP", "DDS", "GIF", "ICO", "JPEG", "PCX", "PNG", "TGA", "TIFF", "WEBP"):
        whole = bytearray(encoded(noise(24, 24), format))
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 6):
                damaged[place] = rng.integers(0, 256)
            with suppress(DataError):
                decode(bytes(damaged))


@pytest.mark.parametrize(
    "kind, suffix", [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "jpg")]
)
def test_images_are_stored_as_they_are_where_that_can_be(kind: str, suffix: str):
    original = encoded(noise(40, 60), kind)
    content, found = stored(original)
    assert found == suffix
    assert (content == original) == (kind != "GIF")
    assert stored(original, longest_side_px=60) == (content, found)
    smaller, suffix = stored(original, longest_side_px=30)
    assert (decode(smaller).size, suffix) == ((20, 30), "jpg")
    with pytest.raises(DataError, match="does not decode"):
        stored(original[: len(original) // 2])
