"""Pictures as people have them: depths, palettes, transparency, damaged tags; and files that would start programs."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

import pipeline
from pipeline.decode.images import BACKGROUND, decode_image
from pipeline.records import DecodeError, Reason

RAMP = np.linspace(0, 255, 64, dtype=np.uint8).reshape(1, 64).repeat(16, 0)
COLOUR = Image.fromarray(np.stack([RAMP, RAMP[:, ::-1], RAMP // 2], -1))


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP"])
def test_the_formats_that_are_read(format) -> None:
    pixels = decode_image(saved(COLOUR, format)).astype(float)
    assert np.abs(pixels - np.asarray(COLOUR)).mean() < 8


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_are_grey(format) -> None:
    image = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert image.mode == "I;16"
    np.testing.assert_array_equal(decode_image(saved(image, format)), RAMP[..., None].repeat(3, -1))


def test_numbers_without_a_white_are_refused() -> None:
    with pytest.raises(DecodeError, match="unsupported_codec: the numbers of 32 bits") as caught:
        decode_image(saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"))
    assert caught.value.reason == Reason.UNSUPPORTED_CODEC


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_what_is_transparent_shows_the_ground(mode) -> None:
    if mode == "P":
        image = Image.new("P", (4, 4), 1)
        image.putpalette([0, 0, 0, 9, 8, 7])
        data = saved(image, "PNG", transparency=1)
    else:
        image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
        data = saved(image if mode == "RGBA" else image.convert("LA"), "PNG" if mode != "PA" else "WEBP")
    assert decode_image(data)[0, 0].tolist() == list(BACKGROUND)
    half = decode_image(saved(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"))[0, 0]
    assert abs(int(half[0]) - 127) <= 1


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_inks_become_colours(format) -> None:
    assert (
        np.abs(decode_image(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), format))[0, 0] - [255, 0, 0]).max() < 3
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright(orientation) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(COLOUR, "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode_image(data), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("kind", [2, 7])
def test_a_tag_of_another_type_costs_no_picture(kind) -> None:
    """XResolution as a text or as bytes, as cameras write it, beside an orientation that still counts."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHI4s", 0x011A, kind, 4, b"72\0\0")
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)
    assert decode_image(saved(COLOUR, "JPEG", exif=exif)).shape == (64, 16, 3)


def test_a_long_comment_costs_no_picture() -> None:
    text = b"comment\0\0" + zlib.compress(bytes(3_000_000))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    data = saved(COLOUR, "PNG")
    np.testing.assert_array_equal(decode_image(data[:33] + chunk + data[33:]), np.asarray(COLOUR))


def test_a_bomb_is_refused() -> None:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = bytearray(saved(COLOUR, "PNG"))
    data[16:29], data[29:33] = header, struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(DecodeError, match="exceeds limit"):
        decode_image(bytes(data))


@pytest.mark.parametrize("format", ["AVIF", "WEBP", "PNG", "JPEG", "TIFF", "GIF", "BMP"])
def test_damage_is_a_row_with_the_same_words_on_every_run(format) -> None:
    rng, whole, refused = np.random.default_rng(0), saved(COLOUR, format), 0
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(8, len(data), 3):
            data[place] ^= 1 << int(rng.integers(8))
        details = set()
        for _ in range(2):
            try:
                decode_image(bytes(data))
            except DecodeError as error:
                details.add(error.detail)
        assert len(details) <= 1
        assert not any("0x" in detail for detail in details)
        refused += len(details)
    assert refused or format in ("GIF", "BMP", "JPEG")


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_half_a_picture_is_truncated(format) -> None:
    whole = saved(COLOUR.resize((640, 160)), format)
    with pytest.raises(DecodeError) as caught:
        decode_image(whole[: len(whole) // 2])
    assert caught.value.reason == Reason.TRUNCATED


def test_no_picture_starts_a_program(tmp_path: Path, monkeypatch) -> None:
    program, witness = tmp_path / "gs", tmp_path / "started"
    program.write_text(f"#!/bin/sh\ntouch {witness}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(program))
    data = saved(COLOUR, "EPS")
    with pytest.raises(Exception, match=r"."), Image.open(io.BytesIO(data)) as image:
        image.load()
    assert witness.exists()  # so Pillow alone does
    witness.unlink()
    with pytest.raises(DecodeError, match="unsupported_codec: the file is a PostScript document"):
        decode_image(data)
    assert not witness.exists()


def test_pictures_are_opened_in_one_place() -> None:
    root = Path(pipeline.__file__).parents[1]
    found = {
        str(path.relative_to(root))
        for folder in ("pipeline", "jobs", "snps3", "snps3_model", "cluster")
        for path in (root / folder).rglob("*.py")
        if "Image.open(" in path.read_text()
    }
    assert found == {"pipeline/decode/images.py"}
