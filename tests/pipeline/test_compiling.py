"""Programs are compiled while other stages run; what goes wrong there is the caller's to see."""

import signal
import subprocess
import sys
import threading
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from jax import monitoring

import qsjax
from qsjax import compiling, models
from qsjax.compiling import THREADS, Programs, in_thread
from qsjax.sample import SparsePlan
from qsjax.sparse import Sparsity
from qsjax.vae import VAE

SIZE = {"frames": 5, "height": 16, "width": 24, "steps": 4}
CAPTION = "a red circle moves left over a dark background"
SPARSE = SparsePlan(sparsity=Sparsity(mask="topk", density=0.5, block=4), interval=2, dense_steps=1)
PROGRAM = jax.jit(lambda x: x).lower(1.0).compile()
SOON = 120
"""Seconds after which a test gives up waiting for what should happen at once."""


def lowered(compile):
    return SimpleNamespace(compile=compile, out_info=None)


@pytest.fixture
def programs():
    return Programs(lambda name, start: None)


def opened(checkpoint, **options):
    return qsjax.Pipeline.from_checkpoint(checkpoint, staged=True, progress=False, **options)


def test_steps_are_compiled_while_text_encoders_load_and_tiles_while_steps_run(
    tiny_checkpoint, monkeypatch
):
    loading, stepping = threading.Event(), threading.Event()
    overlapped = []

    def while_loading(make):
        def compile():
            overlapped.append(("step", loading.wait(SOON)))
            return make()

        return in_thread(compile)

    def while_stepping(vae, tile, lower=VAE.lower_tile):
        found = lower(vae, tile)

        def compile():
            overlapped.append(("tile", stepping.wait(SOON)))
            return found.compile()

        return SimpleNamespace(compile=compile, out_info=found.out_info)

    def load(*args, **options):
        loading.set()
        return qsjax.text.TextEncoder.load(*args, **options)

    monkeypatch.setattr(compiling, "in_thread", while_loading)
    monkeypatch.setattr(models, "TextEncoder", SimpleNamespace(load=load))
    monkeypatch.setattr(VAE, "lower_tile", while_stepping)
    opened(tiny_checkpoint)(CAPTION, callback=lambda step, latents: stepping.set(), **SIZE)
    assert [name for name, _ in overlapped].count("tile") == 1
    assert [name for name, _ in overlapped].count(
        "step"
    ) == 4  # prepare, dense, its flag, and the tile
    assert all(in_time for _, in_time in overlapped)


def test_all_programs_are_compiled_ahead_and_a_second_start_reads_them(
    tiny_checkpoint, monkeypatch
):
    wanted, options = {"sparse": SPARSE, **SIZE}, {"modulation": "released"}
    ahead, known, events = opened(tiny_checkpoint, **options), [], Counter()
    encode = ahead.encode

    def encode_later(prompt):
        known.extend([*ahead._denoiser.programs, *ahead._decoder.programs])
        return encode(prompt)

    monkeypatch.setattr(ahead, "encode", encode_later)
    found = ahead(CAPTION, **wanted)
    assert known == [*ahead._denoiser.programs, *ahead._decoder.programs]
    names = [key[0] for key in known]
    assert names[:5] == ["prepare", "cache", "refresh", "sparse", "finite"]
    assert len(names) == 6  # and a tile of the video
    jax.clear_caches()
    monitoring.register_event_listener(lambda event, **_: events.update([event]))
    try:
        again = opened(tiny_checkpoint, **options)(CAPTION, **wanted)
        jax.clear_caches()
        later = opened(
            tiny_checkpoint, **options
        )  # compiled when they are needed they are the same programs
        monkeypatch.setattr(later, "compile_ahead", lambda *arguments: None)
        np.testing.assert_array_equal(later(CAPTION, **wanted), found)
    finally:
        monitoring.clear_event_listeners()
    np.testing.assert_array_equal(again, found)
    assert events["/jax/compilation_cache/cache_misses"] == 0
    assert events["/jax/compilation_cache/cache_hits"] > 0


