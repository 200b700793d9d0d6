"""Which keys a query looks at: orders of video tokens, families of masks, lists that follow the tokens."""

from qsjax.settings import FAMILIES as FAMILIES
from qsjax.settings import Sparsity as Sparsity
from qsjax.sparse.layout import Layout as Layout
from qsjax.sparse.pattern import Choice as Choice
from qsjax.sparse.pattern import Pattern as Pattern
