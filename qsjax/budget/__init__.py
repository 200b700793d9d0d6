"""Plan what fits on which device before anything is loaded: bytes, operations and hours from the sizes of a model alone."""

from qsjax.budget.calibration import CalibrationPlan as CalibrationPlan
from qsjax.budget.devices import Device as Device
from qsjax.budget.flops import StepFlops as StepFlops
from qsjax.budget.models import PlannedModel as PlannedModel
from qsjax.budget.planning import MemoryPlan as MemoryPlan
from qsjax.budget.planning import plan_memory as plan_memory
from qsjax.budget.sampling import activation_bytes as activation_bytes
from qsjax.budget.sampling import sampling_bytes as sampling_bytes
from qsjax.budget.size import Size as Size
from qsjax.budget.tables import text as text
from qsjax.budget.weights import Weights as Weights
from qsjax.budget.weights import modulation_table_bytes as modulation_table_bytes
