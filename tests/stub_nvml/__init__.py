"""A stand-in for NVIDIA's management library: the real pynvml loads it, its devices and their use are files
in a folder."""
