"""Models from a Hugging Face hub into its cache on this machine, and out of it again.

async with Downloads(store, cache, settings, reload) as downloads:
    job = await downloads.start(DownloadSpec("org/repo"))  # looks, chooses, sees that there is room
    stop = downloads.listen(print)                    # progress, finished, failed: as llama.cpp tells them

`source`     what a person names -> a repository, a revision, a quantisation
`choice`     a list of files -> those to fetch
`downloads`  the jobs; `job` their values
`working`    the router's side of a worker: one process for each look and attempt, killed at any time
`worker`     that process; `hub` and `fetching` are its parts, which alone import huggingface_hub
`layout`     the folders of the cache; `removal` takes a model out of them
"""

from __future__ import annotations

from router.downloads.downloads import Downloads
from router.downloads.job import DownloadSpec, Job

__all__ = ["DownloadSpec", "Downloads", "Job"]
