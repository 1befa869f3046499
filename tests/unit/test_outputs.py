"""What is said of a clip: a speedup that skipped steps do not explain is doubted."""

from tapvideo.outputs import describe
from tapvideo.record import ClipRecord, Comparison, StageTimes
from tapvideo.report.data import doubt


def test_a_run_without_forecasts_is_doubted_where_it_is_faster():
    assert doubt(1.05, 50, 50) == ""
    assert doubt(1.3, 50, 50).startswith("nothing was forecast: ")
    assert doubt(1.3, 0, 0) == ""
    assert doubt(1.3, 50, 45).startswith("more than 50 / 45 steps explain")


def test_the_line_of_a_clip_says_the_same():
    compared = Comparison(
        baseline="b.mp4",
        psnr=30.0,
        ssim=0.9,
        identical=False,
        speedup=5.14,
        seconds=StageTimes(text=0, denoise=10.0, vae=0, write=0),
    )
    record = ClipRecord(
        prompt="a", seed=0, video="a.mp4", seconds=StageTimes(text=0, denoise=2, vae=0, write=0),
        full_steps=list(range(20)), forecast_steps=list(range(20, 50)), comparison=compared,
    )  # fmt: skip
    assert "5.14x faster denoising than 10.00 s (more than 50 / 20 steps explain: " in describe(record)
    compared.speedup = 2.3
    assert "2.30x faster denoising than 10.00 s, PSNR 30.0 dB" in describe(record)
