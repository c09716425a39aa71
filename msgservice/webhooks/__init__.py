"""Webhooks: receivers that are reached by HTTP.

A receiver at `https://…` is one of this process whose handler posts each message to that address,
and does not answer while the endpoint does not: order, windows and rates are a receiver's. One
message is one call: a batch that were cut differently under the same id would be acknowledged
unseen. `reach` is whom may be dialled, `signing` how a call is signed, `calls` what it says,
`endpoint` when it is tried again, `transport` where the node finds it.
"""
