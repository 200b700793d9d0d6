"""The errors a user can cause, each one sentence: what was asked, what was found, what to do."""


class QsjaxError(Exception):
    """Base of every error that the caller can fix; the command line prints it and exits with 2."""


class InputError(QsjaxError, ValueError):
    """An argument, file or configuration value is not usable as given."""


class CheckpointError(QsjaxError):
    """A checkpoint (PyTorch or Orbax) is damaged, incomplete, or not what it was taken for."""


class Cancelled(QsjaxError):
    """Sampling stopped on request; `step` says how many steps were done and `latents` holds their result."""

    def __init__(self, message: str, *, step: int, latents: object) -> None:
        super().__init__(message)
        self.step = step
        self.latents = latents
