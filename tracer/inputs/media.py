"""Images and sounds, read as data.

Images need Pillow. Sounds in WAV files of whole numbers need nothing else; other formats need soundfile.
"""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...ir.errors import RequestError, class_and_first_line
from ...ir.extras import install

IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may take a file for. Others, such as PostScript, would start programs."""

IMAGES = frozenset({".bmp", ".gif", ".jpg", ".jpeg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
SOUNDS = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif"})

WHOLE_NUMBERS = {1: "u1", 2: "<i2", 4: "<i4"}
"""Bytes of a whole number in a WAV file -> its type; those of one byte have no sign."""


@dataclass(frozen=True)
class Medium:
    """An image or a sound as it is stored.

    Attributes:
        name: for messages.
        path: of its file; None when ``data`` holds it.
        data: the content of a file.
    """

    name: str
    path: Path | None = None
    data: bytes | None = None

    def content(self) -> bytes:
        """The bytes of the file."""
        if self.data is not None:
            return self.data
        assert self.path is not None, "one of the two is there"
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise RequestError(f"'{self.name}' cannot be read: {error.strerror}", "give a readable file") from error


def read_image(medium: Medium, channels: int = 3) -> Any:
    """An image of Pillow, in colour, or in grey for one channel.

    Raises:
        RequestError: Pillow is not installed, or the file is none of an image.
    """
    try:
        from PIL import Image
    except ImportError:
        raise RequestError("images are read with Pillow, which is not installed", install("PIL")) from None
    try:
        with Image.open(io.BytesIO(medium.content()), formats=IMAGE_FORMATS) as image:
            return image.convert("L" if channels == 1 else "RGB")
    except RequestError:
        raise
    except Exception as error:  # Pillow's errors on damaged files have no common class
        raise RequestError(
            f"'{medium.name}' is no image that can be read: {class_and_first_line(error)}",
            f"give a file of one of the formats {', '.join(IMAGE_FORMATS)}",
        ) from error


def read_sound(medium: Medium, rate: int) -> npt.NDArray[np.float32]:
    """A sound of one channel, the mean of all, float32 ``[samples]`` between -1 and 1.

    Args:
        medium: the sound.
        rate: samples in a second that are wanted; the sound is resampled if it has another rate.

    Raises:
        RequestError: it cannot be read.
    """
    content = medium.content()
    found = _whole_numbers(content) or _with_soundfile(content, medium.name)
    values, own = found
    mono = torch.from_numpy(values).mean(1) if values.ndim > 1 else torch.from_numpy(values)
    if not len(mono):
        raise RequestError(f"'{medium.name}' holds no sound", "remove it, or give another file")
    return (mono if own == rate else resampled(mono, own, rate)).to(torch.float32).numpy()


def resampled(sound: torch.Tensor, own: int, rate: int) -> torch.Tensor:
    """A sound at another rate, band-limited: its spectrum is cut off, or continued with zeros.

    Args:
        sound: ``[samples]``.
        own, rate: samples in a second, before and after.
    """
    count = max(1, round(len(sound) * rate / own))
    spectrum = torch.fft.rfft(sound.double())
    return torch.fft.irfft(spectrum[: count // 2 + 1], n=count) * (count / len(sound))


def _whole_numbers(content: bytes) -> tuple[npt.NDArray[np.float64], int] | None:
    """Samples ``[frames, channels]`` and rate of a WAV file of whole numbers; None for another file."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError, ValueError):
        return None
    if width == 3:
        bytes_of = np.frombuffer(data[: len(data) // 3 * 3], dtype=np.uint8).reshape(-1, 3)
        whole = np.zeros((len(bytes_of), 4), dtype=np.uint8)
        whole[:, 1:] = bytes_of  # the highest three bytes of 32 bits
        numbers, scale = whole.view("<i4")[:, 0].astype(np.float64), 2.0**31
    elif width in WHOLE_NUMBERS:
        numbers = np.frombuffer(data[: len(data) // width * width], dtype=WHOLE_NUMBERS[width]).astype(np.float64)
        numbers, scale = numbers - 128 if width == 1 else numbers, 2.0 ** (8 * width - 1)
    else:
        return None
    return numbers[: len(numbers) // channels * channels].reshape(-1, channels) / scale, rate


def _with_soundfile(content: bytes, name: str) -> tuple[npt.NDArray[np.float64], int]:
    try:
        import soundfile
    except (ImportError, OSError):
        raise RequestError(
            f"'{name}' is no WAV file of whole numbers; other sounds are read with soundfile, which is not installed",
            f"{install('soundfile')}, or convert the files",
        ) from None
    try:
        values, rate = soundfile.read(io.BytesIO(content), dtype="float64", always_2d=True)
    except Exception as error:  # its errors have no common class
        raise RequestError(
            f"'{name}' is no sound that can be read: {class_and_first_line(error)}", "give WAV, FLAC, OGG or MP3 files"
        ) from error
    return values, int(rate)
