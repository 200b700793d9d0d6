"""Calibration: a quantized model's transforms and clips, found block by block against the float model (MSAD)."""

from qsjax.calibrate.methods import METHODS as METHODS
from qsjax.calibrate.methods import Method as Method
from qsjax.calibrate.methods import method as method
from qsjax.calibrate.module import calibrate_module as calibrate_module
from qsjax.calibrate.samples import Samples as Samples
from qsjax.calibrate.samples import collect as collect
