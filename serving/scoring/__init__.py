"""A version answers about every row of a table, and goes on where it was interrupted.

A table is divided into blocks of so many rows; a worker reads, answers and writes one block at a time, as one part. So memory is bounded by
the rows of a block times the workers, whatever the size of the table. It does not know HTTP.

Files in floor order: `files`, `cells`, `answers`, `parts`, `workers`, `command`.
"""
