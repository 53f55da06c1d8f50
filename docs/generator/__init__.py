"""Pages of docs/ that are made of the code itself: `python -m docs.generator` writes them
(bin/generate-docs), and a test holds the two together."""
