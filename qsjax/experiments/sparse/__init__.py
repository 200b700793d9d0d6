"""Sparse attention: policies by density, mask, weights and schedule; sweeps; baselines; step skipping."""

from qsjax.experiments.sparse.experiment import SparseExperiment as SparseExperiment
from qsjax.experiments.sparse.grid import sparse_grid as sparse_grid
from qsjax.experiments.sparse.report import SparseReport as SparseReport
