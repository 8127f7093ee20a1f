"""Many trainings: proposed, stopped early, written down, confirmed, judged.

Rooms in floor order: `proposing`, `trials`, `deciding`; then the files here. Of these only `agenda`, `recorder`, `progress` and `tuning`
know Ray.

Files in floor order: `agenda`, `recorder`, `plan`, `prepared`, `same_words`, `progress`, `record`, `words_alone`, `winner`,
`explorations`, `stopping`, `tuning`, `terminal`, `review`.
"""
