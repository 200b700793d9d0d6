"""HunyuanVideo's causal video VAE in Flax: encode and decode, whole or in blended tiles."""

from qsjax.vae.config import Level as Level
from qsjax.vae.config import VAEConfig as VAEConfig
from qsjax.vae.loading import abstract_vae as abstract_vae
from qsjax.vae.loading import load_vae as load_vae
from qsjax.vae.model import VAE as VAE
from qsjax.vae.moments import Moments as Moments
from qsjax.vae.tiling import Tiling as Tiling
