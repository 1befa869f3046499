"""`python -m tapvideo.cli.bench`: what forecast and recompute steps cost beside a full step, at a real model's size.

Wan-1.3B at 480 x 832 x 81 on a GPU: `--layers 30 --grid 21 30 52 --dtype bfloat16`.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn

from tapvideo.config import RecomputeConfig, TapConfig
from tapvideo.enable import Tap, enable_tap
from tapvideo.models.wan import random_transformer
from tapvideo.schedule import StepKind

_NUM_STEPS = 1000  # of the pretended run: long enough for any number of repeats


@dataclass(frozen=True, slots=True)
class Timing:
    """Median seconds, and the ratios that follow from them."""

    full_step: float
    """One pass of the whole transformer."""
    forecast_step: float
    """The same with the stack forecast: embeddings, probe, choice, forecast, head."""
    forecast_stack: float
    """Of that, what stands in for the blocks: probe, choice, forecast."""
    recompute_step: float
    """A forecast step on which a share of the tokens runs through the blocks on kept keys and values."""
    copy: float
    """Copying as many bytes as the forecast must read and write: x, K probes, K residuals, the output."""
    anchor_bytes: int
    kv_bytes: int
    """Keys and values that are kept for recomputed tokens."""
    peak_bytes: int | None
    """Most memory allocated in a run without recompute beyond a plain pass; None on a CPU."""

    @property
    def forecast_share(self) -> float:
        """Forecast step over full step."""
        return self.forecast_step / self.full_step

    @property
    def stack_to_copy(self) -> float:
        """Forecast of the stack over the copy."""
        return self.forecast_stack / self.copy


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tapvideo.cli.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dim", type=int, default=1536, help="width, a multiple of 128 (default 1536: Wan-1.3B)")
    parser.add_argument("--ffn-dim", type=int, default=8960)
    parser.add_argument("--layers", type=int, default=4, help="blocks (default 4; Wan-1.3B has 30, so it gains more)")
    parser.add_argument(
        "--grid", type=int, nargs=3, default=(4, 32, 32), help="frames, rows, columns of tokens (default 4 32 32)"
    )
    parser.add_argument("--recompute", type=float, default=0.1, help="share of tokens to recompute (default 0.1)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    if (wrong := _refusal(args)) is not None:
        parser.error(wrong)
    timing = measure(args)
    record = {
        **vars(args),
        **asdict(timing),
        "device_name": _device_name(args.device),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(record))
    print(f"full step      {timing.full_step * 1e3:10.2f} ms")
    print(f"forecast step  {timing.forecast_step * 1e3:10.2f} ms  = {timing.forecast_share:.2%} of a full step")
    share = timing.forecast_stack / timing.full_step
    copies = f"{share:.2%} of a full step, {timing.stack_to_copy:.2f} x copying the bytes it must move"
    print(f"  its stack    {timing.forecast_stack * 1e3:10.2f} ms  = {copies}")
    relative = timing.recompute_step / timing.full_step
    tokens = f"{relative:.2%} of a full step, with {args.recompute:.0%} of the tokens"
    print(f"recompute step {timing.recompute_step * 1e3:10.2f} ms  = {tokens}")
    print(f"anchors {timing.anchor_bytes / 2**20:.0f} MiB, kept keys and values {timing.kv_bytes / 2**20:.0f} MiB")
    if timing.peak_bytes is not None:
        print(f"most memory beyond a plain pass {timing.peak_bytes / 2**20:.0f} MiB")


def _refusal(args: argparse.Namespace) -> str | None:
    """What is wrong with the arguments, and what is allowed."""
    if args.dim < 128 or args.dim % 128:
        return f"--dim {args.dim}: heads are 128 wide; allowed: multiples of 128"
    for name in ("ffn_dim", "layers", "repeats"):
        if getattr(args, name) < 1:
            return f"--{name.replace('_', '-')} {getattr(args, name)} is too small; allowed: 1 or more"
    if min(args.grid) < 1:
        return f"--grid {' '.join(map(str, args.grid))} has no tokens; allowed: three numbers from 1"
    if not 0 < args.recompute <= 1:
        return f"--recompute {args.recompute:g} is no share of tokens; allowed: above 0, up to 1"
    if args.device != "cpu" and not torch.cuda.is_available():
        return f"--device {args.device} is not there; allowed: cpu"
    return None


@torch.no_grad()
def measure(args: argparse.Namespace) -> Timing:
    """Time a random transformer of these sizes."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    torch.manual_seed(0)
    transformer = random_transformer(
        dim=args.dim, ffn_dim=args.ffn_dim, num_layers=args.layers, device=device, dtype=dtype
    )
    frames, rows, columns = args.grid
    latents = torch.randn(1, 16, frames, 2 * rows, 2 * columns, device=device, dtype=dtype)
    text = torch.randn(1, 512, 4096, device=device, dtype=dtype)

    def step(index: int) -> None:
        with transformer.cache_context("cond", step_index=index, num_inference_steps=_NUM_STEPS):
            noise = latents + 0.01 * index  # a trajectory, so that anchors differ
            transformer(noise, torch.full((1,), 999.0 - index, device=device), text, return_dict=False)

    full, plain_peak = _median(lambda: step(0), device, args.repeats), _peak(device)
    forecast, tap = _forecasts(transformer, step, TapConfig(), device, args.repeats)
    peak = _peak(device)
    stacks = [r.stack.seconds for r in tap.trace.records if r.kind is StepKind.FORECAST][1:]
    partial, recompute = _forecasts(
        transformer, step, TapConfig(recompute=RecomputeConfig(budget=args.recompute)), device, args.repeats
    )
    moved = torch.empty(2 + 2 * tap.config.anchors, frames * rows * columns, args.dim, device=device, dtype=dtype)
    target = torch.empty_like(moved)
    return Timing(
        full,
        forecast,
        statistics.median(stacks),
        partial,
        _median(lambda: target.copy_(moved), device, args.repeats),
        tap.summary().state_bytes,
        recompute.summary().kv_bytes,
        None if peak is None or plain_peak is None else peak - plain_peak,
    )


def _forecasts(
    transformer: nn.Module, step: Callable[[int], None], config: TapConfig, device: torch.device, repeats: int
) -> tuple[float, Tap]:
    """Median seconds of forecast steps, the first of which warms up."""
    tap, seconds = enable_tap(transformer, config), []
    for index, kind in enumerate(tap.plan(_NUM_STEPS)):
        took = _median(lambda i=index: step(i), device, 1, warm=False)
        if kind is StepKind.FORECAST:
            seconds.append(took)
        if len(seconds) > repeats:
            break
    tap.disable()
    return statistics.median(seconds[1:]), tap


def _peak(device: torch.device) -> int | None:
    """Most bytes allocated since the last question."""
    if device.type != "cuda":
        return None
    most = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return most


def _median(work: Callable[[], object], device: torch.device, repeats: int, *, warm: bool = True) -> float:
    seconds: list[float] = []
    for i in range(repeats + warm):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        if i >= warm:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
