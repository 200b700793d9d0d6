"""HunyuanVideo's text side: a LLaMA-3 trunk for text states, a CLIP tower for the pooled vector, their tokenizers."""

from qsjax.text.clip import Clip as Clip
from qsjax.text.config import ClipConfig as ClipConfig
from qsjax.text.config import LlamaConfig as LlamaConfig
from qsjax.text.encoder import EncodedPrompt as EncodedPrompt
from qsjax.text.encoder import TextEncoder as TextEncoder
from qsjax.text.encoder import abstract_prompt as abstract_prompt
from qsjax.text.int8 import store_int8 as store_int8
from qsjax.text.llama import Llama as Llama
from qsjax.text.prompts import load_prompts as load_prompts
from qsjax.text.prompts import read_texts as read_texts
from qsjax.text.prompts import save_prompts as save_prompts
from qsjax.text.template import PromptTemplate as PromptTemplate
from qsjax.text.template import measure_crop_start as measure_crop_start
from qsjax.text.tokenize import PromptTokenizer as PromptTokenizer
from qsjax.text.tokenize import PromptTruncatedWarning as PromptTruncatedWarning
