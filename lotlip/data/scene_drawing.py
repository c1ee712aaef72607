"""Pictures of scenes, 96 x 96 px: flat drawings with dark outlines, as in a picture book."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from lotlip.data.scene_shapes import (
    FIXED,
    GROUNDS,
    OBJECTS,
    OUTLINE,
    RAINBOW,
    SKIES,
    TONES,
    Colour,
)

if TYPE_CHECKING:  # scenes.py imports this file to make samples
    from lotlip.data.scenes import Scene

SIZE_PX = 96
SCALE = 2
"""Scenes are drawn larger and averaged down, which smooths their edges."""
HORIZON_PX = 56
SKY_BANDS = 14

BRIGHTNESS = (0.88, 1.10)
NOISE_SD = 5.0
"""Of the Gaussian noise on each channel, in units of 1/255."""
JPEG_QUALITY = 88

SALIENT_X_PX = {"left": 24, "middle": 48, "right": 72}
SALIENT_Y_PX = 48
SALIENT_RADIUS_PX = (18.0, 22.0)
GROUP_X_PX = {"left": 16, "middle": 48, "right": 80}
GROUP_Y_PX = {"top": 13, "bottom": 84}
GROUP_RADIUS_PX = (7.0, 8.0)
JITTER_PX = 1.5
RAIN_DROPS = 45


def draw_jpeg(scene: Scene, rng: np.random.Generator) -> bytes:
    """The scene as an encoded picture; `rng` draws sizes, small shifts, brightness and noise."""
    image = Image.new("RGB", (SIZE_PX * SCALE, SIZE_PX * SCALE))
    draw = ImageDraw.Draw(image)
    _draw_sky(draw, scene)
    _draw_ground(draw, scene)
    for group in scene.groups:
        row, column = group.cell.split()
        radius = rng.uniform(*GROUP_RADIUS_PX)
        y = GROUP_Y_PX[row] + rng.uniform(-JITTER_PX, JITTER_PX)
        middle = GROUP_X_PX[column] + rng.uniform(-JITTER_PX, JITTER_PX) / 2
        offsets = (0,) if group.count == 1 else (-8, 8)
        for offset in offsets:
            _draw_object(draw, group.kind, group.colour, middle + offset, y, radius)
    x = SALIENT_X_PX[scene.position] + rng.uniform(-JITTER_PX, JITTER_PX)
    y = SALIENT_Y_PX + rng.uniform(-JITTER_PX, JITTER_PX)
    radius = rng.uniform(*SALIENT_RADIUS_PX)
    _draw_object(draw, scene.kind, scene.colour, x, y, radius)
    if scene.weather == "rainy":
        _draw_rain(draw, rng)
    return _encode(image, rng)


def _draw_sky(draw: ImageDraw.ImageDraw, scene: Scene) -> None:
    top, bottom, _ = SKIES[scene.weather]
    height = HORIZON_PX + 4  # some grounds begin a little lower than the horizon
    for band in range(SKY_BANDS):
        share = band / (SKY_BANDS - 1)
        colour = _rgb(*(a + (b - a) * share for a, b in zip(top, bottom, strict=True)))
        _stroke(draw, "box", colour, (0, band * height / SKY_BANDS, SIZE_PX, height))
    side = 22 if scene.position == "right" else 74  # where the salient object leaves room
    if scene.weather == "sunny":
        _stroke(draw, "disc", (255, 246, 180), (side - 11, 20, side + 11, 42))
        _stroke(draw, "disc", (255, 222, 60), (side - 8, 23, side + 8, 39))
    elif scene.weather in ("cloudy", "rainy"):
        colour = (236, 238, 242) if scene.weather == "cloudy" else (74, 82, 98)
        for x, y in ((12, 6), (38, 25), (66, 4), (86, 26), (4, 30)):
            _stroke(draw, "disc", colour, (x - 13, y - 2, x + 13, y + 6))
            _stroke(draw, "disc", colour, (x - 7, y - 7, x + 6, y + 4))
    elif scene.weather == "night":
        for star in range(24):  # scattered evenly, without a draw
            x, y = star * 37 % 95, star * 23 % 53
            _stroke(draw, "disc", (250, 250, 225), (x, y, x + 1.5, y + 1.5))
        _stroke(draw, "disc", (250, 244, 205), (side - 8, 23, side + 8, 39))
        _stroke(draw, "disc", (222, 214, 176), (side - 4, 26, side + 1, 31))
        _stroke(draw, "disc", (222, 214, 176), (side + 1, 32, side + 4, 35))
    elif scene.weather == "sunset":
        _stroke(draw, "disc", (255, 205, 95), (side - 14, 36, side + 14, 64))
        _stroke(draw, "disc", (255, 236, 150), (side - 10, 40, side + 10, 60))
    else:
        for band, colour in enumerate(RAINBOW):
            edge = 2 + 3 * band
            points = [SCALE * number for number in (edge, 6 + edge, SIZE_PX - edge, 134 - edge)]
            draw.arc(points, 180, 360, colour, 3 * SCALE + 1)


def _draw_ground(draw: ImageDraw.ImageDraw, scene: Scene) -> None:
    colour, strokes = GROUNDS[scene.background]
    light = SKIES[scene.weather][2]
    _stroke(draw, "box", _lit(colour, light), (0, HORIZON_PX, SIZE_PX, SIZE_PX))
    for shape, paint, numbers in strokes:
        _stroke(draw, shape, _lit(paint, light), numbers)


def _draw_rain(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    for x, y in rng.uniform(0, SIZE_PX * SCALE, (RAIN_DROPS, 2)):
        draw.line((x, y, x - 4, y + 14), (190, 208, 232))


def _draw_object(
    draw: ImageDraw.ImageDraw, kind: str, colour: str, x: float, y: float, radius: float
) -> None:
    """An object around (x, y), all in pixels of the finished picture."""
    paints = FIXED | dict(zip(("body", "shade", "light"), TONES[colour], strict=True))
    middle = (x, y)
    for shape, paint, numbers in OBJECTS[kind]:
        corners = numbers[:4] if shape == "arc" else numbers
        points = [middle[place & 1] + radius * number for place, number in enumerate(corners)]
        _stroke(draw, shape, paints[paint], points, numbers[4:], radius)


def _stroke(
    draw: ImageDraw.ImageDraw,
    shape: str,
    colour: Colour,
    numbers: Sequence[float],
    degrees: Sequence[float] = (),
    radius: float = SIZE_PX / 2,
) -> None:
    """One shape at pixels of the finished picture, with lines to suit the object's radius."""
    points = [SCALE * number for number in numbers]
    pen = 1 if radius < 12 else 3
    width = max(3, round(radius * 0.24))
    match shape:
        case "box":
            draw.rectangle(points, colour)
        case "fill":
            draw.polygon(points, colour)
        case "disc":
            draw.ellipse(points, colour)
        case "line":
            draw.line(points, colour, width)
        case "polygon":
            draw.polygon(points, colour)
            draw.line(points + points[:4], OUTLINE, pen)
        case "ellipse":
            draw.ellipse(points, colour, OUTLINE, pen)
        case _:
            left, top, right, bottom = points
            outer = (left - pen, top - pen, right + pen, bottom + pen)
            start, end = degrees
            draw.arc(outer, start, end, OUTLINE, width + 2 * pen)
            draw.arc(points, start, end, colour, width)


def _lit(colour: Colour, light: tuple[float, float, float]) -> Colour:
    return _rgb(*(channel * share for channel, share in zip(colour, light, strict=True)))


def _rgb(red: float, green: float, blue: float) -> Colour:
    return round(red), round(green), round(blue)


def _encode(image: Image.Image, rng: np.random.Generator) -> bytes:
    pixels = np.asarray(image.reduce(SCALE), dtype=np.float32)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    noise *= NOISE_SD
    noise += pixels * np.float32(rng.uniform(*BRIGHTNESS))
    np.clip(noise, 0, 255, out=noise)
    buffer = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
