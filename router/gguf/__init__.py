"""The header of a GGUF file, read in milliseconds and without trust: keys and tensor sizes, never a weight.

gguf.GGUFReader takes 10 to 17 s and a gigabyte for a vocabulary of today, and believes every count it reads.
Here vocabularies are stepped over, not decoded, and a file that lies is an error, never memory or time.

`read_gguf` blocks on the disk: call it in a thread.
"""

from router.gguf.header import first_keys
from router.gguf.metadata import (
    FILE_TYPES,
    GGML_TYPES,
    POOLING_TYPES,
    GgufError,
    GgufMetadata,
    KvValue,
    TensorInfo,
)
from router.gguf.model import read_gguf

__all__ = [
    "FILE_TYPES",
    "GGML_TYPES",
    "POOLING_TYPES",
    "GgufError",
    "GgufMetadata",
    "KvValue",
    "TensorInfo",
    "first_keys",
    "read_gguf",
]
