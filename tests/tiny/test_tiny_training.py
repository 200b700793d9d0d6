import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import FLOAT32_NETWORK

from qsjax.dit import DiT, DiTConfig
from qsjax.errors import InputError
from qsjax.params import parameters
from qsjax.tiny import bundle, train, words
from qsjax.tiny.training import dit as dit_training
from qsjax.tiny.training import latents, loop, matmul, objectives
from qsjax.tiny.training import vae as vae_training
from qsjax.tiny.training.dit import DiTTraining
from qsjax.tiny.training.phases import Curriculum, Phase

MINUSCULE = DiTConfig(
    in_channels=16,
    out_channels=16,
    hidden_size=16,
    num_heads=1,
    num_double_blocks=1,
    num_single_blocks=1,
    num_refiner_blocks=1,
    mlp_ratio=1.0,
    patch_size=(1, 2, 2),
    rope_axes_dim=(4, 6, 6),
    rope_theta=256.0,
    text_dim=64,
    pooled_dim=64,
    guidance_embeds=True,
)


def small_dit() -> DiT:
    """Filled on the host: the eager initializers of a DiT compile for many seconds."""
    graph, state = nnx.split(nnx.eval_shape(lambda: DiT(MINUSCULE, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(0)
    return nnx.merge(
        graph,
        jax.tree.map(lambda a: jnp.asarray(0.1 * random.standard_normal(a.shape), a.dtype), state),
    )


@pytest.mark.whole
def test_one_step_of_the_dit():
    training = DiTTraining(curriculum=Curriculum(phases=(Phase(5, 16, 2, 2),), warm_up=1))
    basis, dit = latents.fit(0, clips=2), small_dit()
    teacher = dit_training.velocity(dit, "float32")(nnx.split(dit)[1])
    objective = objectives.guided_flow(teacher)
    before = dit_training.initial_state(dit, training)
    step = dit_training.make_step(dit, training, objective)
    batch = dit_training.batches(basis, training.curriculum, seed=2)(0)
    after, figures = step(before, batch, jax.random.key(0))
    assert np.isfinite(float(figures["loss"]))
    assert int(after.step) == 1
    changed = [
        not np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(before.parameters), jax.tree.leaves(after.parameters), strict=True
        )
    ]
    assert np.mean(changed) > 0.9


def perfect(x0, velocity_without_caption):
    """A model that knows the data, whose guidance of any scale through the embedder equals two passes."""
    empty_pooled = words.encode_tokens(words.tokenize([""], 16)).pooled

    def model(x, sigma, prompt, guidance):
        level = sigma[:, None, None, None, None]
        known = (x - (1 - level) * x0) / level - x0
        none = velocity_without_caption(x)
        captioned = jnp.abs(prompt.pooled - empty_pooled).max(axis=1) > 1e-3
        guided = none + guidance[:, None, None, None, None] * (known - none)
        return jnp.where(captioned[:, None, None, None, None], guided, none)

    return model


@pytest.mark.parametrize("kind", ["flow", "guided flow"])
def test_a_perfect_model_has_no_loss(kind, monkeypatch):
    """Its flow is noise minus data, and one pass of it is worth two."""
    monkeypatch.setattr(objectives, "CAPTION_DROPOUT", 0.0)
    tokens = words.tokenize(["a red circle grows over dark stripes"] * 4, 16)
    x0 = jnp.full((1, 16, 2, 4, 4), 3.0)
    model, data = perfect(x0, lambda x: 0.25 * x), jnp.tile(x0, (4, 1, 1, 1, 1))
    objective = objectives.flow if kind == "flow" else objectives.guided_flow(model)

    def deaf(x, sigma, prompt, guidance):
        return model(x, sigma, prompt, jnp.ones_like(guidance))

    assert float(objective(model, data, tokens, jax.random.key(1))) < 1e-6
    worse = float(objective(deaf, data, tokens, jax.random.key(1)))
    assert worse < 1e-6 if kind == "flow" else worse > 0.1


def test_the_teacher_is_heard_in_the_second_half_only():
    """One that is off by 1 where there is no caption costs 1 there, times the weight of the scale."""
    tokens = words.tokenize([""] * 4, 16)
    x0 = jnp.full((1, 16, 2, 4, 4), 3.0)
    model, data = perfect(x0, lambda x: 0.25 * x), jnp.tile(x0, (4, 1, 1, 1, 1))

    def loss(wrong):
        objective = objectives.guided_flow(lambda x, *_: 0.25 * x + wrong)
        return float(objective(model, data, tokens, jax.random.key(0)))

    # Half of the batch; weights lie between (4 / 8)^2 and 1.
    assert 0.5 * 0.25 <= loss(1.0) - loss(0.0) <= 0.5


def test_noise_levels_are_one_from_each_slice_and_shifted_up():
    sigma = np.asarray(objectives.stratified(jax.random.key(0), 8))
    assert (np.diff(sigma) > 0).all()
    assert sigma[3] < 0.55 < sigma[5] + 0.1
    np.testing.assert_allclose(objectives.shifted(jnp.array([0.0, 0.5, 1.0]), 3.0), [0, 0.75, 1])


@pytest.mark.parametrize("size", [(2, 5, 2, 8), (1, 7, 1, 4)])
def test_training_attention_and_its_gradient_are_those_of_softmax(size):
    random = np.random.default_rng(0)
    q, k, v, w = (jnp.asarray(random.standard_normal(size), jnp.float32) for _ in range(4))
    valid = jnp.arange(size[1])[None] < jnp.array([[size[1] - 2]] * size[0])
    attend = matmul.attention(jnp.dtype("float32"))

    def ours(q, k, v):
        return (attend(q, k, v, valid, ())[0] * w).sum()

    def plain(q, k, v):
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(size[-1]).astype(np.float32)
        scores = jnp.where(valid[:, None, None], scores, -jnp.inf)
        return (jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v) * w).sum()

    (value, slopes), (expected, expected_slopes) = (
        jax.jit(jax.value_and_grad(function, (0, 1, 2)))(q, k, v) for function in (ours, plain)
    )
    np.testing.assert_allclose(value, expected, atol=FLOAT32_NETWORK, rtol=FLOAT32_NETWORK)
    for mine, theirs in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=FLOAT32_NETWORK)