def test_a_start_compiles_a_program_for_each_stage_and_none_besides(tiny_checkpoint):
    """A program that is read from the disk costs a start a hundredth of a second; eager operations once made 61 of them."""
    jax.clear_caches()
    with compilations() as compiled:
        result = opened(tiny_checkpoint).generate(CAPTION, **SIZE)
    stages = ["encode", "initial_noise", "prepare", "denoise_step", "_finite_flag", "_decode_tile"]
    assert compiled == Counter(stages)
    assert {"compile", "encode", "denoise"} <= result.timings.keys()


@pytest.mark.parametrize("part", ["dit", "modulation", "vae"])
@pytest.mark.parametrize("modulation", ["resident", "released"])
def test_models_are_known_before_they_are_loaded(tiny_checkpoint, part, modulation):
    found = opened(tiny_checkpoint, modulation=modulation)._models
    known, loaded = getattr(found, f"abstract_{part}"), getattr(found, part)
    assert jax.tree.structure(known) == jax.tree.structure(loaded)
    for a, b in zip(jax.tree.leaves(known), jax.tree.leaves(loaded), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_an_error_is_the_callers_and_the_next_call_tries_again(programs):
    def fail():
        raise ValueError("no memory")

    programs.start("key", lambda: lowered(fail))
    with pytest.raises(ValueError, match="no memory"):
        programs.get("key", pytest.fail)
    assert programs.get("key", lambda: lowered(lambda: PROGRAM)) is PROGRAM
    assert programs.get("key", pytest.fail) is PROGRAM


@pytest.fixture
def interruptible():
    """Workers of pytest-xdist ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_does_not_wait_for_the_compiler(programs):
    started, done = threading.Event(), threading.Event()

    def interrupt():
        assert started.wait(SOON)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        assert done.wait(SOON)
        return PROGRAM

    programs.start("key", lambda: lowered(interrupt))
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 (the signal may come between the two)
        started.set()
        programs.get("key", pytest.fail)
    assert compiling.busy()
    done.set()
    assert programs.get("key", pytest.fail) is PROGRAM


def test_a_bounded_number_is_compiled_at_once():
    together = threading.Barrier(THREADS)
    lock, at_work = threading.Lock(), []

    def work(most=[0]):  # noqa: B006
        with lock:
            at_work.append(None)
            most[0] = max(most[0], len(at_work))
        together.wait(SOON)
        with lock:
            at_work.pop()
        return most[0]

    futures = [in_thread(work) for _ in range(4 * THREADS)]
    assert max(future.result(SOON) for future in futures) == THREADS


def run(script):
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=SOON
    )


def test_a_process_that_ends_compiles_nothing_more():
    done = run(
        "import threading\n"
        "from qsjax.compiling import THREADS, in_thread\n"
        "for _ in range(THREADS): in_thread(threading.main_thread().join)\n"
        "in_thread(lambda: print('compiled'))\n"
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_command_line_ends_at_ctrl_c_although_a_program_is_being_compiled():
    done = run(
        "import sys, threading\n"
        "import qsjax.cli.doctor\n"
        "from qsjax.cli import main\n"
        "from qsjax.compiling import in_thread\n"
        "begun = threading.Event()\n"
        "def run(args):\n"
        "    in_thread(lambda: (begun.set(), threading.Event().wait()))\n"
        "    begun.wait()\n"
        "    raise KeyboardInterrupt\n"
        "qsjax.cli.doctor.run = run\n"
        "sys.argv = ['qsjax', 'doctor']\n"
        "sys.exit(main())\n"
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_waiting_is_timed_and_finished_programs_take_no_time():
    added = []
    programs = Programs(lambda name, start: added.append(name))
    function = jax.jit(lambda x: x + 1)
    result = programs.start("key", lambda: function.lower(jnp.zeros(3)))
    assert (result.shape, added) == ((3,), ["compile"])
    np.testing.assert_array_equal(programs.get("key", pytest.fail)(jnp.zeros(3)), np.ones(3))
    added.clear()
    programs.get("key", pytest.fail)
    assert (added, list(programs)) == ([], ["key"])
