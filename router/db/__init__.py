"""What outlives the process: one sqlite file in the state folder.

`store`  its connection, tables and writer thread
"""