def test_linears_of_training_have_the_gradients_of_linears():
    layer = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 6)), jnp.float32)

    def slopes(layer, x):
        graph, parameters = nnx.split(layer)
        return jax.grad(lambda p, x: jnp.sin(nnx.merge(graph, p)(x)).sum(), (0, 1))(parameters, x)

    expected = jax.tree.leaves(slopes(layer, x))
    matmul.use_in_linears(layer, jnp.dtype("float32"))
    for mine, theirs in zip(jax.tree.leaves(slopes(layer, x)), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=FLOAT32_NETWORK)


def test_a_stopped_run_continues_to_the_same_state(tmp_path):
    def step(state, batch, key):
        state = {"weights": state["weights"] * 0.5 + batch + jax.random.normal(key, (3,))}
        return state, {"loss": state["weights"].sum()}

    def run(name: str, steps: int) -> np.ndarray:
        state = loop.run(
            label="test",
            directory=tmp_path / name,
            state={"weights": jnp.zeros(3)},
            step=step,
            batch=lambda index: jnp.full(3, float(index)),
            steps=steps,
            seed=0,
            save_every=1,
            log_every=1,
            on_save=lambda state, done: {"evaluated": float(done)},
        )
        return np.asarray(state["weights"])

    whole = run("whole", 4)
    run("stopped", 2)
    np.testing.assert_array_equal(whole, run("stopped", 4))
    lines = (tmp_path / "stopped" / "figures.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert len(list((tmp_path / "stopped").glob("step_*"))) == 2  # only the newest are kept


def test_phases_follow_each_other():
    phases = (Phase(17, 32, 16, 10), Phase(17, 48, 8, 10))
    curriculum = Curriculum(phases=phases, warm_up=2)
    assert curriculum.steps == 20
    assert curriculum.place(9) == (phases[0], 144)
    assert curriculum.place(11) == (phases[1], 168)
    assert curriculum.rate(0) == 0.5
    assert curriculum.rate(5) == 1.0
    assert curriculum.rate(19) < 0.25
    with pytest.raises(InputError, match="step 20"):
        curriculum.place(20)


def test_a_new_vae_is_almost_linear_and_has_offsets():
    values = parameters(vae_training.new_vae(0))
    assert not any(value.any() for name, value in values.items() if "conv2.kernel" in name)
    offsets = values["decoder.conv_in.bias"].reshape(8, -1)
    assert (offsets.max(axis=1) - offsets.min(axis=1) > 1).all()


@pytest.mark.parametrize("phases", ["17x32", "17x32x16xmany", "a", "17x32x0x5"])
def test_bad_phases(phases, capsys, tmp_path):
    assert train.main(["--phases", phases, "--work", str(tmp_path / "new")]) == 2
    assert "FRAMESxSIZExBATCHxSTEPS" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("stage", "before"), [("dit", "data"), ("vae", "data"), ("distil", "dit"), ("bundle", "distil")]
)
def test_a_stage_without_its_predecessor(stage, before, tmp_path, capsys):
    assert train.main(["--stage", stage, "--work", str(tmp_path / "new")]) == 2
    assert f"--stage {before}" in capsys.readouterr().err


