"""A published checkpoint answers over HTTP: engine, scheduler, replica, routes, rollout.

It does not know how a checkpoint was trained: everything about a model stands in its manifest.

Files in floor order: `errors`, `settings`, `messages`, `engine`, `predictor`, `batch`, `scheduler`, `follower`, `answerer`, `reference`,
`routes`, `app`, `metrics`, `replica`, `status`, `rollout`, `client`, `load`.
"""
