"""The table of attention's errors: the parts, their sum, and both together."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from qsjax.evaluate.statistics import estimate
from qsjax.evaluate.tables import markdown, shown


def table(
    errors: Mapping[str, Float[np.ndarray, "S W N B"]], sizes: Float[np.ndarray, "S N B"]
) -> str:
    """Markdown: a line a model, means over steps and layers.

    Errors are shares of the mean square of the exact output, so that layers count alike; the last column is of the errors as
    they are, which is what the paper reports: there, loud layers count most.

    Args:
        errors: of `attention_errors`.
        sizes: likewise.
    """
    lines = []
    for name, found in errors.items():
        relative = (found / sizes[:, None]).mean(axis=(0, 2))
        plain = found.mean(axis=(0, 2))
        total, plain_total = (x[0] + x[1] for x in (relative, plain))
        lines.append([
            name,
            *(shown(estimate(row), 4) for row in relative[:2]),
            shown(estimate(total), 4),
            shown(estimate(relative[2]), 4),
            shown(estimate(relative[2] / total), 2),
            shown(estimate(plain[2] / plain_total), 2),
        ])  # fmt: skip
    headers = (
        "",
        "quantization",
        "sparsity",
        "sum",
        "both",
        "both / sum",
        "both / sum, squared errors",
    )
    return markdown(headers, lines)
