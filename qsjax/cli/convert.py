"""`qsjax convert`: the converter's own command line as a verb."""

from convert.__main__ import add_arguments as add_arguments
from convert.__main__ import run as run
