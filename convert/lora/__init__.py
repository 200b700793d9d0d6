"""LoRA files merged into the transformer while it is converted: W + strength * alpha / rank * up @ down.

`request.py` is what is asked for; `names.py` knows how files spell up, down and alpha, `modules.py` which rows of which leaf a layer
is in every layout, `scaling.py` where a file says alpha; `file.py` checks one file, `merged.py` adds to a `Source`, tensor by tensor.
"""
