"""Seconds of the Pallas kernels of a step: the profiler's cycles of the same kernels in a small step, by the values that they write."""

from collections import defaultdict
from collections.abc import Iterable

from pallas_kernels.estimate import NoEstimateError, in_own_process, profiler
from pallas_kernels.targets import Target
from qsjax.bench.kernel_rates import Profile, RatesRequest
from qsjax.bench.step_parts import Kernel
from qsjax.bench.step_subject import Subject
from qsjax.settings import DENSE

# 3,072 tokens of video and 1,024 of text: whole tiles of every kernel, and few enough for the profiler, which unrolls grids.
_PROFILED = {"latents": (3, 64, 64), "text_tokens": 1024}


class Rates:
    """What is known of each kernel.

    Args:
        profiles: of the kernels of a small step.
        failure: why there are none at all.
    """

    def __init__(self, profiles: Iterable[Profile], failure: str = "") -> None:
        self.failure = failure
        self._missing: dict[tuple[str, str], str] = {}
        cycles: dict[tuple[str, str], float] = defaultdict(float)
        values: dict[tuple[str, str], float] = defaultdict(float)
        for block, path, elements, count, reason in profiles:
            if reason:
                self._missing[block, path] = reason
            else:
                cycles[block, path] += count
                values[block, path] += elements
        self._rates = {key: count / values[key] for key, count in cycles.items()}

    @classmethod
    def of(cls, subject: Subject, timeout: float) -> "Rates":
        """Profile the kernels in a process of their own; where one of them ends it, each in its own.

        Args:
            subject: gives model, recipe and target.
            timeout: seconds for a process.
        """
        step = subject.request(DENSE, plan=subject.plan.dense, slot="nothing", **_PROFILED)

        def ask(only: tuple[int, ...] | None) -> list[Profile]:
            with profiler() as flags:
                request = RatesRequest(step=step, only=only)
                answer = in_own_process("qsjax.bench.kernel_rates", request, flags, timeout=timeout)
            return [tuple(one) for one in answer]

        try:
            return cls(ask(None))
        except NoEstimateError:
            pass
        try:
            listed = ask(())
        except NoEstimateError as error:
            return cls([], f"kernels were not profiled: {error}")
        found = []
        for number, (block, path, elements, _, _) in enumerate(listed):
            try:
                found.append(ask((number,))[number])
            except NoEstimateError as error:
                found.append((block, path, elements, 0, str(error)))
        return cls(found)

    def seconds(self, kernel: Kernel, target: Target, doubts: list[str]) -> float:
        """Of a call: the profiler's cycles, and at least the bytes at the bandwidth; a kernel that is not known adds a doubt."""
        least = kernel.bytes / target.bandwidth
        if self.failure:
            doubts.append(f"{self.failure}; they count by their bytes")
            return least
        key = (kernel.block, kernel.path)
        if key not in self._rates:
            reason = self._missing.get(key, "the small step does not call it")
            doubts.append(
                f"{kernel.path} of a {kernel.block} block was not profiled: {reason}; it counts by its bytes"
            )
            return least
        return max(least, self._rates[key] * kernel.elements / target.clock)
