"""`msgservice dev`: a node to try things at, with two receivers, messages, and trouble if wanted.

`command` is what is typed, `play` who takes part, `chaos` what is drawn, `process` the receiver
that is a process of its own, `child` what runs there, and `telling` the lines that are printed.
"""
