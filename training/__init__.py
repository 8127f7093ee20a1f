"""From a table of texts to a published checkpoint: data, model, search, registry.

It does not know HTTP or Ray Serve, and imports only `cluster`. Plain functions do the work; `trial` and
`tuning` alone lend them to Ray.

Files in floor order: `errors`, `settings`, `sample`, `table`, `dataset`, `split`, `doctor`, `encoder`, `tokens`, `model`,
`loss`, `metrics`, `fit`, `checkpoint`, `trial`, `search_space`, `searcher`, `tuning`, `registry`, `report`.
"""
