"""The async shell around the scheduler, and what it finds out about the models.

`pool`         carries out the scheduler's commands, reports events to it, keeps its one timer
`leases`       what a granted request holds, and the requests that wait
`instances`    one task for each child process, from its start to its exit
`measuring`    when each host is measured
`handover`     what passes from one router process to the next
`stall`        judges whether a child process that requests wait for is stuck
`calibration`  memory of a model: predicted, measured, corrected, kept for the next start
`planning`     what a load would take and where it would go; which models fit together
"""
