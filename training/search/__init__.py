"""Many trainings: proposed, stopped early, written down, confirmed, judged.

Rooms in floor order: `proposing`, `trials`, `deciding`; then the files here. Of these only `agenda`, `recorder`, `progress`,
`experiment` and `tuning` know Ray.

Files in floor order: `agenda`, `recorder`, `plan`, `prepared`, `same_words`, `progress`, `record`, `words_alone`, `winner`,
`explorations`, `experiment`, `stopping`, `tuning`, `terminal`, `review`.
"""
