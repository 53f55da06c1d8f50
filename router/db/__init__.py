"""Rows that outlive the process: one sqlite file in the state folder.

`store`  its connection and its writer thread; each owner defines its own `Table`
"""
