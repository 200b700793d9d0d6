"""What lists of keys lose in one step, by family of masks and shape of blocks."""

from qsjax.experiments.lists.measure import Lists as Lists
from qsjax.experiments.lists.measure import Measured as Measured
from qsjax.experiments.lists.measure import all_lists as all_lists
from qsjax.experiments.lists.measure import measure_run as measure_run
from qsjax.experiments.lists.measure import measured as measured
from qsjax.experiments.lists.table import by_family as by_family
from qsjax.experiments.lists.table import table as table
