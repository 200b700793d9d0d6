"""A step on several devices: the video's tokens are sharded, and in attention the heads.

Text is replicated; weights are replicated or sharded, and a sharded layer is gathered just before it runs. All of it is
`jax.shard_map` over one mesh axis, with JAX's own collectives.
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
