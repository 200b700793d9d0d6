"""Checkpoints: one directory, many small Orbax items, and a manifest that is written last."""

from qsjax.checkpoint.finished import is_finished as is_finished
from qsjax.checkpoint.finished import made_already as made_already
from qsjax.checkpoint.manifest import FORMAT_VERSION as FORMAT_VERSION
from qsjax.checkpoint.manifest import MANIFEST as MANIFEST
from qsjax.checkpoint.manifest import Manifest as Manifest
from qsjax.checkpoint.manifest import sealed as sealed
from qsjax.checkpoint.restore import Placement as Placement
from qsjax.checkpoint.restore import load_item as load_item
from qsjax.checkpoint.restore import read_item as read_item
from qsjax.checkpoint.restore import restore as restore
from qsjax.checkpoint.restore import stored_bytes as stored_bytes
from qsjax.checkpoint.rows import StoredRows as StoredRows
from qsjax.checkpoint.schema import Leaf as Leaf
from qsjax.checkpoint.schema import StoredComponent as StoredComponent
from qsjax.checkpoint.writer import CheckpointWriter as CheckpointWriter
from qsjax.checkpoint.writer import digest as digest
from qsjax.disk import write_atomically as write_atomically
