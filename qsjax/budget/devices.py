"""Devices that a plan is made for: memory and number of chips from configs/devices, peaks from `pallas_kernels.targets`."""

from dataclasses import dataclass
from typing import Any

from pallas_kernels.targets import TARGETS, Target
from qsjax.config import configs_directory, from_mapping, nearest, preset
from qsjax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator, or several that share a run.

    Attributes:
        name: name for messages and tables.
        target: name in `pallas_kernels.targets.TARGETS`, which has the peaks.
        memory_bytes: memory of each chip, the vendor's figure.
        chips: number of chips.
    """

    name: str
    target: str
    memory_bytes: int
    chips: int = 1

    def __post_init__(self) -> None:
        if self.target not in TARGETS or not TARGETS[self.target].bfloat16_flops:
            known = [name for name, target in TARGETS.items() if target.bfloat16_flops]
            raise InputError(
                f"device {self.name}: no peaks are known for target {self.target!r};"
                f" {nearest(self.target, known)}"
            )
        if min(self.memory_bytes, self.chips) < 1:
            raise InputError(
                f"device {self.name}: memory_bytes {self.memory_bytes} and chips {self.chips} must be above 0"
            )

    @classmethod
    def load(cls, name: str) -> "Device":
        """Load the device of `configs/devices/<name>.toml`.

        Raises:
            InputError: no such device, or its file has unknown or unfitting values.
        """
        values = preset("devices", name)
        return from_mapping(cls, {"name": name, **values}, source=f"device {name}")

    @classmethod
    def known(cls) -> list["Device"]:
        """All devices in configs/devices, smallest memory first."""
        names = sorted(path.stem for path in (configs_directory() / "devices").glob("*.toml"))
        return sorted(map(cls.load, names), key=lambda device: (device.memory_bytes, device.chips))

    @property
    def peaks(self) -> Target:
        """The vendor's peak rates of one chip."""
        return TARGETS[self.target]

    def fits(self, taken: int) -> dict[str, Any]:
        """Whether so many bytes fit a chip, for a report."""
        return {
            "device": self.name,
            "memory_bytes": self.memory_bytes,
            "bytes_estimate": taken,
            "fits_estimate": taken <= self.memory_bytes,
        }
