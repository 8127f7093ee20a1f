"""Many trainings: proposed, stopped early, written down, confirmed, judged.

Only `slots`, `first_rung`, `trial`, `together`, `agenda`, `group_scheduler`, `schedulers`, `progress` and `tuning` know Ray.

Files in floor order: `search_space`, `samplers`, `schedulers`, `pareto`, `ledger`, `searcher`, `depths`, `assignment`, `saved`, `reading`,
`found_heads`, `heads_alone`, `first_look`, `ladder`, `build`, `slots`, `first_rung`, `together`, `work`, `trial`, `budget`, `agenda`,
`group_scheduler`, `contest`, `importance`, `plan`, `prepared`, `progress`, `record`, `winner`, `explorations`, `tuning`, `terminal`,
`review`.
"""
