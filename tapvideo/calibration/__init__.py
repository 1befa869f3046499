"""What a few un-accelerated clips tell of a model's residuals: weights of forecasts, and where full steps belong."""

from tapvideo.calibration.file import Calibration as Calibration
from tapvideo.calibration.file import load_calibration as load_calibration
