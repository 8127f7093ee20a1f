"""Several machines, started and ended by Ray's own launcher.

It knows Ray's configuration of a cluster, and how to reach the machines in it; not what runs there.

Files in floor order: `known`, `notice`, `keeper`, `completing`, `launcher_file`, `said`, `probe`, `ray_up`.
"""
