"""How much of a gradient is noise, and so which batch size still pays.

estimators, running     the algebra, on floats: one probe, and averages along a run
squares, geometry       squared norms of gradients as they pass, in several metrics
probe, track            at frozen weights; along a short run, after which the world is put back
monitor                 inside a loop of the user's own
per_example             squared norms of single examples' gradients
couplings, calibrate    whether there is a noise scale at all; whether ours is right
"""

from rightbatch.noise.calibrate import Calibration, CalibrationRow, calibrate
from rightbatch.noise.monitor import NoiseMonitor
from rightbatch.noise.per_example import Explanation, explain, per_example_grad_sq
from rightbatch.noise.probe import measure_noise
from rightbatch.noise.track import track_noise

__all__ = [
    "Calibration",
    "CalibrationRow",
    "Explanation",
    "NoiseMonitor",
    "calibrate",
    "explain",
    "measure_noise",
    "per_example_grad_sq",
    "track_noise",
]
