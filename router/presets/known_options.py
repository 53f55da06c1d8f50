"""The options of llama-server that decide memory, place and routing, and those that a preset may not set.

Nothing is said here of any other option: llama-server itself knows it (`router.presets.options`). A line is:

    arguments | arguments that negate | what the value is | environment variable | what it is here

What it is here: the field of `ModelPreset` that it becomes and how its text is read, or why it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

KNOWN_OPTIONS: Final = """
-c --ctx-size | | N | LLAMA_ARG_CTX_SIZE | ctx_size number
-b --batch-size | | N | LLAMA_ARG_BATCH | batch_size number
-ub --ubatch-size | | N | LLAMA_ARG_UBATCH | ubatch_size number
--swa-full | | | LLAMA_ARG_SWA_FULL | swa_full boolean
-fa --flash-attn | | N | LLAMA_ARG_FLASH_ATTN | flash_attn switch
-kvo --kv-offload | -nkvo --no-kv-offload | | LLAMA_ARG_KV_OFFLOAD | kv_offload boolean
-ctk --cache-type-k | | N | LLAMA_ARG_CACHE_TYPE_K | cache_type_k text
-ctv --cache-type-v | | N | LLAMA_ARG_CACHE_TYPE_V | cache_type_v text
-lm --load-mode | | N | LLAMA_ARG_LOAD_MODE
-dev --device | | N | LLAMA_ARG_DEVICE | devices names
-ot --override-tensor | | N | LLAMA_ARG_OVERRIDE_TENSOR | override_tensor names
-cmoe --cpu-moe | | | LLAMA_ARG_CPU_MOE | cpu_moe boolean
-ncmoe --n-cpu-moe | | N | LLAMA_ARG_N_CPU_MOE | n_cpu_moe number
-ncffn --n-cpu-ffn | | N | LLAMA_ARG_N_CPU_FFN | n_cpu_ffn number
-ngl --gpu-layers --n-gpu-layers | | N | LLAMA_ARG_N_GPU_LAYERS | n_gpu_layers layers
-sm --split-mode | | N | LLAMA_ARG_SPLIT_MODE | split_mode text
-ts --tensor-split | | N | LLAMA_ARG_TENSOR_SPLIT | tensor_split shares
-mg --main-gpu | | N | LLAMA_ARG_MAIN_GPU | main_gpu number
--lora | | FNAME | | lora names
--lora-scaled | | N
--control-vector | | FNAME
--control-vector-scaled | | N
-m --model | | FNAME | LLAMA_ARG_MODEL | model text
-hf -hfr --hf-repo | | N | LLAMA_ARG_HF_REPO | hf_repo text
-hff --hf-file | | FILE | LLAMA_ARG_HF_FILE | hf_file text
--spec-draft-hf -hfd -hfrd --hf-repo-draft | | N | LLAMA_ARG_SPEC_DRAFT_HF_REPO | draft_hf_repo text
--spec-draft-n-max | | N | LLAMA_ARG_SPEC_DRAFT_N_MAX
--spec-draft-n-min | | N | LLAMA_ARG_SPEC_DRAFT_N_MIN
--spec-draft-ngl -ngld --gpu-layers-draft --n-gpu-layers-draft | | N | \
    LLAMA_ARG_N_GPU_LAYERS_DRAFT | draft_n_gpu_layers layers
