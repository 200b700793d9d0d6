"""Compile for a TPU or a GPU that this machine does not have.

libtpu and XLA's CUDA plugin contain whole compilers, which need a description of the chip but no chip: Mosaic, Triton and
ptxas accept or reject a kernel here exactly as they would on the device.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from pallas_kernels.targets import Target

# What XLA:GPU asks the driver about a Hopper SXM; H100 and H200 are the same chip with different memories.
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32
  shared_memory_per_block: 49152  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048  core_count: 132  fpus_per_core: 128
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}  l2_cache_size: 52428800  clock_rate_ghz: 1.98
  device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 minor: 0 }}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{name}"
"""
_GPUS = {
    "h100": {"bandwidth": 3352320000000, "memory": 84978434048, "name": "NVIDIA H100 80GB HBM3"},
    "h200": {"bandwidth": 4800000000000, "memory": 150754820096, "name": "NVIDIA H200"},
}
_CUDA_PLUGIN = "jax_plugins.xla_cuda12"


def missing(target: Target) -> str | None:
    """What is needed to compile for a target and is not installed; None if nothing is missing."""
    if target.topology is None:
        return f"{target.name} cannot be compiled for without the device"
    if target.backend == "tpu":
        return None if importlib.util.find_spec("libtpu") else "pip install libtpu"
    plugin = importlib.util.find_spec("jax_plugins") and importlib.util.find_spec(_CUDA_PLUGIN)
    return None if plugin else "pip install 'jax[cuda12]'"


def device(target: Target) -> jax.Device:
    """A description of the device, to put in a sharding.

    Raises:
        ModuleNotFoundError: its compiler is not installed; the message says how to.
    """
    return devices(target, 1)[0]


def devices(target: Target, count: int) -> list[jax.Device]:
    """Descriptions of `count` devices of one topology.

    Raises:
        ModuleNotFoundError: as `device`.
        ValueError: no topology of that many devices is known.
    """
    if (reason := missing(target)) or target.topology is None:
        raise ModuleNotFoundError(f"compiling for {target.name}: {reason}")
    if target.backend == "gpu":
        if count != 1:
            raise ValueError(f"compiling for {count} GPUs without having them is not supported")
        jax.devices()  # Registers the plugin, on whatever platform.
        described = _HOPPER.format(**_GPUS[target.name])
        options = {"platform": "cuda", "target_config": described, "topology": target.topology}
        return list(topologies.get_topology_desc(**options).devices)
    # Without these, libtpu asks the network which cloud machine this is, and only one process at a time can load it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = target.topology
    if count > 4:
        if count != 8:
            raise ValueError(f"no topology of {count} TPU chips is known; there are 1, 2, 4 and 8")
        topology = f"{target.name}:2x4"
    return list(topologies.get_topology_desc(topology, platform="tpu").devices[:count])


def compile_for(
    target: Target,
    function: Callable[..., Any],
    *arguments: PyTree,
    options: dict[str, Any] | None = None,
) -> jax.stages.Compiled:
    """Compile a function ahead of time.

    Args:
        target: the device.
        function: to compile; kernels in it need names with "@" and this target.
        arguments: pytrees of arrays or `jax.ShapeDtypeStruct`.
        options: of the compiler.

    Returns:
        The compiled program, with `memory_analysis()` and `as_text()`.
    """
    sharding = SingleDeviceSharding(device(target))

    def spec(x: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.jit(function).lower(*jax.tree.map(spec, arguments)).compile(options)
