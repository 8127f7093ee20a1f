"""One trial: what it is given, the heads it begins with, and its training.

Only `slots`, `first_rung`, `together` and `trial` know Ray.

Files in floor order: `depths`, `assignment`, `saved`, `reading`, `found_heads`, `heads_alone`, `first_look`, `build`, `slots`,
`first_rung`, `together`, `work`, `trial`.
"""