--spec-draft-model -md --model-draft | | FNAME | LLAMA_ARG_SPEC_DRAFT_MODEL | draft_model text
-ctxcp --ctx-checkpoints --swa-checkpoints | | N | LLAMA_ARG_CTX_CHECKPOINTS
--spec-type | | N | LLAMA_ARG_SPEC_TYPE
-cram --cache-ram | | N | LLAMA_ARG_CACHE_RAM | cache_ram_mib number
-kvu --kv-unified | -no-kvu --no-kv-unified | | LLAMA_ARG_KV_UNIFIED | kv_unified boolean
--pooling | | N | LLAMA_ARG_POOLING | pooling text
-np --parallel | | N | LLAMA_ARG_N_PARALLEL | parallel slots
-mm --mmproj | | FILE | LLAMA_ARG_MMPROJ | mmproj text
--mmproj-auto | --no-mmproj --no-mmproj-auto | | LLAMA_ARG_MMPROJ_AUTO | mmproj_auto boolean
--mmproj-offload | --no-mmproj-offload | | LLAMA_ARG_MMPROJ_OFFLOAD | mmproj_offload boolean
-a --alias | | N | LLAMA_ARG_ALIAS | aliases names
--tags | | N | LLAMA_ARG_TAGS | tags names
--embedding --embeddings | | | LLAMA_ARG_EMBEDDINGS | embedding boolean
--rerank --reranking | | | LLAMA_ARG_RERANKING | reranking boolean
--sleep-idle-seconds | | N | | ttl_seconds seconds
--load-on-startup | | N | | load_on_startup boolean
--stop-timeout | | N | | stop_grace_seconds seconds
--dedup-cache-models | | N | | dedup_cache_models boolean
-h --help --usage | | | | prints
--version | | | | prints
-cl --cache-list | | | | prints
--completion-bash | | | | prints
--list-devices | | | | prints
-fit --fit | | N | LLAMA_ARG_FIT | places
-fitt --fit-target | | N | LLAMA_ARG_FIT_TARGET | places
-fitc --fit-ctx | | N | LLAMA_ARG_FIT_CTX | places
-mu --model-url | | N | LLAMA_ARG_MODEL_URL | fetches
-dr --docker-repo | | N | LLAMA_ARG_DOCKER_REPO | fetches
-hft --hf-token | | N | HF_TOKEN | secret
--log-disable | | | | logs
--log-file | | FNAME | LLAMA_ARG_LOG_FILE | logs
--spec-ngram-size-n | | N | | removed
--spec-ngram-size-m | | N | | removed
--spec-ngram-min-hits | | N | | removed
-mmu --mmproj-url | | N | LLAMA_ARG_MMPROJ_URL | fetches
--host | | N | LLAMA_ARG_HOST | answers
--port | | N | LLAMA_ARG_PORT | answers
--reuse-port | | | LLAMA_ARG_REUSE_PORT | answers
--path | | PATH | LLAMA_ARG_STATIC_PATH | answers
--cors-origins | | N | LLAMA_ARG_CORS_ORIGINS | answers
--cors-methods | | N | LLAMA_ARG_CORS_METHODS | answers
--cors-headers | | N | LLAMA_ARG_CORS_HEADERS | answers
--cors-credentials | --no-cors-credentials | | LLAMA_ARG_CORS_CREDENTIALS | answers
--api-prefix | | N | LLAMA_ARG_API_PREFIX | answers
--api-key | | N | LLAMA_API_KEY | answers
--api-key-file | | FNAME | LLAMA_ARG_API_KEY_FILE | answers
--ssl-key-file | | FNAME | LLAMA_ARG_SSL_KEY_FILE | answers
--ssl-cert-file | | FNAME | LLAMA_ARG_SSL_CERT_FILE | answers
--models-dir | | PATH | LLAMA_ARG_MODELS_DIR | router
--models-preset | | PATH | LLAMA_ARG_MODELS_PRESET | router
--models-max | | N | LLAMA_ARG_MODELS_MAX | router
--models-autoload | --no-models-autoload | | LLAMA_ARG_MODELS_AUTOLOAD | router
--embd-gemma-default | | | | fetches
--fim-qwen-1.5b-default | | | | fetches
--fim-qwen-3b-default | | | | fetches
--fim-qwen-7b-default | | | | fetches
--fim-qwen-7b-spec | | | | fetches
--fim-qwen-14b-spec | | | | fetches
--fim-qwen-30b-default | | | | fetches
--gpt-oss-20b-default | | | | fetches
--gpt-oss-120b-default | | | | fetches
--vision-gemma-4b-default | | | | fetches
--vision-gemma-12b-default | | | | fetches
"""

#: Why an option is refused, by the word in its line.
REFUSALS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "answers": "the router answers clients itself; a child listens on a socket of its own",
        "router": "it would make the child a router",
        "places": "the router decides what fits where; use ctx_size and n_gpu_layers, which may be auto",
        "fetches": "it downloads while loading; use `llama-router pull` and hf_repo",
        "prints": "it prints something and ends",
        "logs": "the router keeps the log and watches it while the model loads",
        "removed": "it has been removed from llama-server",
        "secret": "it would stand in the process list; set HF_TOKEN",
    }
)
