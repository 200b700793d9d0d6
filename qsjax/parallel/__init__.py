"""A step on several devices: each has a share of the video's tokens, and in attention a share of the heads.

Text is everyone's; weights are too, or cut, and a layer's are gathered when its turn comes. It is `jax.shard_map` over one mesh
axis; the collectives are JAX's own.
"""

from qsjax.parallel.heads import by_heads as by_heads
from qsjax.parallel.hosts import first_agrees as first_agrees
from qsjax.parallel.hosts import is_first as is_first
from qsjax.parallel.hosts import join as join
from qsjax.parallel.mesh import AXIS as AXIS
from qsjax.parallel.mesh import check_heads as check_heads
from qsjax.parallel.mesh import gathered as gathered
from qsjax.parallel.mesh import make_mesh as make_mesh
from qsjax.parallel.mesh import replicated as replicated
from qsjax.parallel.tokens import by_tokens as by_tokens
from qsjax.parallel.weights import gathering as gathering
from qsjax.parallel.weights import weight_placement as weight_placement
from qsjax.parallel.weights import weight_specs as weight_specs
