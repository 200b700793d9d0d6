"""Where qsjax is to be had: one address, and what messages and pages make of it."""

ADDRESS: str | None = None
"""The public repository as "https://HOST/OWNER/NAME"; None while it has none. After a change: `python .ci/address.py`."""


def requirement(extra: str = "", *, address: str | None = ADDRESS) -> str:
    """What pip installs: `qsjax[tpu] @ git+https://HOST/OWNER/NAME`, or without an address `.[tpu]`, in a checkout.

    Args:
        extra: name of an optional group of packages; "" is none.
        address: of the repository.
    """
    group = f"[{extra}]" if extra else ""
    return f".{group}" if address is None else f"qsjax{group} @ git+{address}"


def install(extra: str, *, address: str | None = ADDRESS) -> str:
    """The command that adds an extra, for a message that says what is missing.

    Args:
        extra: name of an optional group of packages.
        address: of the repository.
    """
    command = f"`pip install '{requirement(extra, address=address)}'`"
    return command if address else f"{command} in a checkout of qsjax"
