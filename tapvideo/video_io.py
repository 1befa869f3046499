"""Videos and texts to disk and back; a file either is whole or is not there."""

import os
import secrets
import wave
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import imageio_ffmpeg
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

# ffmpeg's default colour conversion is fast and coarse: these flags gave 4 to 6 dB more on drawn clips at crf 16.
SWSCALE_FLAGS = "flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"
# Said in the file, so that players need not guess the colours' meaning from the picture's size.
_BT709 = "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video file says of itself."""

    frames: int
    fps: float
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Sound:
    """What goes with a clip."""

    waves: Float[Tensor, "channels samples"]
    """Values in [-1, 1]; others are clipped."""
    rate: int
    """Samples a second."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to, moved onto `path` at the end and removed on any error or Ctrl-C."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".tmp-{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temp
        sync(temp)
        os.replace(temp, path)
        sync(path.parent)
    finally:
        temp.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text that is whole or not there, also after a crash."""
    with atomic_path(path) as temp:
        temp.write_text(text, encoding="utf-8", newline="\n")


def write_mp4(
    path: Path, frames: Float[Tensor, "frames height width 3"], *, fps: int, crf: int, sound: Sound | None = None
) -> None:
    """Encode frames with values in [0, 1] (others are clipped) as H.264, BT.709, yuv420p, ready to stream.

    The size stays as it is: yuv420p halves the colour planes, so an odd side is an error; nothing is scaled in silence.

    Args:
        path: The file; it appears, or is replaced, only once it is complete and holds every frame.
        frames: The clip, on any device.
        fps: Frames per second.
        crf: Constant rate factor of x264, 0 (best) to 51.
        sound: In AAC, from the first frame on; None is a silent clip.

    Raises:
        ValueError: if frames cannot be encoded as they are.
        OSError: if the encoder did not write every frame, e.g. on a full disk.
    """
    _check_encodable(frames, fps, crf)
    with atomic_path(path) as temp, TemporaryDirectory() as folder:
        _encode(temp, frames, fps, crf, None if sound is None else _write_wave(Path(folder) / "sound.wav", sound))
        written = _count_frames(temp)
        if written != len(frames):
            raise OSError(f"{path}: the encoder wrote {written} of {len(frames)} frames")


def write_png(path: Path, picture: Float[Tensor, "height width 3"]) -> None:
    """Write a picture with values in [0, 1] (others are clipped), without loss beyond its 8 bits.

    Raises:
        ValueError: if it has NaN or infinite values.
        OSError: if it cannot be written.
    """
    if not torch.isfinite(picture).all():
        raise ValueError("the picture has NaN or infinite values; allowed: numbers, best in [0, 1]")
    with atomic_path(path) as temp:
        Image.fromarray(_eight_bit(picture)).save(temp, format="PNG")


def read_mp4(path: Path) -> Float[Tensor, "frames height width 3"]:
    """Decode every frame of a video to values in [0, 1].

    Raises:
        OSError: if the file cannot be read as a video.
    """
    with _reader(path) as reader:
        meta = next(reader)
        width, height = meta["size"]
        frames = [np.frombuffer(raw, np.uint8).reshape(height, width, 3) for raw in reader]
    return torch.from_numpy(np.stack(frames)).float() / 255


def video_info(path: Path) -> VideoInfo:
    """Number of frames, rate and size of a video, or of a PNG as a video of one frame, without decoding it.

    Raises:
        OSError: if the file cannot be read as what its suffix says.
    """
    if path.suffix == ".png":
        try:
            with Image.open(path) as picture:
                return VideoInfo(frames=1, fps=1.0, width=picture.width, height=picture.height)
        except UnidentifiedImageError as error:
            raise OSError(f"{path}: not a PNG that can be read") from error
    with _reader(path) as reader:
        meta = next(reader)
    width, height = meta["size"]
    return VideoInfo(frames=_count_frames(path), fps=float(meta["fps"]), width=width, height=height)


def _check_encodable(frames: Tensor, fps: int, crf: int) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames) or not frames.is_floating_point():
        found = f"{frames.dtype} {tuple(frames.shape)}"
        raise ValueError(f"a clip is of floating point and [frames, height, width, 3], not {found}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"height={height}, width={width}: yuv420p video needs even sides; allowed: multiples of 2")
    if fps < 1:
        raise ValueError(f"fps={fps!r} is too small; allowed: 1 or more")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf={crf!r} is no x264 rate factor; allowed: 0 (best) to 51")
    if not torch.isfinite(frames).all():
        raise ValueError("the clip has NaN or infinite values; allowed: numbers, best in [0, 1]")


def _write_wave(path: Path, sound: Sound) -> Path:
    """In 16 bits, for ffmpeg to read."""
    samples = (sound.waves.detach().float().cpu().clamp(-1, 1) * 32767).round().to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(samples.T.contiguous().numpy().astype("<i2").tobytes())
    return path


def _encode(path: Path, frames: Tensor, fps: int, crf: int, sound: Path | None) -> None:
    height, width = frames.shape[1:3]
    convert = f"scale=out_color_matrix=bt709:out_range=tv:{SWSCALE_FLAGS},format=yuv420p,{_BT709}"
    output = ["-vf", convert, "-crf", str(crf)]
    output += ["-g", str(fps)]  # a key frame a second: players step through the clip without waiting
    output += ["-movflags", "+faststart"]
    writer = imageio_ffmpeg.write_frames(
        str(path.absolute()),
        (width, height),
        fps=fps,
        quality=None,  # pyright: ignore[reportArgumentType] - documented; crf takes its place
        codec="libx264",
        macro_block_size=1,  # never scale
        ffmpeg_log_level="error",
        output_params=output,
        audio_path=None if sound is None else str(sound),
        audio_codec=None if sound is None else "aac",
    )
    with closing(writer):
        writer.send(None)
        for frame in frames:  # one at a time: a clip in 8 bits beside the clip in floats is memory for nothing
            writer.send(_eight_bit(frame))


def _eight_bit(frame: Tensor) -> np.ndarray:
    return (frame.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous().numpy()


@contextmanager
def _reader(path: Path) -> Iterator[Iterator]:
    """imageio-ffmpeg's generator: a dictionary of metadata, then one `bytes` a frame."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video")
    output = ["-fps_mode", "passthrough", "-vf", f"scale={SWSCALE_FLAGS}"]
    with _readable(path), closing(imageio_ffmpeg.read_frames(str(path.absolute()), output_params=output)) as reader:
        yield reader


def _count_frames(path: Path) -> int:
    with _readable(path):
        frames = imageio_ffmpeg.count_frames_and_secs(str(path.absolute()))[0]
    return int(frames or 0)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, KeyError, OSError) as error:  # imageio-ffmpeg raises each of them for files that are no video
        raise OSError(f"{path}: not a video that ffmpeg can read") from error


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, last through a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
