"""Evaluation: how far a compressed model's videos and velocities are from full precision, paired clip by clip."""

from qsjax.evaluate.compare import Comparison as Comparison
from qsjax.evaluate.compare import compare as compare
from qsjax.evaluate.metrics import frame_psnr as frame_psnr
from qsjax.evaluate.metrics import psnr as psnr
from qsjax.evaluate.metrics import relative_error as relative_error
from qsjax.evaluate.metrics import ssim as ssim
from qsjax.evaluate.reference import Reference as Reference
from qsjax.evaluate.reference import reference_run as reference_run
from qsjax.evaluate.statistics import Estimate as Estimate
from qsjax.evaluate.statistics import estimate as estimate
from qsjax.evaluate.statistics import paired as paired