FILES = (
    "model_index.json",
    "prompt_template.json",
    "qsjax.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)


def test_the_bundle_is_whole_and_small():
    folder = bundle.assets_directory()
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert found == sorted(FILES)
    assert sum((folder / name).stat().st_size for name in found) <= bundle.LIMIT_BYTES


def test_the_bundled_weights_fit_their_configurations():
    from safetensors.numpy import load_file

    from convert.keymaps import expand
    from qsjax.tiny.configs import CLIP_CONFIG, LLAMA_CONFIG
    from qsjax.vae import VAEConfig

    folder = bundle.assets_directory()

    def read(path: str) -> dict:
        return json.loads((folder / path).read_text())

    dit = DiTConfig.from_diffusers(read("transformer/config.json"))
    vae = VAEConfig.from_diffusers(read("vae/config.json"))
    parts = (
        ("dit", dit, "diffusers", "transformer/diffusion_pytorch_model.safetensors", 0),
        ("vae", vae, "hunyuan", "vae/diffusion_pytorch_model.safetensors", 0),
        ("llama", LLAMA_CONFIG, "transformers", "text_encoder/model.safetensors", 19),
        ("clip", CLIP_CONFIG, "transformers", "text_encoder_2/model.safetensors", 0),
    )
    for component, config, layout, path, unused in parts:
        rows = expand(component, config, layout)
        expected = {name: shape for row in rows for name, shape in row.sources.items()}
        tensors = load_file(folder / path)
        assert len(tensors) == len(expected) + unused
        assert all(tensors[name].shape == tuple(shape) for name, shape in expected.items())
        assert all(np.isfinite(np.float32(value)).all() for value in tensors.values())


def test_a_bundle_is_written_anywhere(tmp_path):
    from safetensors.numpy import load_file

    dit, vae = small_dit(), vae_training.new_vae(0)
    size = bundle.write_bundle(tmp_path / "tiny", dit, vae, scaling_factor=0.5)
    found = [p for p in (tmp_path / "tiny").rglob("*") if p.is_file()]
    assert len(found) == len(FILES)
    assert size == sum(p.stat().st_size for p in found)
    assert json.loads((tmp_path / "tiny/vae/config.json").read_text())["scaling_factor"] == 0.5
    stored = load_file(tmp_path / "tiny/vae/diffusion_pytorch_model.safetensors")
    assert {value.dtype.name for value in stored.values()} == {"bfloat16"}
