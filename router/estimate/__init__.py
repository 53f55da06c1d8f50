"""How many bytes a model will take, and where it could go: arithmetic on a header, settings and devices.

No file is read here and no device asked; `fit_params` alone runs a program, as a second opinion.
"""
