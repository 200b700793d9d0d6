"""Which keys each query attends to: orders of video tokens, mask families, and block lists chosen while sampling."""

from qsjax.settings import FAMILIES as FAMILIES
from qsjax.settings import Sparsity as Sparsity
from qsjax.sparse.layout import Layout as Layout
from qsjax.sparse.pattern import Choice as Choice
from qsjax.sparse.pattern import Pattern as Pattern
