"""Which architectures llama-server runs, by the name in general.architecture.

Source: LLM_ARCH_NAMES in src/llama-arch.cpp of llama.cpp b11434, and for what is not run: src/llama.cpp
(clip), src/llama-context.cpp (drafts need the context of their target), tools/cvector-generator; the names of
image, video and audio models are those that stable-diffusion.cpp and ComfyUI-GGUF write.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

#: The llama.cpp whose table this is.
LLAMA_CPP: Final = "b11434"

_NAMES: Final = """
    afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bert bitnet bloom
    chameleon chatglm clef codeshell cogvlm cohere2 cohere2moe command-r dbrx deci deepseek deepseek2
    deepseek2-ocr deepseek32 deepseek4 dots1 dots3note dream ernie4_5 ernie4_5-moe eurobert exaone
    exaone-moe exaone4 falcon falcon-h1 gemma gemma-embedding gemma2 gemma3 gemma3n gemma4 glm-dsa glm4
    glm4moe glm5-next gpt-oss gpt2 gptj gptneox granite granite_swa granitehybrid granitemoe
    graniteswitch grok grovemoe hrm_text hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 hy_v4 internlm2 jais
    jais2 jamba jina-bert-v2 jina-bert-v3 kimi-k3 kimi-linear laguna lfm2 lfm2moe llada llada-moe llama
    llama-embed llama4 maincoder mamba mamba2 maple mellum mimo2 minicpm minicpm3 minimax-01 minimax-m2
    minimax-m3 mistral3 mistral4 modern-bert mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe
    neo-bert nomic-bert nomic-bert-moe olmo olmo2 olmoe openelm orion paddleocr pangu-embedded phi2 phi3
    phimoe plamo plamo2 plamo3 plm pockettts qwen qwen2 qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe
    qwen3next qwen3tts qwen3vl qwen3vlmoe qwen4exp refact rnd1 rwkv6 rwkv6qwen2 rwkv7 seed_oss
    smallthinker smollm3 spark2_5 stablelm starcoder starcoder2 step35 t5 talkie xverse
"""
#: What llama-server can answer requests with.
SERVED: Final = frozenset(_NAMES.split())

#: Drafts: llama-server runs them beside their target, never alone.
DRAFTS: Final = frozenset({"dflash", "eagle3", "gemma4-assistant"})

#: Encoders that llama-server loads, and whose embeddings it can give; their completions are noise (tried with
#: b11434).
ENCODERS: Final = frozenset({"t5encoder"})

_IMAGE_MODELS: Final = """
    sd sd1 sd1.5 sd2 sd3 sd3.5 sdxl sdxs ssd1b svd flux flux2 flux_kontext chroma chroma_radiance aura
    auraflow pixart hidream hidream_i1 lumina lumina2 omnigen omnigen2 ovis_image z_image zimage
    qwen_image qwen-image wan wan2 ltxv ltx ltxv2 hyvid hunyuan_video hunyuan-video cosmos mochi cogvideo
    cogvideox kandinsky5 ace acestep stable_audio esrgan vae taesd controlnet upscaler diffusion
"""
_IMAGE_MODEL: Final = "an image, video or music model, which llama-server does not run"
_IMAGE_ENCODER: Final = "a text encoder of image models, which llama-server does not run"

#: Values of general.type that no model has, and what such a file is. Adapters and projectors are not here.
NO_MODELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "imatrix": "an importance matrix for quantising models",
        "vocab": "a vocabulary without weights",
        "dataset": "a data set",
    }
)

#: Architectures that can never answer a request, and what such a file is.
NOT_SERVED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "controlvector": 'a control vector: give it to a model with args = ["--control-vector", FILE]',
        "wavtokenizer-dec": "the vocoder of a speech model",
        "clip_l": _IMAGE_ENCODER,
        "clip_g": _IMAGE_ENCODER,
        "clip-vision": _IMAGE_ENCODER,
        "whisper": "a speech recogniser of whisper.cpp, which llama-server does not run",
        **dict.fromkeys(_IMAGE_MODELS.split(), _IMAGE_MODEL),
    }
)
