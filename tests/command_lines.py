"""Every command of the command line, as it is typed."""

from qsjax.cli import VERBS

OF_VERB = {
    "bench": ["kernels", "dit", "sample", "step", "conversion"],
    "evaluate": ["compare", "quantization", "sparse"],
}
"""Verb -> its commands; a verb that is not here has none."""
COMMANDS = [[verb, *more] for verb in VERBS for more in ([[c] for c in OF_VERB.get(verb, [])] or [[]])]  # fmt: skip
