"""The outbox in the user's own database: messages that are sent if, and only if, a transaction is.

`table` is what a program calls in its transaction: plain, synchronous DB-API, no Twisted in sight.
`relay` is what hands the rows over, wherever that runs; its parts are `rows`, the statements of its
thread, and `fates`, what becomes of what it handed over. `sql` is the SQL of both.
"""
