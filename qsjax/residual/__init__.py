"""The residual cache: what sparse attention leaves out, kept from the last refresh, and the attention that adds it back."""

from qsjax.residual.attention import refresh as refresh
from qsjax.residual.attention import refresh_attention as refresh_attention
from qsjax.residual.attention import sparse as sparse
from qsjax.residual.attention import sparse_attention as sparse_attention
from qsjax.residual.state import Gains as Gains
from qsjax.residual.state import LayerState as LayerState
from qsjax.residual.state import bytes_of as bytes_of
from qsjax.residual.state import empty_state as empty_state
from qsjax.residual.state import placed as placed
from qsjax.residual.tokens import Heads as Heads
from qsjax.residual.tokens import Made as Made
from qsjax.residual.tokens import picked as picked
from qsjax.residual.tokens import to_make as to_make
from qsjax.settings import POLICIES as POLICIES
from qsjax.settings import Policy as Policy
from qsjax.settings import Residual as Residual
