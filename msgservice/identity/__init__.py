"""Identity: who a peer says it is, how it proves that, and what it may do.

Values and two exchanges: `rules` and `users` say what is allowed to whom, `passwords`, `tokens` and
`users_file` what of a secret is kept, `server_exchange` and `client_exchange` are the two ends of
a login, and `throttle` bounds the guessing. No sockets, no clock and no log lines: bytes and times
are arguments, what is to be done is returned; only `users_file` and `private_files` touch the disk.
When a door asks, and what a refused peer is told and when, is decided by the node.
"""
