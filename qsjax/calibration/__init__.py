"""Calibration: a quantized model's transforms and clips, found block by block against the float model (MSAD)."""

from qsjax.calibration.methods import DEFAULT as DEFAULT
from qsjax.calibration.methods import METHODS as METHODS
from qsjax.calibration.methods import Method as Method
from qsjax.calibration.methods import method as method
from qsjax.calibration.module import calibrate_module as calibrate_module
from qsjax.calibration.samples import Samples as Samples
from qsjax.calibration.samples import SettingsChanges as SettingsChanges
from qsjax.calibration.samples import collect as collect
from qsjax.calibration.trajectories import Gathered as Gathered
from qsjax.calibration.trajectories import Moments as Moments
from qsjax.calibration.trajectories import Trajectories as Trajectories
from qsjax.calibration.trajectories import gather as gather
from qsjax.calibration.trajectories import walk as walk
