"""Sampling: the schedule, the plan of a run, and the pure functions that follow it."""

from qsjax.sample.adaptive import executed_kinds as executed_kinds
from qsjax.sample.cache import empty_cache as empty_cache
from qsjax.sample.cache_size import cache_bytes as cache_bytes
from qsjax.sample.cache_size import within_budget as within_budget
from qsjax.sample.heads import Heads as Heads
from qsjax.sample.heads import heads_of as heads_of
from qsjax.sample.loop import StepResult as StepResult
from qsjax.sample.loop import denoise as denoise
from qsjax.sample.patterns import pattern_for as pattern_for
from qsjax.sample.sampler import make_sampler as make_sampler
from qsjax.sample.schedule import sigmas as sigmas
from qsjax.sample.sharded import sharded_cache as sharded_cache
from qsjax.sample.sharded import sharded_prepare as sharded_prepare
from qsjax.sample.sharded import sharded_step as sharded_step
from qsjax.sample.step import Conditions as Conditions
from qsjax.sample.step import check_seed as check_seed
from qsjax.sample.step import initial_noise as initial_noise
from qsjax.sample.step import prepare as prepare
from qsjax.sample.step import schedule as schedule
from qsjax.sample.steps import denoise_step as denoise_step
from qsjax.settings import DENSE as DENSE
from qsjax.settings import SamplingPlan as SamplingPlan
from qsjax.settings import Settings as Settings
from qsjax.settings import Skip as Skip
from qsjax.settings import SparsePlan as SparsePlan
