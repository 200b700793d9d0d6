"""Kernels of qsjax, usable without the rest: named implementations, explicit choice, reasons."""
