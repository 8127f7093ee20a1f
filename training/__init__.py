"""From a table of texts to a published checkpoint: data, model, search, registry.

It does not know HTTP or Ray Serve, and imports only `cluster`. Plain functions do the work; `trial` and
`tuning` alone lend them to Ray.

Files in floor order: `errors`, `template`, `settings`, `sample`, `findings`, `characters`, `formats`, `table`,
`rows`, `split`, `dataset`, `doctor`, `tokens`, `encoder`, `model`, `inputs`, `prefix`, `loss`, `metrics`, `device`,
`optimiser`, `fit`, `checkpoint`, `search_space`, `searcher`, `trial`, `progress`, `plan`, `report`, `winner`,
`tuning`, `registry`.
"""
