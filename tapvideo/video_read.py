"""Videos of any make, checked: every frame decoded, and as many, as large and as fast as they should be."""

import logging
import subprocess
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import imageio_ffmpeg
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tapvideo.video_io import SWSCALE_FLAGS

Decoder = Literal["ffmpeg", "decord"]

_LOSSLESS = ("rawvideo", "ffv1", "huffyuv", "ffvhuff", "utvideo", "magicyuv", "png", "qtrle")
_RGB_ORDERS = ("rgb", "bgr", "gbr", "0rgb", "0bgr", "argb", "abgr")
_RATE_TOLERANCE = 0.01  # frames a second: ffmpeg prints two decimals


class VideoError(ValueError):
    """A video that is not what it should be: which file, what was expected, what was found."""

    def __init__(self, path: Path, expected: str, found: str) -> None:
        super().__init__(f"{path}: expected {expected}, found {found}")
        self.path, self.expected, self.found = path, expected, found


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a video's header says of it."""

    codec: str
    pixel_format: str
    width: int
    height: int
    fps: float
    seconds: float
    """Of the file: sound may be longer than the picture."""
    has_sound: bool

    @property
    def is_lossless(self) -> bool:
        """Whether codec and pixels keep 8-bit RGB frames as they were; a codec that only can is taken for lossy."""
        return self.codec in _LOSSLESS and self.pixel_format.startswith(_RGB_ORDERS)


def probe_video(path: Path) -> VideoFacts:
    """Read the header of a video.

    Raises:
        VideoError: if there is no file, or no video with a frame in it.
    """
    if not path.is_file():
        raise VideoError(path, "a video", "no such file")
    if not path.stat().st_size:
        raise VideoError(path, "a video", "an empty file")
    try:
        with closing(imageio_ffmpeg.read_frames(str(path.absolute()))) as reader:
            meta: dict[str, Any] = next(reader)
        width, height = meta["size"]
        return VideoFacts(
            codec=meta["codec"].rstrip(","),
            pixel_format=meta["pix_fmt"].partition("(")[0],
            width=width,
            height=height,
            fps=float(meta["fps"]),
            seconds=float(meta["duration"]),
            has_sound="audio_codec" in meta,
        )
    except (RuntimeError, LookupError, ValueError, OSError, StopIteration) as error:  # as imageio-ffmpeg does
        logging.getLogger(__name__).debug("%s: %s", path, error)
        raise VideoError(path, "a video", "a file in which ffmpeg finds no video of one frame or more") from error


def read_video(
    path: Path,
    *,
    num_frames: int | None = None,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    decoder: Decoder = "ffmpeg",
) -> Float[Tensor, "frames height width 3"]:
    """Decode every frame of a video to values in [0, 1], in 8 bits a channel, and check that it is whole.

    Whatever the decoder complains of is an error: it would patch or drop frames, and the numbers would look fine. Most
    codecs have no checksums (ffv1 has), so that a few bytes may be wrong without a complaint.

    Args:
        path: The video, of any container and codec that ffmpeg knows.
        num_frames: Frames that there must be, exactly; None for any number.
        size: Height and width that it must have; None for any.
        fps: Frames per second that it must have; None for any.
        decoder: `ffmpeg`, or `decord` (pip install 'tapvideo[video]'). Their numbers are not to be mixed: decord
            converts colours more coarsely (41.1 dB to the frames that were written, where ffmpeg has 47.8 dB).

    Raises:
        VideoError: if the video is damaged, or not what was asked for.
        ModuleNotFoundError: if decord is asked for and not installed.
    """
    facts = probe_video(path)
    found = f"{facts.width}x{facts.height}"
    if size is not None and (facts.height, facts.width) != size:
        raise VideoError(path, f"frames of {size[1]}x{size[0]} pixels", found)
    if fps is not None and abs(facts.fps - fps) > _RATE_TOLERANCE:
        raise VideoError(path, f"{fps:g} frames per second", f"{facts.fps:g}")
    frames = _decode_ffmpeg(path) if decoder == "ffmpeg" else _decode_decord(path)
    if frames.shape[1:3] != (facts.height, facts.width):
        raise VideoError(path, f"frames of {found} pixels", f"{frames.shape[2]}x{frames.shape[1]}")
    if num_frames is not None and len(frames) != num_frames:
        raise VideoError(path, f"{num_frames} frames", str(len(frames)))
    _check_duration(path, facts, len(frames))
    return torch.from_numpy(frames).float() / 255


def _check_duration(path: Path, facts: VideoFacts, num_frames: int) -> None:
    """As many frames as the header's seconds make, to the rounding of what ffmpeg prints."""
    promised = facts.fps * facts.seconds
    if not facts.has_sound and promised - num_frames > 1.5 + 0.001 * promised:
        expected = f"about {promised:.0f} frames, by its header's {facts.seconds:g} s at {facts.fps:g}/s"
        raise VideoError(path, expected, str(num_frames))


def _decode_ffmpeg(path: Path) -> UInt8[np.ndarray, "frames height width 3"]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error"]
    command += ["-i", str(path.absolute()), "-map", "0:v:0", "-fps_mode", "passthrough"]
    # As PPM, every frame brings its own size.
    command += ["-vf", f"scale={SWSCALE_FLAGS}", "-pix_fmt", "rgb24", "-f", "image2pipe", "-c:v", "ppm", "-"]
    done = subprocess.run(command, capture_output=True, check=False)
    complaint = " ".join(done.stderr.decode(errors="replace").split())
    if done.returncode or complaint:  # some damage, such as a cut Matroska file, is told without an error code
        raise VideoError(path, "a whole video", f"damage that ffmpeg tells of as: {complaint[:200]}")
    return _parse_ppm(path, done.stdout)


def _parse_ppm(path: Path, raw: bytes) -> UInt8[np.ndarray, "frames height width 3"]:
    if not raw:
        raise VideoError(path, "one frame or more", "none")
    magic, size, depth, _ = raw[:64].split(b"\n", 3)
    width, height = map(int, size.split())
    header = b"\n".join([magic, size, depth, b""])
    length = len(header) + 3 * width * height
    if len(raw) % length or any(not raw.startswith(header, start) for start in range(0, len(raw), length)):
        raise VideoError(path, "frames of one size", f"some of {width}x{height} and others")
    frames = np.frombuffer(raw, np.uint8).reshape(-1, length)[:, len(header) :]
    return frames.reshape(-1, height, width, 3).copy()  # of its own, writable memory


def _decode_decord(path: Path) -> UInt8[np.ndarray, "frames height width 3"]:
    try:
        import decord
    except ImportError as error:
        raise ModuleNotFoundError("decord is not installed: pip install 'tapvideo[video]'") from error
    try:
        reader = decord.VideoReader(str(path.absolute()), num_threads=1)
        return reader.get_batch(range(len(reader))).asnumpy()
    except (RuntimeError, decord.DECORDError) as error:
        reason = " ".join(str(error).partition("\n")[0].split())
        raise VideoError(path, "a whole video", f"what decord cannot read: {reason[:200]}") from error
