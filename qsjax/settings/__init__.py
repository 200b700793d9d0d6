"""The settings of a run: frozen dataclasses that Python, TOML files, checkpoints and the command line share.

Nothing here imports jax, so that `--help` is immediate.
"""

from qsjax.settings.memory import MODULATION_WEIGHTS as MODULATION_WEIGHTS
from qsjax.settings.memory import ModulationWeights as ModulationWeights
from qsjax.settings.plan import SamplingPlan as SamplingPlan
from qsjax.settings.precedence import choose_settings as choose_settings
from qsjax.settings.recipe import RecipeLike as RecipeLike
from qsjax.settings.recipe import SamplingRecipe as SamplingRecipe
from qsjax.settings.residual import POLICIES as POLICIES
from qsjax.settings.residual import Policy as Policy
from qsjax.settings.residual import PolicyName as PolicyName
from qsjax.settings.residual import Residual as Residual
from qsjax.settings.skip import Skip as Skip
from qsjax.settings.sparse import ADAPTIVE as ADAPTIVE
from qsjax.settings.sparse import DENSE as DENSE
from qsjax.settings.sparse import KINDS as KINDS
from qsjax.settings.sparse import REFRESH as REFRESH
from qsjax.settings.sparse import SPARSE as SPARSE
from qsjax.settings.sparse import SparsePlan as SparsePlan
from qsjax.settings.sparsity import FAMILIES as FAMILIES
from qsjax.settings.sparsity import Sparsity as Sparsity
from qsjax.settings.video import Settings as Settings
