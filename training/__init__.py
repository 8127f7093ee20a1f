"""From a table of texts to a published checkpoint: data, model, search, registry.

It does not know HTTP or Ray Serve, and imports only `cluster`. Its rooms, one above the other: data, activations, network, judging,
fitting, report, search, export; a room imports itself and those before it.

Files in floor order: `errors`, `template`, `data_settings`, `fit_settings`, `search_settings`, `settings`, `golden`, `manifest`,
`signature`, `checkpoint`, `registry`.
"""
