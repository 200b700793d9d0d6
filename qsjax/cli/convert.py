"""`qsjax convert`: the converter's own command line as a verb."""

from convert import __main__ as converter
from qsjax.cli.options import Options

run = converter.run


def add_arguments(options: Options) -> None:
    """The options of `qsjax convert`."""
    converter.add_arguments(options.parser)
