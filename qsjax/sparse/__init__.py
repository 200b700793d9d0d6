"""Which keys a query looks at: orders of video tokens, families of masks, lists that follow the tokens."""

from qsjax.sparse.layout import Layout as Layout
from qsjax.sparse.pattern import FAMILIES as FAMILIES
from qsjax.sparse.pattern import Choice as Choice
from qsjax.sparse.pattern import Pattern as Pattern
from qsjax.sparse.pattern import Sparsity as Sparsity
