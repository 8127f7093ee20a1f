"""A published checkpoint answers over HTTP: engine, scheduler, replica, routes, rollout.

It does not know how a checkpoint was trained: everything about a model stands in its manifest. Its rooms: `engines` stands below all of
it but `errors`, `settings` and `messages`; of `observing`, what counts stands below `scheduling` and `answerer`, what publishes below
`app` and `replica`; `scheduling` stands below `answerer`, and `scaling` between it and `replica`; `candidates` holds versions on trial,
for `answerer`; `keys` stands on `errors` and `watchdog` and below `routes`, but for its command; `dialects` stands between `door` and
`routes`, `loading` above `client`; `scoring` answers about tables instead, with a `predictor` and no HTTP.

Files in floor order: `errors`, `settings`, `messages`, `promised`, `reading`, `watchdog`, `predictor`, `follower`, `ending`, `explaining`,
`remembered`, `tokenizer_thread`, `spent`, `answerer`, `door`, `leaving`, `unforeseen`, `reference`, `playground`, `routes`, `app`,
`listening`, `replica`, `status`, `serve_rest`, `rollout`, `kubernetes`, `public_door`, `retrying`, `lost_hosts`, `client`.
"""
