"""Videos on request, one at a time, from one resident model: what `qsjax ui` and `qsjax serve` share.

A `VideoMaker` checks a request and makes its video; a `TaskQueue` keeps the order, runs one task after the other in a thread,
cancels and remembers; a `VideoFolder` is what is on the disk, which survives the process.
"""

from qsjax.serving.folder import VideoFolder as VideoFolder
from qsjax.serving.folder import VideoRecord as VideoRecord
from qsjax.serving.limits import Limits as Limits
from qsjax.serving.maker import VideoMaker as VideoMaker
from qsjax.serving.queue import QueueFullError as QueueFullError
from qsjax.serving.queue import TaskQueue as TaskQueue
from qsjax.serving.task import Outcome as Outcome
from qsjax.serving.task import State as State
from qsjax.serving.task import Stopped as Stopped
from qsjax.serving.task import Task as Task
from qsjax.serving.task import TaskProgress as TaskProgress
