"""Quantized models: calibration methods by bit width, modulation layers, and what each part of a method is worth."""

from qsjax.experiments.quantization.experiment import (
    QuantizationExperiment as QuantizationExperiment,
)
from qsjax.experiments.quantization.grid import quantization_grid as quantization_grid
from qsjax.experiments.quantization.report import QuantizationReport as QuantizationReport
