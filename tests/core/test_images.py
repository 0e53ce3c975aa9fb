"""Images in texts: nothing lost, nothing unpacked that is too large, nothing heavy imported."""

import base64
import io
import subprocess
import sys
import zlib

import pytest
from PIL import Image

from parl.core.images import MAX_PIXELS, find, from_uri, is_image, split, to_uri


def picture(
    width: int = 5, height: int = 3, colour: tuple[int, int, int] = (10, 200, 30)
) -> Image.Image:
    image = Image.new("RGB", (width, height), colour)
    image.putpixel((0, 0), (255, 0, 1))
    return image


def uri_of(raw: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def test_an_image_comes_back_pixel_by_pixel() -> None:
    uri = to_uri(picture())
    assert is_image(uri)
    again = from_uri(uri)
    assert again.mode == "RGB"
    assert again.tobytes() == picture().tobytes()
    assert to_uri(again) == uri


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = from_uri(to_uri(picture().convert(mode)))
    assert (image.mode, image.size) == ("RGB", (5, 3))


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP"])
def test_other_formats_are_read(kind: str) -> None:
    buffer = io.BytesIO()
    picture().save(buffer, kind)
    assert from_uri(uri_of(buffer.getvalue(), kind.lower())).size == (5, 3)


def test_splitting_loses_nothing() -> None:
    a, b = to_uri(picture()), to_uri(picture(2, 2))
    for text in (
        "",
        "plain",
        a,
        f"{a}{b}",
        f"see {a} and {b}\n",
        f"\n{a} {a}",
        "data:image/png;base64, no",
        f"{a}{a}",
    ):
        assert "".join(split(text)) == text
        assert all(split(text))
        assert tuple(p for p in split(text) if is_image(p)) == find(text)
    assert split(f"see {a} and {b}!") == ["see ", a, " and ", b, "!"]
    assert find(f"{b} {a}{a}") == (b, a, a)


def png_of_size(width: int, height: int) -> bytes:
    """A file of a few bytes that claims to be large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        )

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    data = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.org/a.png",
        "see " + to_uri(picture()),
        uri_of(b"no image"),
        uri_of(b""),
        "data:image/png;base64,A",
        to_uri(picture(40, 40))[:-40],
        uri_of(base64.b64decode(to_uri(picture(40, 40)).partition(",")[2])[:-30]),
        uri_of(b"<svg/>"),
        uri_of(b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    ],
)
def test_what_is_no_image_is_a_value_error(uri: str) -> None:
    with pytest.raises(ValueError, match="image"):
        from_uri(uri)


@pytest.mark.parametrize("size", [(MAX_PIXELS, 2), (60_000, 60_000), (2_000_000_000, 1)])
def test_a_large_image_is_refused_unread(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="image"):
        from_uri(uri_of(png_of_size(*size)))


def test_the_largest_allowed_is_read() -> None:
    assert (
        from_uri(to_uri(Image.new("RGB", (MAX_PIXELS // 1000, 1000)))).width == MAX_PIXELS // 1000
    )


def test_importing_pulls_in_no_pil() -> None:
    code = "import sys, parl.core.images; print(*(n for n in ('PIL', 'numpy') if n in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []
