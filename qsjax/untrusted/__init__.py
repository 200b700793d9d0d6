"""What comes from outside: files, JSON, names and numbers that anyone may have written.

Checkpoints, model folders, listings of a hub, presets and records are read here or by what is here: bounded before they are
read, checked before they are multiplied, allocated or joined to a path, and cut before a message shows them.
"""

from qsjax.untrusted.bounds import Between as Between
from qsjax.untrusted.bounds import check_bounds as check_bounds
from qsjax.untrusted.files import open_regular as open_regular
from qsjax.untrusted.files import read_bytes as read_bytes
from qsjax.untrusted.files import read_text as read_text
from qsjax.untrusted.names import inside as inside
from qsjax.untrusted.names import require_name as require_name
from qsjax.untrusted.names import require_relative as require_relative
from qsjax.untrusted.names import shown as shown
from qsjax.untrusted.strict_json import check_plain as check_plain
from qsjax.untrusted.strict_json import parse_json as parse_json
from qsjax.untrusted.strict_json import parse_object as parse_object
from qsjax.untrusted.strict_json import read_object as read_object
