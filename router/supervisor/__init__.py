"""The async shell around the scheduler, and what it learns about the models.

`pool`         carries out the scheduler's commands, reports events to it, keeps its one timer
`stall`        judges whether a child process that requests wait for is stuck
`calibration`  memory of a model: predicted, measured, corrected, kept for the next start
`planning`     what a load would take and where it would go; which models fit together
"""
