"""`python -m tapvideo.cli.bench`: what a forecast step costs beside a full step, at the width of a real model."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from tapvideo.config import TapConfig
from tapvideo.enable import enable_tap
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
    copy: float
    """Copying as many bytes as the forecast must read and write: x, K probes, K residuals, the output."""

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
    parser.add_argument("--tokens", type=int, default=4096, help="a multiple of 1024 (default 4096)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
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


@torch.no_grad()
def measure(args: argparse.Namespace) -> Timing:
    """Time a random transformer of these sizes."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    torch.manual_seed(0)
    transformer = random_transformer(
        dim=args.dim, ffn_dim=args.ffn_dim, num_layers=args.layers, device=device, dtype=dtype
    )
    latents = torch.randn(1, 16, args.tokens // 1024, 64, 64, device=device, dtype=dtype)
    text = torch.randn(1, 512, 4096, device=device, dtype=dtype)

    def step(index: int) -> None:
        with transformer.cache_context("cond", step_index=index, num_inference_steps=_NUM_STEPS):
            noise = latents + 0.01 * index  # a trajectory, so that anchors differ
            transformer(noise, torch.full((1,), 999.0 - index, device=device), text, return_dict=False)

    full = _median(lambda: step(0), device, args.repeats)
    tap = enable_tap(transformer, TapConfig())
    forecast: list[float] = []
    for index, kind in enumerate(tap.plan(_NUM_STEPS)):
        seconds = _median(lambda i=index: step(i), device, 1, warm=False)
        if kind is StepKind.FORECAST:
            forecast.append(seconds)
        if len(forecast) > args.repeats:
            break
    forecast = forecast[1:]  # the first one warms up
    stacks = [r.stack.seconds for r in tap.trace.records if r.kind is StepKind.FORECAST][1:]
    moved = torch.empty(2 + 2 * tap.config.anchors, args.tokens, args.dim, device=device, dtype=dtype)
    target = torch.empty_like(moved)
    copy = _median(lambda: target.copy_(moved), device, args.repeats)
    return Timing(full, statistics.median(forecast), statistics.median(stacks), copy)


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
