"""Recall and density by head: of the lists that a run ended with."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sample.sampled_models import CONFIG, SHAPE, prompt, random_dit, walk

from qsjax.budget.steps import executed_density
from qsjax.residual import Residual
from qsjax.sample import SamplingPlan, SparsePlan, heads_of
from qsjax.sample.patterns import pattern_for
from qsjax.sparse import Sparsity

SPARSE = SparsePlan(sparsity=Sparsity(density=0.4, block=4, profiled_rows=12), residual=Residual(policy="none", store="float32", rank=0))  # fmt: skip


@pytest.fixture(scope="module")
def dit():
    return random_dit()


def heads(dit, **changes):
    """After the first of six steps, which is a refresh; its program is that of runs in test_sparse_sampling.py."""
    sparse = replace(SPARSE, sparsity=replace(SPARSE.sparsity, **changes.pop("sparsity", {})), **changes)  # fmt: skip
    _, cache = next(walk(dit, SamplingPlan(steps=6, sparse=sparse)))
    text = prompt(1).text.shape[1]
    pattern = pattern_for(sparse, CONFIG, SHAPE, text)
    return heads_of(sparse, CONFIG, SHAPE, text, cache[0].slot), pattern


@pytest.mark.parametrize("mask", ["svg", "topk", "band"])
def test_density_is_that_of_the_plan_where_lists_are_as_long_as_they_may_be(dit, mask):
    found, pattern = heads(dit, sparsity={"mask": mask})
    assert found.recall.shape == found.density.shape == (2, CONFIG.num_heads)
    np.testing.assert_allclose(found.density, executed_density(pattern), rtol=1e-6)
    assert ((found.recall > 0) & (found.recall < 1)).all()
    assert (found.second is not None) == (mask == "svg")


def test_top_p_computes_less_where_less_holds_the_mass(dit):
    many, pattern = heads(dit, sparsity={"mask": "topp", "density": 1.0, "mass": 0.9})
    few, _ = heads(dit, sparsity={"mask": "topp", "density": 1.0, "mass": 0.2})
    assert (few.density < many.density).all()
    assert (few.recall < many.recall).all()
    assert many.density.max() <= executed_density(pattern) == 1


def test_dense_layers_compute_everything(dit):
    found, _ = heads(dit, dense_layers=(1,))
    np.testing.assert_array_equal(found.recall[1], 1)
    np.testing.assert_array_equal(found.density[1], 1)
    assert (found.density[0] < 1).all()


def test_plain_data_names_the_head_that_recalls_least(dit):
    found, _ = heads(dit)
    plain = json.loads(json.dumps(found.plain(), allow_nan=False))
    least = plain["least"]
    assert plain["recall_by_head"][least["layer"]][least["head"]] == np.array(plain["recall_by_head"]).min()  # fmt: skip
    assert set(plain) == {"recall", "density", "least", "recall_by_head", "density_by_head", "second_by_head"}  # fmt: skip
