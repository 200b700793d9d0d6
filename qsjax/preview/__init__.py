"""Previews of a video that is being made: latents to small frames by a linear map, without the autoencoder."""

from qsjax.preview.colours import Colours as Colours
from qsjax.preview.fitting import colours_of as colours_of
from qsjax.preview.sheet import PreviewSheet as PreviewSheet
from qsjax.preview.steps import StepPreviews as StepPreviews
from qsjax.preview.steps import check_preview as check_preview
