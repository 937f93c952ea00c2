"""How much of a gradient is noise, and so which batch size still pays.

`estimators.py` is the algebra, on floats; `probe.py` measures at frozen weights;
`track.py` follows a training run and puts the world back.
"""

from rightbatch.noise.calibrate import Calibration, CalibrationRow, calibrate
from rightbatch.noise.monitor import NoiseMonitor
from rightbatch.noise.probe import measure_noise
from rightbatch.noise.track import track_noise

__all__ = [
    "Calibration",
    "CalibrationRow",
    "NoiseMonitor",
    "calibrate",
    "measure_noise",
    "track_noise",
]
