"""What quantization, sparsity and both do to attention's output."""

from qsjax.experiments.interaction.basis import to_float_channels as to_float_channels
from qsjax.experiments.interaction.measure import WAYS as WAYS
from qsjax.experiments.interaction.measure import attention_errors as attention_errors
from qsjax.experiments.interaction.table import table as table
