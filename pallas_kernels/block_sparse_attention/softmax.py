"""Constants of an online softmax whose numbers all stay finite."""

import math

LOWEST_PEAK = -1e29
"""Where running maxima start: above the score of a key that is not valid, so that its weight is exp(-9e29) = 0."""

LOG2_E = math.log2(math.e)
"""Turns exponents of e into exponents of 2, which hardware computes."""
