"""Errors of the hub's client as sentences for the user."""

from collections.abc import Generator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from qsjax.errors import InputError
from qsjax.hub.address import Address
from qsjax.hub.asking import Busy, Unavailable
from qsjax.untrusted import shown


@contextmanager
def explained(address: Address, name: str = "") -> Generator[None, None, None]:
    """Turn errors of the hub, the network and the disk that are raised inside into one sentence each.

    Args:
        address: of the model.
        name: of the file concerned, if there is one.

    Raises:
        InputError: instead of them.
    """
    where = f"{address}: {name}:" if name else f"{address}:"
    try:
        yield
    except InputError as error:
        raise InputError(f"{where} {error}") from error
    except Busy as error:
        raise InputError(
            f"{where} {error}; try again later, it goes on where it stopped"
        ) from error
    except Unavailable as error:
        raise _unreachable(where, error) from error
    except GatedRepoError as error:
        raise InputError(
            f"{where} is behind a licence; accept it on the model's page, and give a token by HF_TOKEN or `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{where} is no model of the hub, or a private one; check the name, or give a token by HF_TOKEN or `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"{where} has no revision {shown(address.revision)}; name a branch, tag or commit of it"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise InputError(
                f"{where} the hub refuses it ({status}); look whether HF_TOKEN or `hf auth login` gives a token that may read it"
            ) from error
        raise InputError(
            f"{where} the hub answers {status}; try again later, it goes on where it stopped"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise InputError(
                f"{where} cannot be written ({error.strerror}); make room and do the same again, "
                f"it goes on where it stopped"
            ) from error
        raise _unreachable(where, error) from error
    except Exception as error:
        # What is no broken connection: an endpoint that is no address, a redirection in a circle.
        if not type(error).__module__.startswith(("httpx", "httpcore")):
            raise
        raise _unreachable(where, error) from error


def _unreachable(where: str, error: Exception) -> InputError:
    lines = str(error).strip().splitlines()
    return InputError(
        f"{where} the hub cannot be reached ({shown(lines[0] if lines else type(error).__name__, 200)}); "
        f"do the same again, it goes on where it stopped, or pass `offline=True` if all of it is here"
    )
