"""One exact key table per component, usable both ways: PyTorch names to leaves and back.

>>> rows = expand("dit", config, "diffusers")          # every leaf with its tensors, shapes and transform
>>> load_module(dit, "dit", "diffusers", state_dict, config)   # fill a Flax module from PyTorch tensors in memory
"""

from convert.keymaps.detect import check as check
from convert.keymaps.detect import detect as detect
from convert.keymaps.detect import expand as expand
from convert.keymaps.detect import layouts as layouts
from convert.keymaps.module import load_module as load_module
from convert.keymaps.table import Row as Row
