"""The stored inbox of a receiver: its file, its marks and rejections, its transactions.

The inbox of a receiver that stores none is in memory: `core.inbox`.
"""
