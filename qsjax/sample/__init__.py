"""Sampling: the schedule, the plan of a run, and the pure functions that follow it."""

from qsjax.sample.plan import Plan as Plan
from qsjax.sample.sampler import Conditions as Conditions
from qsjax.sample.sampler import denoise_step as denoise_step
from qsjax.sample.sampler import initial_noise as initial_noise
from qsjax.sample.sampler import make_sampler as make_sampler
from qsjax.sample.sampler import prepare as prepare
from qsjax.sample.sampler import schedule as schedule
from qsjax.sample.schedule import sigmas as sigmas
from qsjax.sample.settings import Settings as Settings
