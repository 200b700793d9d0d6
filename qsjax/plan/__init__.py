"""What fits where, before anything is loaded: bytes, operations and hours from the sizes of a model alone."""

from qsjax.plan.calibration import CalibrationPlan as CalibrationPlan
from qsjax.plan.devices import Device as Device
from qsjax.plan.flops import StepFlops as StepFlops
from qsjax.plan.models import PlannedModel as PlannedModel
from qsjax.plan.report import make_report as make_report
from qsjax.plan.sampling import activation_bytes as activation_bytes
from qsjax.plan.sampling import sampling_bytes as sampling_bytes
from qsjax.plan.size import Size as Size
from qsjax.plan.tables import text as text
from qsjax.plan.weights import Weights as Weights
from qsjax.plan.weights import modulation_table_bytes as modulation_table_bytes
