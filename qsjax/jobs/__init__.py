"""Many prompts of a file: each stage for all of them before the next, so that every model is loaded once; a kill loses one clip's stage."""

from qsjax.jobs.listing import Refused as Refused
from qsjax.jobs.listing import Request as Request
from qsjax.jobs.listing import read_requests as read_requests
from qsjax.jobs.planning import Job as Job
from qsjax.jobs.planning import plan_job as plan_job
from qsjax.jobs.planning import plan_jobs as plan_jobs
from qsjax.jobs.request import SETTINGS as SETTINGS
from qsjax.jobs.request import VideoRequest as VideoRequest
from qsjax.jobs.stages import Done as Done
from qsjax.jobs.stages import sample_jobs as sample_jobs
